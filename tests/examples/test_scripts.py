"""Every example runs as it stands in the repository, on the models that ship."""

from __future__ import annotations

import os
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from lens_adapter import LensAdapter
from lens_adapter.vlm.architectures import ARCHITECTURES
from tests.tiny.processes import run_two

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"quantized_base": "torchao"}
NUMBER = r"\d\.\d\d"
# What each says in its output, whatever the scenes and prompts of the demo are.
SAYS = {
    "segment": rf": \d+ pixels, score {NUMBER}, first keypoint \[",
    "fit_a_readout": rf"(?s)Fitted on 30 prompts.*hottest point in the mask.*pixels, score {NUMBER}",
    "several_prompts": rf"(?s)score {NUMBER}  \d+ outline\(s\), RLE of \d+ bytes.*score {NUMBER}  not there",
    "video": rf"in \d+ of 12 frames, J {NUMBER}, F {NUMBER}",
    "attach_to_a_pipeline": rf"(?s)The leftmost object: (\w+ ?)+, \d+ pixels\n(\[.*: {NUMBER}, \(480, 480\)'\]\n){{3}}",
    "capture_attention_only": r"(?s)The answer: x\d y\d.*of the attention is on the image",
    "grounded_chat": rf"(?s)'[\w ]+' \(0, \d+\): \d+ pixels, score {NUMBER}.*at \(3, \d+\).*\(probability of a mask",
    "quantized_base": rf"IoU of int8 and float masks {NUMBER}",
    "custom_architecture": r"attached to 'my_vlm': heatmap \(\d+, \d+\), mask \(480, 480\)",
    "evaluate_a_head": r"(?s)\| gIoU .*gIoU \d\.\d+, 95 % between .*worst: ",
    "train_on_a_folder": r"Trained for \d steps on \d\d prompts, written to my-head",
    "train_on_refcoco": r"gIoU on \d+ sentences of the validation split: 0\.\d+",
}
ELSEWHERE = {
    "how_it_works",
    "where_it_looks",
    "several_devices",
    "publish",
}  # below; the last in tests/cli/test_push.py
WRITES = {
    "segment": ["overlay.png"],
    "fit_a_readout": ["my-readout/model.safetensors", "readout.png", "look.png"],
    "video": ["video.gif"],
    "grounded_chat": ["grounded.png"],
    "evaluate_a_head": ["gallery.html", "validation.json"],
    "train_on_a_folder": ["labelled-scenes/prompts.jsonl", "my-head/model.safetensors", "my-head/first-sample.png"],
    "train_on_refcoco": ["refer_seg/refcoco/refs(unc).p", "my-head/model.safetensors"],
}


@pytest.mark.parametrize("name", SAYS)
def test_example(name, tmp_path, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    if name == "custom_architecture":
        monkeypatch.setitem(ARCHITECTURES, "my_vlm", None)  # so that what is registered goes again
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(SAYS[name], said), said
    for file in WRITES.get(name, []):
        assert (tmp_path / file).is_file()
    for picture in tmp_path.glob("*.png"):
        assert Image.open(picture).size == (480, 480)


def _one_of_two(rank: int, folder: Path) -> None:
    os.chdir(folder)
    with open(f"{rank}.txt", "w") as said, redirect_stdout(said):
        runpy.run_path(str(EXAMPLES / "several_devices.py"), run_name="__main__")


def test_several_processes(tmp_path):
    """As torchrun starts them, over gloo where there is no GPU."""
    run_two(_one_of_two, tmp_path)
    said = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    (said,) = (line for line in said.splitlines() if "processes" in line)  # by one of them
    assert re.fullmatch(r"2 processes, \d+ prompts, gIoU 0\.\d+", said)
    (training,) = LensAdapter.from_pretrained(tmp_path / "my-head").config.training
    assert training["steps"] == 2 and training["batch_size"] == 4  # two of two each


def test_where_it_looks_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["where_it_looks.py", str(tmp_path / "looks.png")])
    runpy.run_path(str(EXAMPLES / "where_it_looks.py"), run_name="__main__")
    with (
        Image.open(tmp_path / "looks.png") as drawn,
        Image.open(EXAMPLES.parent / "docs" / "where-it-looks.png") as shown,
    ):
        assert drawn.size == shown.size


def test_how_it_works_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["how_it_works.py", str(tmp_path / "steps.png")])
    runpy.run_path(str(EXAMPLES / "how_it_works.py"), run_name="__main__")
    with (
        Image.open(tmp_path / "steps.png") as drawn,
        Image.open(EXAMPLES.parent / "docs" / "how-it-works.png") as shown,
    ):
        assert drawn.size == shown.size


def test_every_example_is_run_listed_and_says_how_it_looks_for_real_models():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*SAYS, *ELSEWHERE}
    listed = re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(names)
    for name in names:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert f"python examples/{name}.py" in text and len(text.splitlines()) <= 66
        assert name == "how_it_works" or ("LLaVA-1.5" in text and "Qwen2.5-VL" in text)
