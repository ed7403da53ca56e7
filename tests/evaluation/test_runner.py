"""The runner on tiny models: one process or two, its record, and `segment` under a score threshold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from lens_adapter import LensAdapter
from lens_adapter.cli import main
from lens_adapter.data.examples import Example, Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.errors import InputError, NotAttachedError
from lens_adapter.evaluation import (
    METRICS,
    PROTOCOL,
    Evaluation,
    Finding,
    evaluate,
    examine,
    finding_of,
    measure,
    overlap,
)
from lens_adapter.output import LensOutput
from lens_adapter.results import metric_name
from tests.tiny.adapters import tiny_trio
from tests.tiny.pairs import tiny_pair
from tests.tiny.processes import run_two
from tests.tiny.sam import noise_image

ABSENT = (1, 4)


def toy_examples(count: int = 7) -> list[Example]:
    """Pairs of prompts about one picture, some of which name nothing, one with pixels to ignore."""
    examples = []
    for k in range(count):
        image = noise_image(48 + 4 * (k // 2 % 3), 60, seed=k // 2)
        mask = np.zeros((image.height, image.width), bool)
        if k not in ABSENT:
            mask[5:40, 3 * k : 3 * k + 35] = True
        ignore = None
        if k == 2:
            ignore = np.zeros_like(mask)
            ignore[:20] = True
        name = {"subset": "long" if k % 3 else "short", "id": f"prompt {k}", "image_id": f"picture {k // 2}"}
        examples.append(Example(image, f"the <b>thing</b> & number {k}", mask, ignore, **name))
    return examples


@pytest.fixture(scope="module")
def adapter() -> LensAdapter:
    return tiny_trio()[0]


@pytest.fixture(scope="module")
def middle(adapter) -> float:
    """A score threshold that some of the examples pass."""
    scores = sorted(adapter.segment(e.image, e.prompt).scores.item() for e in toy_examples())
    return (scores[3] + scores[4]) / 2


# -- the rule in `segment` --------------------------------------------------------------------------------------------


def test_a_low_score_empties_the_mask_takes_the_keypoints_and_nothing_else(adapter, middle):
    images, prompts = [e.image for e in toy_examples()], [e.prompt for e in toy_examples()]
    plain = adapter.segment(images, prompts, return_logits=True)
    ruled = adapter.segment(images, prompts, return_logits=True, score_threshold=middle)
    refused = [out.scores.item() < middle for out in plain]
    assert sum(refused) == 4 and all(out.masks.any() for out in plain)
    for one, two, low in zip(plain, ruled, refused, strict=True):
        assert one.found.tolist() == [True] and two.found.tolist() == [not low]
        assert torch.equal(two.masks, one.masks & (not low))
        assert len(one.keypoints[0]) > 0
        for before, after in ((one.keypoints, two.keypoints), (one.keypoint_scores, two.keypoint_scores)):
            assert torch.equal(after[0], before[0][:0] if low else before[0])
        for kept in ("logits", "scores", "heatmaps"):
            assert torch.equal(getattr(one, kept), getattr(two, kept))
    assert adapter.config.score_threshold == 0.0
    adapter.config.score_threshold = middle
    try:
        by_config = adapter.segment(images, prompts)
        assert all(torch.equal(one.masks, two.masks) for one, two in zip(by_config, ruled, strict=True))
        never = adapter.segment(images, prompts, score_threshold=0)
        assert all(torch.equal(one.masks, two.masks) for one, two in zip(never, plain, strict=True))
    finally:
        adapter.config.score_threshold = 0.0


def test_prompts_of_one_image_are_refused_one_by_one(adapter):
    image = noise_image(48, 60)
    prompts = [f"thing {k}" for k in range(4)]
    scores = adapter.segment(image, prompts).scores
    out = adapter.segment(image, prompts, score_threshold=scores.double().mean().item())
    assert (
        out.masks.flatten(1).any(1).tolist()
        == out.found.tolist()
        == (scores.double() >= scores.double().mean()).tolist()
    )


@pytest.mark.parametrize("threshold", [-0.1, 1, "high", float("nan")])
def test_impossible_thresholds(adapter, threshold):
    with pytest.raises(InputError, match="score_threshold must be a number in"):
        adapter.segment(noise_image(48, 60), "it", score_threshold=threshold)


# -- the runner -------------------------------------------------------------------------------------------------------


def by_hand(adapter: LensAdapter, threshold: float) -> dict[str, float]:
    """Of masks as `segment` gives them, one at a time; without what keypoints and scores say."""
    findings = []
    for example in toy_examples():
        out = adapter.segment(example.image, example.prompt, score_threshold=threshold)
        findings.append(Finding(overlap(out.masks[0].numpy(), example.mask, example.ignore), out.scores.item()))
    return measure(findings)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_measures_what_segment_gives(adapter, middle, batch_size):
    for threshold in (0.0, middle):
        result = evaluate(adapter, toy_examples(), batch_size=batch_size, score_threshold=threshold)
        assert (result.prompts, result.images, result.score_threshold) == (7, 4, threshold)
        assert list(result.figures) == ["all", "short", "long"]
        assert set(result.figures["all"]) == set(METRICS)
        expected = by_hand(adapter, threshold)
        for name in set(expected) - {"score_rank_correlation", "score_error"}:
            assert result.figures["all"][name].value == pytest.approx(expected[name], abs=2e-3), name
        shorts = [finding for finding in result.findings if finding.subset == "short"]
        assert {k: v.value for k, v in result.figures["short"].items()} == measure(shorts, threshold)
        assert [finding.index for finding in result.findings] == list(range(7))


def test_prompts_about_one_picture_go_together(adapter, monkeypatch):
    seen = []
    segment = adapter.segment
    monkeypatch.setattr(
        adapter, "segment", lambda images, prompts, **more: seen.append(prompts) or segment(images, prompts, **more)
    )
    examples = [replace(example, image_id="") for example in toy_examples(5)]
    examples[1] = replace(examples[1], image=examples[0].image)  # one object
    found = list(examine(adapter, enumerate(examples), batch_size=4))
    assert [[len(texts) for texts in batch] for batch in seen] == [[2, 1, 1], [1]]
    assert [finding.picture for finding in found] == ["example 0", "example 0", "example 2", "example 3", "example 4"]


def test_keypoints_are_looked_up_in_the_truth():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 5:] = True
    ignore = np.zeros((6, 8), bool)
    ignore[0] = True
    points = torch.tensor([[3.0, 0.5], [5.0, 2.0], [4.99, 3.9], [8.0, 3.99], [7.5, 4.0]])
    shown, heat = torch.tensor(mask)[None], torch.ones(1, 2, 2)
    out = LensOutput(["it"], (6, 8), shown, torch.ones(1), [points], [torch.ones(5)], heat)
    example = Example(noise_image(6, 8), "it", mask)
    assert finding_of(out, 0, example).hits == (False, True, False, True, False)
    # the first lies where nothing counts
    assert finding_of(out, 0, replace(example, ignore=ignore)).hits == (True, False, True, False)
    none = replace(out, keypoints=[points[:0]], keypoint_scores=[torch.ones(0)])
    assert finding_of(none, 0, example).hits == ()


def write_folder(folder: Path, examples: list[Example]) -> None:
    """The examples as a plain folder."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = []
    for k, example in enumerate(examples):
        example.image.save(folder / "images" / f"{k}.png")
        Image.fromarray(example.mask).save(folder / "masks" / f"{k}.png")
        lines.append({"image": f"{k}.png", "mask": f"{k}.png", "prompt": example.prompt, "subset": example.subset})
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def test_a_broken_record_is_left_out_once(adapter, tmp_path):
    write_folder(tmp_path, toy_examples(4))
    examples = Examples(read_folder(tmp_path), "skip")
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    assert [finding.index for finding in evaluate(adapter, examples).findings] == [0, 2, 3]


