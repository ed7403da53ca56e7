"""`annotate` with large JPEGs decoded smaller: rows at full size, from pictures that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco

from lens_adapter import LensAdapter, annotate
from lens_adapter.annotation import rethreshold
from lens_adapter.annotation.rows import read_rows, shard_facts, shards_in
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError
from lens_adapter.vlm.images import load_draft
from tests.annotation.standin import standin, write_jsonl
from tests.tiny.adapters import tiny_trio
from tests.tiny.sam import noise_image

PROMPTS = ["a dog", " ", "a cat"]
# (H, W) as shown, and what models see of it where both sides are to have 50 pixels.
SHOWN = {"large.jpg": (301, 407), "little.jpg": (60, 90), "other.png": (302, 406), "turned.jpg": (407, 301)}
SEEN = {"large.jpg": (76, 102), "little.jpg": (60, 90), "other.png": (302, 406), "turned.jpg": (102, 76)}


def rows_in(folder: Path) -> list[dict]:
    return list(read_rows(shards_in(folder)))


def mask_of(row: dict) -> np.ndarray:
    return coco.decode({**row["rle"], "counts": row["rle"]["counts"].encode()}).astype(bool)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drafts")
    for number, (name, (height, width)) in enumerate(SHOWN.items()):
        smooth = noise_image(6, 8, seed=number).resize((width, height), Image.Resampling.BICUBIC)
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 8
            smooth.transpose(Image.Transpose.ROTATE_270).save(folder / name, exif=exif)
        else:
            smooth.save(folder / name)
    whole = (folder / "large.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def adapter() -> LensAdapter:
    return tiny_trio(mask_threshold=0.5, dense_prompt=False)[0]  # whose masks have outlines


def test_rows_are_at_full_size_and_models_see_less(pictures, adapter, tmp_path, monkeypatch):
    seen, segment = {}, LensAdapter.segment

    def watched(self, images, prompts, **options):
        seen.update(
            {size: (image.height, image.width) for image, size in zip(images, options["image_sizes"], strict=True)}
        )
        return segment(self, images, prompts, **options)

    monkeypatch.setattr(LensAdapter, "segment", watched)
    names = [str(pictures / name) for name in ("cut.jpg", *SHOWN)]
    listed = write_jsonl(tmp_path / "list.jsonl", [{"image": name, "prompts": PROMPTS} for name in names])
    annotate(adapter, listed, tmp_path / "out", draft_side=50)
    rows = [{**row, "image": Path(row["image"]).name} for row in rows_in(tmp_path / "out")]
    assert [(row["image"], row["prompt"]) for row in rows] == [
        (name, prompt) for name in ("cut.jpg", *SHOWN) for prompt in PROMPTS
    ]
    for row in rows:
        if row["image"] == "cut.jpg":
            assert "damaged or cut off" in row["error"] and row["width"] is None
            continue
        assert (row["height"], row["width"]) == SHOWN[row["image"]]
        if row["prompt"] == " ":
            assert "must be a text" in row["error"]
            continue
        height, width = SHOWN[row["image"]]
        mask = mask_of(row)
        assert row["error"] is None and mask.shape == (height, width) and row["area"] == mask.sum()
        assert all(0 <= x <= width and 0 <= y <= height for x, y in row["keypoints"])
    points = [point for row in rows if row["image"] == "large.jpg" for point in row["keypoints"] or []]
    assert max(x for x, _ in points) > SEEN["large.jpg"][1]
    assert seen == {SHOWN[name]: size for name, size in SEEN.items()}


def test_masks_are_drawn_from_the_logits_at_full_size(pictures, adapter, tmp_path):
    annotate(adapter, pictures, tmp_path / "out", prompts="a dog", draft_side=50, batch_size=1)
    for row in rows_in(tmp_path / "out"):
        if row["error"] is None:
            picture, size = load_draft(pictures / row["image"], 50)
            out = adapter.segment(picture, "a dog", image_sizes=size, score_threshold=0, return_logits=True)
            drawn = mask_of(row)
            assert (drawn != (out.logits[0] > 0).numpy()).mean() < 1e-3 and out.logits.shape[1:] == drawn.shape
            assert row["score"] == pytest.approx(out.scores.item(), abs=1e-4)


def test_smooth_pictures_come_out_as_without(pictures, adapter, tmp_path):
    annotate(adapter, pictures, tmp_path / "whole", prompts="a dog")
    annotate(adapter, pictures, tmp_path / "draft", prompts="a dog", draft_side=100)
    for whole, draft in zip(rows_in(tmp_path / "whole"), rows_in(tmp_path / "draft"), strict=True):
        if whole["error"] is None:
            assert draft["score"] == pytest.approx(whole["score"], abs=0.02)
            assert (mask_of(whole) != mask_of(draft)).mean() < 0.05
        else:
            assert whole == draft


def test_what_is_not_drafted_is_the_same_row(pictures, adapter, tmp_path):
    options = {"prompts": "a dog", "batch_size": 1}
    annotate(adapter, pictures, tmp_path / "whole", **options)
    annotate(adapter, pictures, tmp_path / "draft", draft_side=61, **options)
    for whole, draft in zip(rows_in(tmp_path / "whole"), rows_in(tmp_path / "draft"), strict=True):
        assert (whole == draft) == (whole["image"] not in ("large.jpg", "turned.jpg"))


def test_records_of_labelled_data_are_drafted_too(pictures, adapter, tmp_path):
    records = [Record(str(pictures / "large.jpg"), ["a dog"], [None])]
    annotate(adapter, records, tmp_path / "records", draft_side=50)
    annotate(adapter, records, tmp_path / "whole")
    (draft,), (whole,) = rows_in(tmp_path / "records"), rows_in(tmp_path / "whole")
    assert (draft["height"], draft["width"]) == (whole["height"], whole["width"]) == SHOWN["large.jpg"]
    assert draft["score"] != whole["score"]


def test_a_run_says_so_and_is_gone_on_with_by_the_same_alone(pictures, adapter, tmp_path):
    asked = {"data": pictures, "output": tmp_path / "out", "prompts": "a dog", "shard_size": 2, "preview": 1}
    annotate(adapter, **asked, draft_side=50)
    shards = shards_in(tmp_path / "out")
    assert shard_facts(shards[0])["draft_side"] == 50
    before = [path.read_bytes() for path in shards]
    shards[1].unlink()
    for side in (None, 100):
        with pytest.raises(InputError, match=f"side of drafts: there 50, now {side}"):
            annotate(adapter, **asked, resume=True, draft_side=side)
    annotate(adapter, **asked, resume=True, draft_side=50)
    assert [path.read_bytes() for path in shards] == before
    rethreshold(tmp_path / "out", 0.5)
    assert shard_facts(shards[0])["draft_side"] == 50


def test_a_run_from_before_there_were_drafts_is_gone_on_with(pictures, adapter, tmp_path, monkeypatch):
    from lens_adapter.annotation import run

    plan_of = run.plan_of
    with monkeypatch.context() as patch:
        patch.setattr(run, "plan_of", lambda *a, **k: {n: v for n, v in plan_of(*a, **k).items() if n != "draft_side"})
        annotate(adapter, pictures, tmp_path / "out", prompts="a dog")
    assert annotate(adapter, pictures, tmp_path / "out", prompts="a dog", resume=True).rows == 5


@pytest.mark.parametrize(
    "segmenter, side, said",
    [
        (standin, 50, "draft_side is for adapters"),
        ("adapter", 0, "draft_side must be an integer of at least 1; got 0"),
        ("adapter", 1.5, "draft_side must be an integer"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(pictures, adapter, tmp_path, segmenter, side, said):
    with pytest.raises(InputError, match=said):
        annotate(
            adapter if segmenter == "adapter" else segmenter,
            pictures,
            tmp_path / "out",
            prompts="a dog",
            draft_side=side,
        )
    assert not (tmp_path / "out").exists()
