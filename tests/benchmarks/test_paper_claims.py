"""The benchmark of the paper's claims, in miniature: every method runs, and what is said of the base is true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper_claims import __main__ as command
from benchmarks.paper_claims import methods, report, scenes, training
from lens_adapter import builtin
from lens_adapter.builtin import models, names
from lens_adapter.builtin.exam import make_exam
from lens_adapter.evaluation import overlap
from lens_adapter.vlm.inputs import build_inputs
from tests.tiny.shipped import ship_tiny, use_shipped

OPTIONS = ["--steps", "2", "--scenes", "3", "--test-scenes", "2", "--tuning-steps", "1", "--validation-scenes", "1"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The shipped models in miniature; short answers, small batches, two rates to try and few steps to time."""
    folder = tmp_path_factory.mktemp("builtin")
    ship_tiny(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_shipped(patch, folder)
        patch.setattr(models, "LONGEST_ANSWER", 3)
        patch.setattr(scenes, "BATCH_SCENES", 2)
        patch.setattr(training, "TIMED_STEPS", 3)
        patch.setattr(training, "RATES", {name: rates[:2] for name, rates in training.RATES.items()})
        yield


@pytest.fixture(scope="module")
def folder(shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the whole command wrote."""
    folder = tmp_path_factory.mktemp("claims")
    command.main([*OPTIONS, "--work", str(folder / "work"), "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def written(folder: Path) -> dict:
    return json.loads((folder / "results/paper_claims.json").read_text())


def test_every_method_has_its_figures(folder, written):
    assert list(written["methods"]) == list(methods.METHODS) == list(report.LABELS)
    page = (folder / "docs/paper-claims.md").read_text()
    for name, found in written["methods"].items():
        rows = [line for line in page.splitlines() if line.startswith(f"| {report.LABELS[name]} |")]
        assert len(rows) == 3 and f"**{found['giou']['all']['mean']:.3f}**" in rows[0]
        assert all(0 <= found["giou"][kind]["mean"] <= 1 for kind in report.KINDS)
        assert found["cpu_seconds"] > 0 and set(found["rates_tried"]) == {str(rate) for rate in training.RATES[name]}
        assert found["parameters"]["all"] > found["parameters"]["mask_decoder"] > 0
    assert (folder / "docs/paper-claims.png").stat().st_size > 10_000


def test_only_lisa_changes_the_base(written):
    for name, found in written["methods"].items():
        frozen = name in report.FROZEN
        assert found["same_weights"] == frozen and (found["changed_tensors"] == 0) == frozen
        assert not frozen or (found["answers_changed"] == 0 and found["answers"] == written["base"]["answers"])
    tensors = written["base"]["tensors"]
    lora, full = (written["methods"][name]["changed_tensors"] for name in ("lisa_lora", "lisa_full"))
    assert lora == 2 * 4 + 2  # queries and values of four layers, word vectors and output layer
    assert lora < full < tensors  # the vision tower and the projector are frozen


def test_what_is_done_is_not_done_again(folder, monkeypatch, capsys):
    monkeypatch.setattr(training, "learn", lambda *_: pytest.fail("trained again"))
    again = [*OPTIONS, "--methods", "flmm", "--work", str(folder / "work")]
    command.main([*again, "--output", str(folder / "again")])
    assert "F-LMM style" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        command.main([*again, "--steps", "3"])


def test_a_killed_training_goes_on_where_it_was(shipped, monkeypatch, tmp_path):
    sam = methods.Lens(methods.Base.load(), "lite").decoder()
    base = methods.Base.load()
    encoded = scenes.encode_scenes(base.model, base.processor, sam, 5, "train", scenes.SIDE, tmp_path)
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)

    def train(checkpoint: Path) -> dict[str, torch.Tensor]:
        method = training.start("lisa_lora")
        training.learn(method, "lisa_lora", 1e-3, 3, encoded, checkpoint)
        return {key: value.detach().clone() for key, value in method.learned().items()}

    def batch_or_die(step: int, *args, **kwargs):
        if step == 2:
            raise KeyboardInterrupt
        return scenes.training_batch(step, *args, **kwargs)

    straight = train(tmp_path / "straight.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "training_batch", batch_or_die)
        train(tmp_path / "killed.pt")
    assert torch.load(tmp_path / "killed.pt")["step"] == 2
    for key, value in train(tmp_path / "killed.pt").items():
        assert torch.equal(value, straight[key]), key


def test_shared_features_give_the_masks_of_segment(monkeypatch):
    """The road that all methods share, from features that are kept, is that of `segment`; with the real models."""
    use_shipped(monkeypatch, names.FOLDER)
    exam = make_exam(1, "test")
    lens = methods.Lens(methods.Base.load(), "lite").eval()
    lens.adapter.load_state_dict(builtin.load_head("lite").state_dict())
    base = lens.base
    kept = scenes.encode_pictures(base.model, base.processor, lens.decoder(), [exam.picture])
    texts = [methods.TEMPLATE.format(prompt=prompt) for prompt in exam.prompts]
    made, _ = base.sequence(kept.tokens.float().expand(len(texts), -1, -1), texts)
    inputs = build_inputs(base.processor, [exam.picture] * len(texts), exam.prompts, methods.TEMPLATE)
    words = base.model.get_input_embeddings()(inputs["input_ids"])
    is_word = (inputs["input_ids"] != base.model.config.image_token_index)[..., None]
    assert torch.equal(made["attention_mask"], inputs["attention_mask"])
    assert torch.equal(made["inputs_embeds"] * is_word, words * is_word)

    (_, _, first), *_ = training.measure_masks(lens, [exam], kept)
    case = next(case for case in exam.cases if case.has_target)
    mask = lens.adapter.segment(exam.picture, case.expression.text).masks[0].numpy()
    assert first == pytest.approx(overlap(mask, case.truth).iou, abs=0.02) and first > 0.5


def test_intervals_are_of_scenes_and_differences_paired():
    rng = np.random.default_rng(0)
    found = [(scene, "attribute", float(rng.random())) for scene in range(200)]
    own = report.interval(found, "attribute", 200)
    values = [iou for _, _, iou in found]
    assert own["mean"] == pytest.approx(np.mean(values))
    assert own["high"] - own["low"] == pytest.approx(2 * 1.96 * np.std(values) / 200**0.5, rel=0.15)
    # Ten times the same says no more about a scene than once.
    tenfold = report.interval(found * 10, "attribute", 200)
    assert tenfold["high"] - tenfold["low"] == pytest.approx(own["high"] - own["low"])
    better = [(scene, kind, iou + 0.1) for scene, kind, iou in found]
    gap = report.interval(better, "all", 200, minus=found)
    assert all(value == pytest.approx(0.1) for value in gap.values())
