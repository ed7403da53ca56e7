"""Every example runs as it stands in the repository, on the models that ship."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from lens_adapter.vlm.registry import LAYOUTS

EXAMPLES = Path(__file__).parents[1] / "examples"
ELSEWHERE = {"train_on_a_folder", "how_it_works"}  # tests/training/test_run.py, and below
NEEDS = {"quantized_base": "torchao"}
# What the example is about, as its output says it.
SAYS = {
    "segment": "score 0.70, first keypoint",
    "several_prompts": "the plain yellow cross         score 0.00  not there",
    "attach_to_a_pipeline": "small plain purple triangle: ",
    "capture_attention_only": "The answer: x1 y1",
    "grounded_chat": "'small plain purple triangle' (0, 27): ",
    "quantized_base": "IoU of int8 and float masks",
    "custom_architecture": "attached to 'my_vlm': heatmap (8, 8), mask (480, 480)",
}


@pytest.mark.parametrize("name", SAYS)
def test_example(name, tmp_path, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    if name == "custom_architecture":
        monkeypatch.setitem(LAYOUTS, "my_vlm", None)  # so that what is registered goes again
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert SAYS[name] in said
    for picture in tmp_path.glob("*.png"):
        assert Image.open(picture).size == (480, 480)


def test_how_it_works_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["how_it_works.py", str(tmp_path / "steps.png")])
    runpy.run_path(str(EXAMPLES / "how_it_works.py"), run_name="__main__")
    with (
        Image.open(tmp_path / "steps.png") as drawn,
        Image.open(EXAMPLES.parent / "docs" / "how-it-works.png") as shown,
    ):
        assert drawn.size == shown.size


def test_every_example_is_run_and_says_how_it_looks_for_real_models():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, *ELSEWHERE}
    for name in SAYS:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert "LLaVA-1.5" in text and "Qwen2.5-VL" in text and f"python examples/{name}.py" in text


def test_routing_is_measured_as_the_page_says(tmp_path, monkeypatch):
    output = tmp_path / "routing.json"
    few = ["--scenes", "1", "--validation-scenes", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["measure_routing.py", *few])
    runpy.run_path(str(EXAMPLES / "builtin" / "measure_routing.py"), run_name="__main__")
    made = json.loads(output.read_text())
    published = json.loads((EXAMPLES.parent / "results" / "routing.json").read_text())
    assert made.keys() == published.keys() and published["test_scenes"] == 100
    page = (EXAMPLES.parent / "docs" / "pipelines-and-chat.md").read_text()
    for asked in ("default", "its_own_words"):
        assert f"`{published['questions'][asked]}`" in " ".join(page.split())
        for way in ("with", "without"):
            figures = published[f"{asked}.{way}_image"]
            assert figures.keys() == made[f"{asked}.{way}_image"].keys()
            keys = ("requests", "questions", "mixed")
            shown = [f"{figures[f'taken_for_requests.{kind}']:.0%}" for kind in keys]
            shown += [f"{figures[key]:.2f}" for key in ("balanced_accuracy", "auroc")]
            assert f"| {' | '.join(shown)} |" in page
