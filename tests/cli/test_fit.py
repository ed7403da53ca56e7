"""`lens-adapter fit`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.builtin.world.labelled import labelled_scenes
from lens_adapter.cli import main
from tests.cli.calls import example_lines, helped


def write_folder(folder: Path, examples: list) -> Path:
    """Examples as a folder with images/, masks/ and prompts.jsonl."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines = []
    for k, one in enumerate(examples):
        one.image.save(folder / "images" / f"{one.image_id}.png")
        line = {"image": f"{one.image_id}.png", "prompt": one.prompt, "mask": None}
        if one.mask.any():
            line["mask"] = f"{k}.png"
            Image.fromarray(one.mask.astype(np.uint8) * 255).save(folder / "masks" / line["mask"])
        lines.append(json.dumps(line))
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_head_without_labels(tmp_path, capsys):
    command = ["fit", "--model", "builtin", "--examples", "20", "-o", str(tmp_path / "head"), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["examples"] == 20 and printed["pointing"] > printed["chance"] and printed["heads"]
    adapter = LensAdapter.from_pretrained(tmp_path / "head")
    assert adapter.config.readout["heads"] == printed["heads"]
    exam = make_exam(0, "validation")
    with adapter.attach(*builtin.load_base()):
        assert adapter.segment(exam.picture, exam.prompts).masks.shape[0] == len(exam.prompts)


def test_a_head_of_ones_own_pictures(tmp_path, capsys):
    data = write_folder(tmp_path / "data", list(labelled_scenes(20)))
    command = ["fit", "--model", "builtin", "--data", str(data), "-o", str(tmp_path / "head")]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "20 prompts about 20 pictures" in captured.out and "photographs" not in captured.err


def test_what_may_be_chance_is_not_written(tmp_path, capsys):
    present = [one for one in labelled_scenes(12) if one.mask.any()]
    draw = np.random.default_rng(0)
    for one in present:  # a speck somewhere, whatever the prompt says
        y, x = draw.integers(0, 370, 2)
        one.mask[:] = False
        one.mask[y : y + 8, x : x + 8] = True
    data = write_folder(tmp_path / "data", present)
    assert main(["fit", "--model", "builtin", "--data", str(data), "-o", str(tmp_path / "head")]) == 1
    assert "may be chance" in capsys.readouterr().err and not (tmp_path / "head").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--sam", "vit_x"], "vit_x"),
        (["--template", "no place for it"], "{prompt}"),
        (["--data", "nowhere-at-all"], "nowhere-at-all"),
        (["--examples", "0"], "--examples"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_loaded(more, complaint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lens_adapter.cli.fit.base_by_name", lambda *_: pytest.fail("the base was loaded"))
    try:
        code = main(["fit", "--model", "builtin", "-o", str(tmp_path / "head"), *more])
    except SystemExit as stopped:
        code = stopped.code
    assert code in (1, 2) and complaint in capsys.readouterr().err


def test_the_help_shows_commands_that_are_understood(capsys):
    assert len(example_lines(helped("fit", capsys))) == 3
