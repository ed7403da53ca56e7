"""`lens-adapter segment`, from a folder to a picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter import LensAdapter
from lens_adapter.builtin.names import ONLY_ITS_WORLD
from lens_adapter.builtin.world import sample_scene
from lens_adapter.cli import main
from lens_adapter.cli.segment import _told_apart
from tests.cli.calls import segment
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image
from tests.tiny.shipped import ship_tiny, use_shipped


def test_segment_from_folders_to_a_picture(folders, tmp_path, capsys):
    output = tmp_path / "new" / "out.png"
    assert segment(folders, "-o", str(output)) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a dog\tscore ") and captured.out.count("\n") == 1
    assert captured.err.endswith(f"Wrote {output}\n")
    with Image.open(output) as picture:
        assert picture.size == (60, 45)


def test_segment_says_what_is_absent_and_by_which_threshold(folders, tmp_path, capsys):
    file = tmp_path / "found.json"
    flags = ["-o", str(tmp_path / "out.png"), "--json", str(file), "--score-threshold", "0.9999"]
    assert segment(folders, *flags) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(r"a dog\tscore 0\.\d\d\tabsent, below the threshold 1\.00\n", printed)
    found = json.loads(file.read_text())
    assert found["score_threshold"] == 0.9999 and found["mask_threshold"] == 0.5
    (one,) = found["prompts"]
    assert (one["found"], one["area"], one["keypoints"]) == (False, 0, [])


def test_a_score_that_is_nearly_the_threshold_is_told_from_it():
    assert _told_apart(0.4199, 0.42) == ("0.4199", "0.4200") and _told_apart(0.31, 0.42) == ("0.31", "0.42")


def test_segment_writes_masks_and_takes_thresholds(folders, tmp_path, capsys):
    flags = ["-o", str(tmp_path / "out.png"), "--masks", str(tmp_path / "masks"), "--json"]
    assert segment(folders, *flags, "--mask-threshold", "0.3") == 0
    captured = capsys.readouterr()
    (one,) = json.loads(captured.out)["prompts"]
    assert one["mask"] == str(tmp_path / "masks" / "1-a-dog.png") and "Wrote 1 mask to" in captured.err
    with Image.open(one["mask"]) as mask:
        assert mask.size == (60, 45) and np.count_nonzero(mask) == one["area"] > 0
    assert segment(folders, "-o", str(tmp_path / "out.png"), "--masks", str(folders)) == 1  # where the picture is
    assert "would be written over" in capsys.readouterr().err


def test_segment_takes_several_images(folders, tmp_path, capsys):
    noise_image(30, 40).save(tmp_path / "photo.png")
    also = ["--also", str(tmp_path / "photo.png"), "--json"]
    output, masks = tmp_path / "over", tmp_path / "masks"
    assert segment(folders, *also, "-o", str(output), "--masks", str(masks)) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [one["image_size"] for one in images] == [[45, 60], [30, 40]]
    assert [one["picture"] for one in images] == [str(output / f"{k}-photo.png") for k in (1, 2)]
    assert sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.png")) == [
        "1-photo/1-a-dog.png", "2-photo/1-a-dog.png",
    ]  # fmt: skip
    assert segment(folders, *also[:2], "-o", str(output)) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(folders / "photo.png"), str(tmp_path / "photo.png"),
    ]  # fmt: skip


def test_words_without_a_token_are_told_from_what_is_not_there(tmp_path, monkeypatch, capsys, caplog):
    """With the models that ship, which have read few words; nothing need be said but a picture and prompts."""
    sample_scene(148846, "test").draw(384).save(tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    prompts = ["the quokka", "teh dog", "the cat", "the dog left of the pizza"]
    assert main(["segment", "scene.png", *prompts, "--json", "found.json"]) == 0
    captured = capsys.readouterr()
    assert [line.split("\t")[2].partition(" ")[0] for line in captured.out.splitlines()] == [
        "not", "not", "absent,", captured.out.splitlines()[3].split("\t")[2].partition(" ")[0],
    ]  # fmt: skip
    assert "\tnot understood: quokka\n" in captured.out and "% of the image\n" in captured.out
    assert caplog.text.count("The model has no token for ['quokka', 'teh']") == 1
    records = json.loads((tmp_path / "found.json").read_text())["prompts"]
    assert [one["unknown_words"] for one in records] == [["quokka"], ["teh"], [], []]


@pytest.mark.parametrize(
    "image, complaint",
    [
        ("https://example.org/a.png", "'https://example.org/a.png'. Download it first: URLs are not fetched"),
        (".", "is a folder; expected one image file in it"),
    ],
)
def test_what_is_no_picture_file_is_said_with_what_to_do(folders, monkeypatch, capsys, image, complaint):
    monkeypatch.chdir(folders)
    assert main(["segment", image, "a dog", "--model", "base", "--adapter", "head"]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--model", "--adapter"])
@pytest.mark.parametrize(
    "name, complaint",
    [
        ("https://huggingface.co/org/x/tree/main", "is a URL, which is not fetched; name the repository: 'org/x'"),
        ("https://example.org/x.zip", "is a URL, which is not fetched; download it and name the folder"),
        ("./nowhere", "is a folder that does not exist"),
        ("/no/such/folder", "is a folder that does not exist"),
        ("photo.png", "is a file; name its folder"),
        ("a head", "is neither a folder nor a Hub repository"),
    ],
)
def test_what_no_model_can_be_called_is_said_with_what_to_do(folders, monkeypatch, capsys, flag, name, complaint):
    monkeypatch.chdir(folders)
    names = {"--model": "base", "--adapter": "head"} | {flag: name}
    assert main(["segment", "photo.png", "a dog", *(word for pair in names.items() for word in pair)]) == 1
    message = capsys.readouterr().err.rpartition("lens-adapter segment: ")[2]
    assert message.startswith(flag) and complaint in message


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