def test_what_cannot_be_measured(adapter):
    with pytest.raises(InputError, match="nothing to measure: none of the 0"):
        evaluate(adapter, [])
    wrong = replace(toy_examples(1)[0], mask=np.zeros((3, 4), bool))
    with pytest.raises(InputError, match="bool masks of one shape"):
        evaluate(adapter, [wrong])
    with pytest.raises(NotAttachedError):
        evaluate(LensAdapter(adapter.config), toy_examples())


# -- processes --------------------------------------------------------------------------------------------------------


def _one_of_two(rank: int, folder: Path) -> None:
    adapter, seen = tiny_trio()[0], []
    segment = LensAdapter.segment

    def watched(self: LensAdapter, images: list, prompts: list[list[str]], **more: Any) -> list[LensOutput]:
        seen.extend(text for texts in prompts for text in texts)
        return segment(self, images, prompts, **more)

    LensAdapter.segment = watched
    for count in (7, 1):  # one: a process has nothing to do
        result = evaluate(adapter, toy_examples(count), batch_size=2)
        result.save(folder / f"{count}-{rank}.json")
        torch.save({"seen": seen.copy(), "findings": [vars(f) for f in result.findings]}, folder / f"{count}-{rank}.pt")
        seen.clear()
    PartialState._reset_state()  # as a new command has it
    paths = {name: str(folder / name) for name in ("base", "head", "data")}
    paths = ["--model", paths["base"], "--adapter", paths["head"], "--data", paths["data"]]
    assert main(["evaluate", *paths, "--json", str(folder / f"command-{rank}.json")]) == 0
    torch.save({"seen": seen}, folder / f"command-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_measure_every_prompt_once(adapter, tmp_path):
    adapter.save_pretrained(tmp_path / "head")
    for part in tiny_pair("llava"):
        part.save_pretrained(tmp_path / "base")
    write_folder(tmp_path / "data", toy_examples(3))
    run_two(_one_of_two, tmp_path)
    for count in (7, 1):
        alone = evaluate(adapter, toy_examples(count), batch_size=2)
        results = [torch.load(tmp_path / f"{count}-{rank}.pt", weights_only=False) for rank in range(2)]
        assert [len(result["seen"]) for result in results] == [(count + 1) // 2, count // 2]
        assert results[0]["seen"] + results[1]["seen"] == [example.prompt for example in toy_examples(count)]
        for rank, result in enumerate(results):
            found = [Finding(**fields) for fields in result["findings"]]
            assert [one.index for one in found] == list(range(count))
            assert [one.picture for one in found] == [one.picture for one in alone.findings]
            for one, same in zip(found, alone.findings, strict=True):
                assert one.score == pytest.approx(same.score, abs=1e-4)
                assert one.overlap.truth == same.overlap.truth and abs(one.overlap.found - same.overlap.found) <= 3
            loaded = Evaluation.load(tmp_path / f"{count}-{rank}.json")
            assert (loaded.prompts, loaded.images) == (alone.prompts, alone.images)
            assert loaded.figures["all"]["giou"].value == pytest.approx(alone.figures["all"]["giou"].value, abs=2e-3)
    seen = [torch.load(tmp_path / f"command-{rank}.pt")["seen"] for rank in range(2)]
    assert [len(prompts) for prompts in seen] == [2, 1] and len(set(seen[0] + seen[1])) == 3
    assert [file.name for file in tmp_path.glob("command-*.json")] == ["command-0.json"]
    assert Evaluation.load(tmp_path / "command-0.json").prompts == 3


# -- the record -------------------------------------------------------------------------------------------------------


def test_the_record_is_read_back(adapter, middle, tmp_path):
    dataset = {"name": "toys", "split": "val", "revision": None}
    result = evaluate(adapter, toy_examples(), dataset=dataset, mask_threshold=0.5, score_threshold=middle)
    result.save(tmp_path / "figures.json")
    content = json.loads((tmp_path / "figures.json").read_text())
    assert list(content) == [
        "protocol", "base_model", "base_model_revision", "adapter", "dataset", "prompts", "images", "mask_threshold",
        "score_threshold", "figures", "versions", "head_sha256",
    ]  # fmt: skip
    assert content["protocol"] == PROTOCOL and content["dataset"] == dataset and content["mask_threshold"] == 0.5
    assert content["versions"]["torch"] in torch.__version__ and "lens_adapter" in content["versions"]
    assert content["head_sha256"] == adapter.digest()
    assert list(content["figures"]) == ["all", "short", "long"]
    for measured in content["figures"].values():
        for figure in measured.values():
            assert set(figure) == {"value", "interval"} and len(figure["interval"]) == 2
    assert "no_target_accuracy" not in evaluate(adapter, toy_examples(1)).figures["all"]
    assert Evaluation.load(tmp_path / "figures.json") == replace(result, findings=())


def test_the_table_is_markdown(adapter):
    heading, _, *rows = evaluate(adapter, toy_examples(), dataset={"name": "toys"}).to_markdown().splitlines()
    assert "toys, 7 prompts about 4 images" in heading
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["", "all", "short", "long"] and {len(row) for row in cells} == {4}
    assert set(cells[1][0]) == {"-"} and [row[0] for row in cells[2:]] == list(map(metric_name, METRICS))
    assert all(re.fullmatch(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", row[1]) for row in cells[2:])
    assert len({len(row) for row in rows}) == 1  # for a terminal
