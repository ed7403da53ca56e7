"""`lens-adapter segment`, from a folder to a picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter import LensAdapter
from lens_adapter.builtin.demo import ONLY_ITS_WORLD
from lens_adapter.cli import main
from tests.cli.calls import segment
from tests.tiny.pairs import tiny_pair
from tests.tiny.shipped import ship_tiny, use_shipped


def test_segment_from_folders_to_a_picture(folders, tmp_path, capsys):
    output = tmp_path / "new" / "out.png"
    assert segment(folders, "-o", str(output)) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a dog\tscore ") and captured.out.count("\n") == 1
    assert captured.err.endswith(f"Wrote {output}\n")
    with Image.open(output) as picture:
        assert picture.size == (60, 45)


def test_segment_says_what_is_absent(folders, tmp_path, capsys, monkeypatch):
    segments = LensAdapter.segment
    monkeypatch.setattr(LensAdapter, "segment", lambda *asked, **how: segments(*asked, **how, score_threshold=0.9999))
    file = tmp_path / "found.json"
    assert segment(folders, "-o", str(tmp_path / "out.png"), "--json", str(file)) == 0
    assert re.fullmatch(r"a dog\tscore 0\.\d\d\tabsent\n", capsys.readouterr().out)
    (one,) = json.loads(file.read_text())["prompts"]
    assert (one["found"], one["area"], one["keypoints"]) == (False, 0, [])


def test_segment_counts_instances(folders, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert segment(folders, "-o", str(tmp_path / "out.png"), "--instances", "--json", str(file)) == 0
    (one,) = json.loads(file.read_text())["prompts"]
    assert re.search(rf"\t{len(one['instances'])} instances?\n$", capsys.readouterr().out)
    assert sum(instance["area"] for instance in one["instances"]) == one["area"]
    union = sum(coco.decode(instance["segmentation"]) for instance in one["instances"])
    assert (union == coco.decode(one["segmentation"])).all()


@pytest.mark.parametrize("to_a_file", [False, True])
def test_segment_for_machines(folders, tmp_path, capsys, to_a_file):
    file = tmp_path / "new" / "found.json"
    wanted = ["--json", str(file)] if to_a_file else ["--json"]
    assert segment(folders, "-o", str(tmp_path / "out.png"), *wanted) == 0
    captured = capsys.readouterr()
    found = json.loads(file.read_text() if to_a_file else captured.out)
    assert not to_a_file or (captured.out.startswith("a dog\tscore ") and f"Wrote {file}" in captured.err)
    assert (found["image_size"], found["adapter"]) == ([45, 60], str(folders / "head"))
    assert found["picture"] == str(tmp_path / "out.png") and found["mask_threshold"] == 0.5
    (one,) = found["prompts"]
    with LensAdapter.from_pretrained(folders / "head").attach(*tiny_pair("llava")) as adapter:
        out = adapter.segment(folders / "photo.png", "a dog")
    assert (coco.decode(one["segmentation"]) == out.masks[0].numpy()).all()
    assert (one["prompt"], one["found"], one["area"]) == ("a dog", True, int(out.masks[0].sum()))
    assert one["score"] == pytest.approx(float(out.scores[0]))
    torch.testing.assert_close(torch.tensor(one["keypoints"]), out.keypoints[0])


def test_segment_by_the_models_that_ship(folders, tmp_path, monkeypatch, capsys):
    ship_tiny(tmp_path / "builtin")
    use_shipped(monkeypatch, tmp_path / "builtin")
    output = tmp_path / "out.png"
    assert main(["segment", str(folders / "photo.png"), "a dog", "--model", "builtin", "-o", str(output)]) == 0
    assert ONLY_ITS_WORLD in capsys.readouterr().err and output.is_file()


def test_segment_takes_several_prompts_and_a_dtype(folders, tmp_path, capsys):
    image, model, adapter, output = folders / "photo.png", folders / "base", folders / "head", tmp_path / "out.jpg"
    paths = ["--model", str(model), "--adapter", str(adapter), "-o", str(output)]
    assert main(["segment", str(image), "a dog", "a cat", *paths, "--dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[:2]] == ["a dog", "a cat"]
    assert output.is_file()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"image": "broken.png"}, "broken.png"),
        ({"image": "missing.png"}, "missing.png"),
        ({"base": "text-only"}, "name a vision-language model"),
        ({"base": "nowhere"}, "nowhere"),
        ({"head": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_segmented_is_said_and_nothing_is_written(folders, tmp_path, capsys, changes, complaint):
    assert segment(folders, "-o", str(tmp_path / "out.png"), **changes) == 1
    captured = capsys.readouterr()
    _, said, message = captured.err.rpartition("lens-adapter segment: ")  # after the bars of what was loaded
    assert said and complaint in message
    assert "Traceback" not in captured.err and not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(folders, capsys):
    assert segment(folders, "--device", "toaster") == 1
    assert "--device toaster cannot be used here" in capsys.readouterr().err


def test_a_console_that_does_not_know_the_letters_of_a_prompt(folders, tmp_path):
    prompts = ["ein Käse", "一只狗", "🐶"]
    names = ["--model", str(folders / "base"), "--adapter", str(folders / "head"), "-o", str(tmp_path / "o.png")]
    command = [sys.executable, "-m", "lens_adapter", "segment", str(folders / "photo.png"), *prompts, *names]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C.UTF-8"}
    )
    lines = done.stdout.decode("latin-1").splitlines()
    assert done.returncode == 0 and [line.split("\t")[0] for line in lines] == [
        "ein Käse", "\\u4e00\\u53ea\\u72d7", "\\U0001f436",
    ]  # fmt: skip
