"""`annotate`: a row for every picture and prompt, errors included; what goes on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter import LensAdapter, annotate
from lens_adapter.annotation import rethreshold
from lens_adapter.annotation.provenance import MANIFEST
from lens_adapter.annotation.rows import SCHEMA, read_rows, shard_facts, shards_in
from lens_adapter.errors import InputError, LensError, NotAttachedError
from tests.annotation.standin import standin, write_jsonl, write_pictures
from tests.tiny.adapters import tiny_trio
from tests.tiny.sam import noise_image

PROMPTS = ["a dog", "a cat"]


def rows_in(folder: Path) -> list[dict]:
    return list(read_rows(shards_in(folder)))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("annotate") / "pictures"
    write_pictures(folder, 10)
    return folder


def test_every_picture_and_prompt_is_a_row_in_order(pictures, tmp_path):
    report = annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS, shard_size=4, score_threshold=0.4)
    rows = rows_in(tmp_path / "out")
    names = sorted(path.name for path in pictures.iterdir())
    assert [(row["image"], row["prompt"]) for row in rows] == [(name, prompt) for name in names for prompt in PROMPTS]
    assert [path.name for path in shards_in(tmp_path / "out")] == [f"part-{k:05d}.parquet" for k in range(3)]
    assert (report.pictures, report.rows, report.errors) == (10, 20, 0)
    assert 0 < report.found == sum(row["found"] for row in rows) < 20
    for row in rows:
        with Image.open(pictures / row["image"]) as image:
            (expected,) = standin([image], [[row["prompt"]]])
        mask = coco.decode({**row["rle"], "counts": row["rle"]["counts"].encode()})
        assert (mask == expected.masks[0].numpy()).all() and row["area"] == mask.sum()
        left, top, right, bottom = map(int, row["box"])
        assert mask[top:bottom, left:right].sum() == row["area"] and mask[:, left].any() and mask[bottom - 1].any()
        assert (row["height"], row["width"]) == mask.shape and row["score"] == expected.scores[0].item()
        assert row["found"] == (row["score"] >= 0.4) and row["keypoints"] == [[1.5, 2.25]] and row["error"] is None


def test_of_an_adapter_the_rows_are_what_segment_finds(tmp_path):
    adapter = tiny_trio(mask_threshold=0.5)[0]
    for k in range(3):
        noise_image(40 + k, 50, seed=k).save(tmp_path / f"{k}.png")
    scores = [adapter.segment(tmp_path / f"{k}.png", PROMPTS).scores for k in range(3)]
    middle = float(torch.cat(scores).median())
    annotate(adapter, tmp_path, tmp_path / "out", prompts=PROMPTS, batch_size=3, score_threshold=middle)
    rows = rows_in(tmp_path / "out")
    for k in range(3):
        out = adapter.segment(tmp_path / f"{k}.png", PROMPTS, score_threshold=0.0)
        for row, mask, score in zip(rows[2 * k : 2 * k + 2], out.masks, out.scores.tolist(), strict=True):
            drawn = torch.from_numpy(coco.decode({**row["rle"], "counts": row["rle"]["counts"].encode()})).bool()
            assert row["score"] == pytest.approx(score, abs=1e-4) and (drawn != mask).float().mean() < 1e-3
            assert row["area"] > 0  # whatever `found` says
    assert {row["found"] for row in rows} == {True, False}
    facts = shard_facts(shards_in(tmp_path / "out")[0])
    assert (facts["head_sha256"], facts["mask_threshold"]) == (adapter.digest(), 0.5)
    assert facts["base_weights"] and facts["versions"]["torch"] in torch.__version__ and facts["prompts"] == PROMPTS


def test_an_adapter_without_a_base_is_refused_before_anything_is_written(pictures, tmp_path):
    adapter = tiny_trio()[0]
    adapter.detach()
    with pytest.raises(NotAttachedError):
        annotate(adapter, pictures, tmp_path / "out", prompts=PROMPTS)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_annotated_is_a_row_with_its_error(pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = str(pictures / "00000.png")
    listed = write_jsonl(
        tmp_path / "list.jsonl",
        [
            {"image": good, "prompts": ["a dog", "refused", " ", 7, "a cat"]},
            {"image": "broken.png", "prompts": PROMPTS},
            {"image": "missing.png", "prompt": "a dog"},
            {"image": "https://example.com/a.png", "prompt": "a dog"},
            {"image": good},
            {"image": good, "prompts": []},
            ["no", "object"],
            {"image": str(pictures / "00001.png"), "prompt": "a dog"},
        ],
    )
    report = annotate(standin, listed, tmp_path / "out", batch_size=100)
    rows = rows_in(tmp_path / "out")
    said = [(row["image"], row["prompt"], row["error"] and row["error"][:24]) for row in rows]
    assert said == [
        (good, "a dog", None),
        (good, "refused", "The prompt 'refused' is "),
        (good, " ", "A prompt must be a text "),
        (good, "7", "A prompt must be a text "),
        (good, "a cat", None),
        ("broken.png", "a dog", f"The image file '{tmp_path}"[:24]),
        ("broken.png", "a cat", f"The image file '{tmp_path}"[:24]),
        ("missing.png", "a dog", "There is no image file '"),
        ("https://example.com/a.png", "a dog", "Nothing is fetched: 'htt"),
        (good, None, "A prompt must be a text "),
        (good, None, "A prompt must be a text "),
        ("list.jsonl#7", None, "Expected a JSON object, "),
        (str(pictures / "00001.png"), "a dog", None),
    ]
    assert (report.rows, report.errors, report.broken_pictures) == (13, 10, 6)
    assert "rows with an error instead of a mask 10, of 6 pictures" in report.summary()
    assert all(row["found"] is False and row["score"] is None for row in rows if row["error"])
    assert {row["width"] for row in rows if row["error"] and row["image"] == good} == {9}


def test_an_error_stops_where_that_is_wanted_and_what_was_finished_stays(pictures, tmp_path):
    rows = [{"image": str(pictures / f"{k:05d}.png"), "prompt": "a dog"} for k in range(5)] + [{"image": "gone.png"}]
    listed = write_jsonl(tmp_path / "list.jsonl", rows)
    with pytest.raises(InputError, match=r"gone\.png"):
        annotate(standin, listed, tmp_path / "out", prompts="a dog", shard_size=2, on_error="stop")
    assert len(shards_in(tmp_path / "out")) == 2
    report = annotate(standin, listed, tmp_path / "out", prompts="a dog", shard_size=2, resume=True)
    assert (report.rows, report.errors) == (6, 1)


def test_an_error_of_the_segmenters_own_is_not_hidden(pictures, tmp_path):
    def faulty(images, prompts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        annotate(faulty, pictures, tmp_path / "out", prompts="a dog")


def test_more_prompts_than_run_together_are_asked_in_parts(pictures, tmp_path):
    sizes = []

    def counting(images, prompts):
        sizes.append(sum(map(len, prompts)))
        return standin(images, prompts)

    prompts = [f"thing {k}" for k in range(7)]
    annotate(counting, pictures, tmp_path / "parts", prompts=prompts, batch_size=3)
    annotate(standin, pictures, tmp_path / "whole", prompts=prompts, batch_size=100)
    assert max(sizes) == 3 and rows_in(tmp_path / "parts") == rows_in(tmp_path / "whole")


def test_batches_hold_several_pictures_and_end_with_their_shard(pictures, tmp_path):
    sizes = []

    def counting(images, prompts):
        sizes.append(len(images))
        return standin(images, prompts)

    annotate(counting, pictures, tmp_path / "out", prompts=PROMPTS, batch_size=6, shard_size=4)
    assert sizes == [3, 1, 3, 1, 2]


def test_the_data_may_bring_prompts_and_others_may_take_their_place(pictures, tmp_path):
    listed = write_jsonl(tmp_path / "list.jsonl", [{"image": str(pictures / "00000.png"), "prompt": "its own"}])
    annotate(standin, listed, tmp_path / "own")
    annotate(standin, listed, tmp_path / "other", prompts="another")
    assert [row["prompt"] for row in rows_in(tmp_path / "own") + rows_in(tmp_path / "other")] == ["its own", "another"]


# -- going on ----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_with_the_same_rows(pictures, tmp_path):
    calls = []

    def failing(images, prompts):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return standin(images, prompts)

    failing.__qualname__, failing.__module__ = standin.__qualname__, standin.__module__
    options = {"prompts": PROMPTS, "shard_size": 3, "batch_size": 4}
    annotate(standin, pictures, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        annotate(failing, pictures, tmp_path / "out", **options)
    assert 0 < len(shards_in(tmp_path / "out")) < 4
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["summary"] is None
    (tmp_path / "out" / ".part-00001.parquet.x.part").write_bytes(b"left by a process that was killed")
    report = annotate(standin, pictures, tmp_path / "out", resume=True, **options)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole") and report.rows == 20
    assert not list((tmp_path / "out").glob(".part-*"))


def test_a_finished_run_is_gone_on_with_without_the_model(pictures, tmp_path):
    def never(images, prompts):
        raise AssertionError

    never.__qualname__, never.__module__ = standin.__qualname__, standin.__module__
    first = annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS)
    again = annotate(never, pictures, tmp_path / "out", prompts=PROMPTS, resume=True, format="coco")
    assert again.counts() == first.counts() and (tmp_path / "out" / "annotations.json").exists()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"prompts": ["a dog"]}, "prompts: there ['a dog', 'a cat'], now ['a dog']"),
        ({"score_threshold": 0.5}, "score threshold: there 0.0, now 0.5"),
        ({"shard_size": 5}, "pictures per shard: there 4, now 5"),
        ({"segmenter": lambda images, prompts: standin(images, prompts)}, "segmenter: there 'tests.annotation"),
        ({"more": True}, "data: there"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path, changes, named):
    write_pictures(tmp_path / "pictures", 5)
    options = {"segmenter": standin, "prompts": PROMPTS, "shard_size": 4}
    annotate(data=tmp_path / "pictures", output=tmp_path / "out", **options)
    before = files_in(tmp_path / "out")
    if changes.pop("more", False):
        write_pictures(tmp_path / "pictures", 6)
    with pytest.raises(InputError) as error:
        annotate(data=tmp_path / "pictures", output=tmp_path / "out", resume=True, **{**options, **changes})
    assert named in str(error.value) and files_in(tmp_path / "out") == before


def test_another_head_or_base_is_not_gone_on_with(pictures, tmp_path):
    adapter = tiny_trio()[0]
    options = {"data": pictures, "output": tmp_path / "out", "prompts": "a dog", "shard_size": 5}
    annotate(adapter, **options)
    for changed, named in (
        (tiny_trio(num_keypoints=2)[0], "settings of the head"),
        (tiny_trio(fusion="mirror")[0], "weights of the head"),
        (tiny_trio("qwen2_vl")[0], "frozen model"),
    ):
        with pytest.raises(InputError, match=named):
            annotate(changed, resume=True, **options)


def test_a_folder_with_annotations_or_a_run_in_it_is_refused(pictures, tmp_path):
    def nested(images, prompts):
        with pytest.raises(InputError, match="Another run writes"):
            annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS, resume=True)
        return standin(images, prompts)

    annotate(nested, pictures, tmp_path / "out", prompts=PROMPTS)
    with pytest.raises(InputError, match=r"holds annotations already \(1 shards\)"):
        annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS)


def test_a_damaged_shard_is_named_and_made_anew_when_it_is_gone(pictures, tmp_path):
    annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS, shard_size=4)
    whole = files_in(tmp_path / "out")
    damaged = tmp_path / "out" / "part-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"part-00001.parquet .* Delete it to have it made anew"):
        annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS, shard_size=4, resume=True)
    damaged.unlink()
    annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS, shard_size=4, resume=True)
    assert files_in(tmp_path / "out") == whole


def test_a_list_that_became_shorter_meanwhile_is_said(pictures, tmp_path):
    listed = write_jsonl(tmp_path / "list.jsonl", [{"image": str(pictures / "00000.png"), "prompt": "a dog"}] * 6)

    def shortening(images, prompts):
        write_jsonl(listed, [{"image": "a.png", "prompt": "a"}])
        return standin(images, prompts)

    with pytest.raises(LensError, match=r"list.jsonl has changed: expected 3 pictures from number 3, got 0"):
        annotate(shortening, listed, tmp_path / "out", shard_size=3, batch_size=1)


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_judging_anew_is_as_if_the_threshold_had_been_another(pictures, tmp_path):
    options = {"prompts": PROMPTS, "shard_size": 4, "format": "coco"}
    annotate(standin, pictures, tmp_path / "high", score_threshold=0.6, **options)
    annotate(standin, pictures, tmp_path / "low", score_threshold=0.3, **options)
    low = {path.name: path.read_bytes() for path in (tmp_path / "low").iterdir()}
    report = rethreshold(tmp_path / "high", 0.3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "high").iterdir()} == low
    assert report.found == sum(row["found"] for row in rows_in(tmp_path / "low"))
    annotate(standin, pictures, tmp_path / "high", score_threshold=0.3, resume=True, **options)


def test_judging_anew_that_was_stopped_half_way_is_done_again(pictures, tmp_path, monkeypatch):
    from lens_adapter.annotation import run

    annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS, shard_size=4)
    judge, done = run.judge_anew, []

    def failing(path, *others):
        if done:
            raise OSError("No space left on device")
        done.append(path)
        judge(path, *others)

    monkeypatch.setattr(run, "judge_anew", failing)
    with pytest.raises(OSError, match="No space"):
        rethreshold(tmp_path / "out", 0.5)
    with pytest.raises(InputError, match=r"score threshold: there 0\.5, now 0\.0"):
        annotate(standin, pictures, tmp_path / "out", prompts=PROMPTS, shard_size=4, resume=True)
    monkeypatch.undo()
    rethreshold(tmp_path / "out", 0.5)
    assert all(row["found"] == (row["score"] >= 0.5) for row in rows_in(tmp_path / "out"))


def test_only_finished_annotations_are_judged_anew(pictures, tmp_path):
    with pytest.raises(InputError, match="holds no annotations"):
        rethreshold(tmp_path / "nowhere", 0.5)
    listed = write_jsonl(tmp_path / "list.jsonl", [{"image": "gone.png", "prompt": "a dog"}])
    with pytest.raises(InputError, match=r"gone\.png"):
        annotate(standin, listed, tmp_path / "out", on_error="stop")
    with pytest.raises(InputError, match="no finished annotations"):
        rethreshold(tmp_path / "out", 0.5)
    annotate(standin, pictures, tmp_path / "whole", prompts=PROMPTS)
    with pytest.raises(InputError, match="score_threshold must be a number"):
        rethreshold(tmp_path / "whole", 1.5)


# -- what is refused at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "brings no prompts"),
        ({"prompts": []}, "Prompts must be"),
        ({"prompts": ["a", " "]}, "Prompts must be"),
        ({"prompts": "a", "format": "csv"}, "format must be one of parquet, coco"),
        ({"prompts": "a", "on_error": "skip"}, "on_error must be"),
        ({"prompts": "a", "batch_size": 0}, "batch_size must be an integer"),
        ({"prompts": "a", "shard_size": 2.5}, "shard_size must be an integer"),
        ({"prompts": "a", "preview": -1}, "preview must be"),
        ({"prompts": "a", "score_threshold": "high"}, "score_threshold must be a number"),
        ({"prompts": "a", "mask_threshold": 0.4}, "draws the masks itself"),
        ({"prompts": "a", "data": {"path": "nowhere", "format": "csv"}}, "no data format 'csv'"),
        ({"prompts": "a", "data": "nowhere"}, "Expected a folder of pictures, or a list"),
        ({"prompts": "a", "data": 7}, "Data must be a path"),
        ({"prompts": "a", "data": []}, "nothing to annotate"),
        ({"prompts": "a", "data": (row for row in ())}, "whose rows can be read again"),
    ],
)
def test_options_that_cannot_be_meant(pictures, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        annotate(standin, **{"data": pictures, "output": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_the_columns_are_those_of_the_contract():
    assert SCHEMA.names == [
        *("image", "width", "height", "prompt", "found", "score", "rle", "box", "area", "keypoints", "error"),
    ]


def test_the_adapter_is_left_as_it_was(pictures, tmp_path):
    adapter, model, _ = tiny_trio()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    annotate(adapter, pictures, tmp_path / "out", prompts="a dog")
    assert isinstance(adapter, LensAdapter) and adapter.is_attached
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
