"""The command line: help, exit codes, messages, and `segment` from folder to picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import lens_adapter
from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin import evaluation
from lens_adapter.cli import main
from lens_adapter.evaluation import Evaluation
from tests.data.formats import reference
from tests.data.test_folder import write_folder
from tests.data.test_refer import write_set
from tests.tiny.models import tiny_language_model
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, tiny_sam
from tests.tiny.shipped import ship_tiny, use_shipped

COMMANDS = ("demo", "segment", "train", "evaluate", "probe", "push", "app", "env")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A picture, a base and a head on disk, and a base that is none."""
    folder = tmp_path_factory.mktemp("cli")
    model, processor = tiny_pair("llava")
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    with LensAdapter.from_model(model, processor, load_sam=False, sam=tiny_sam(), mask_threshold=0.5) as adapter:
        adapter.save_pretrained(folder / "head")
    tiny_language_model().save_pretrained(folder / "text-only")
    noise_image(45, 60).save(folder / "photo.png")
    (folder / "broken.png").write_bytes(b"no picture at all")
    return folder


def segment(folders: Path, *more: str, image: str = "photo.png", base: str = "base", head: str = "head") -> int:
    model, adapter = folders / base, folders / head
    return main(["segment", str(folders / image), "a dog", "--model", str(model), "--adapter", str(adapter), *more])


def usage_error(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"lens-adapter {command}" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command} " in printed for command in COMMANDS)


def test_as_a_module():
    run = [sys.executable, "-m", "lens_adapter"]
    version = subprocess.run([*run, "--version"], capture_output=True, text=True)
    assert (version.returncode, version.stdout.strip()) == (0, lens_adapter.__version__)
    unknown = subprocess.run([*run, "fly"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "fly" in unknown.stderr


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([], "COMMAND"),
        (["demo", "--image", "photo.png"], "--image and --prompt go together"),
        (["demo", "--prompt", "a dog"], "--image and --prompt go together"),
        (["demo", "--head", "wide"], "--head"),
        (["demo", "-o", "sheet.docx"], "must end like a picture"),
        (["segment", "photo.png"], "PROMPT"),
        (["segment", "photo.png", "a dog", "--adapter", "head"], "--model"),
        (["segment", "p.png", "a dog", "--model", "m", "--adapter", "a", "-o", "out"], "must end like a picture"),
        (["segment", "p.png", "a dog", "--model", "m", "--adapter", "a", "--dtype", "int8"], "--dtype"),
        (["evaluate"], "give --builtin alone, or all of --model, --adapter and --data"),
        (["evaluate", "--model", "m", "--data", "d"], "all of --model, --adapter and --data"),
        (["evaluate", "--builtin", "--data", "d"], "--builtin alone"),
        (["evaluate", "--builtin", "--gallery", "g.html"], "--builtin alone"),
        (["evaluate", "--model", "m", "--adapter", "a", "--data", "d", "--batch-size", "0"], "at least 1"),
        (["evaluate", "--builtin", "--scenes", "0"], "at least 1"),
        (["evaluate", "--builtin", "--scenes", "many"], "at least 1"),
        (["push", "head"], "REPO_ID"),
        (["app", "--model", "m"], "--model needs --adapter"),
        (["app", "--port", "http"], "--port"),
        (["probe", "--data", "folder"], "--model"),
        (["probe", "--model", "builtin", "--scenes", "0"], "at least 1"),
        (["probe", "--model", "builtin", "-o", "layers.txt"], "must end like a picture"),
    ],
)
def test_usage_errors(arguments, complaint, capsys):
    assert complaint in usage_error(capsys, *arguments)


def test_env_names_versions(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    for name in ("lens_adapter", "python", "torch", "transformers", "segment-anything", "accelerator"):
        assert f"\n{name} " in f"\n{printed}"


def test_segment_from_folders_to_a_picture(folders, tmp_path, capsys):
    output = tmp_path / "new" / "out.png"
    assert segment(folders, "-o", str(output)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("a dog\tscore ") and f"Wrote {output}" in printed
    with Image.open(output) as picture:
        assert picture.size == (60, 45)


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


def test_demo_of_an_unreadable_picture(folders, tmp_path, capsys):
    picture = ["--image", str(folders / "broken.png"), "--prompt", "a dog"]
    assert main(["demo", *picture, "-o", str(tmp_path / "sheet.png")]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_demo_without_its_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builtin, "VLM", tmp_path / "vlm")
    assert main(["demo", "-o", str(tmp_path / "sheet.png")]) == 1
    assert "examples/builtin" in capsys.readouterr().err


def test_demo_hands_everything_on(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("lens_adapter.demo.run_demo", lambda *arguments: calls.append(arguments))
    assert main(["demo"]) == 0
    sheet = tmp_path / "sheet.png"
    picture = ["--image", "p.png", "--prompt", "a", "--prompt", "b"]
    assert main(["demo", *picture, "--head", "mirror", "-o", str(sheet)]) == 0
    assert calls == [(None, [], Path("lens-demo.png"), "lite"), (Path("p.png"), ["a", "b"], sheet, "mirror")]


def test_evaluate_a_head(folders, tmp_path, capsys):
    """On a format that is no folder, with thresholds of one's own."""
    root = write_set(tmp_path / "refer_seg", [reference(1, 11, 1, ["a dog", "it"], "val"), reference(2, 15, 2, ["a"])])
    files = tmp_path / "new" / "figures.json", tmp_path / "new" / "page.html"
    command = ["evaluate", "--model", str(folders / "base"), "--adapter", str(folders / "head")]
    command += ["--data", str(root), "format=refer", "dataset=refcoco", "split=val"]
    command += ["--mask-threshold", "0.3", "--json", str(files[0]), "--gallery", str(files[1]), "--batch-size", "2"]
    assert main(command) == 0
    printed, result = capsys.readouterr().out, Evaluation.load(files[0])
    assert printed.startswith(result.to_markdown()) and all(f"Wrote {file}" in printed for file in files)
    assert (result.prompts, result.images, result.mask_threshold) == (2, 1, 0.3)
    assert result.dataset == {"name": "refcoco", "split": "val", "revision": None}
    assert (result.base_model, result.adapter) == (str(folders / "base"), str(folders / "head"))
    assert list(result.figures) == ["all", "val"] and files[1].read_text().count("<figure>") == 2


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"--data": ["nowhere"]}, "prompts.jsonl"),
        ({"--data": ["nowhere", "format=voc"]}, "expected one of folder, refer"),
        ({"--data": ["nowhere", "val"]}, "Expected KEY=VALUE, got ['val']"),
        ({"--data": ["nowhere", "format=hub"]}, "needs split too"),
        ({"--device": ["toaster"]}, "--device toaster cannot be used"),
        ({"--adapter": ["no head at all"]}, "no head at all"),
        ({"--score-threshold": ["1.5"]}, "score_threshold must be"),
    ],
)
def test_what_cannot_be_evaluated_is_said(folders, tmp_path, capsys, changes, complaint):
    write_folder(tmp_path, {"image": "a.jpg", "mask": "a.png", "prompt": "it"})
    flags = {"--model": [str(folders / "base")], "--adapter": [str(folders / "head")], "--data": [str(tmp_path)]}
    assert main(["evaluate", *(word for flag, words in (flags | changes).items() for word in (flag, *words))]) == 1
    assert complaint in capsys.readouterr().err.rpartition("lens-adapter evaluate: ")[2]


def test_probe_takes_every_format(folders, tmp_path, capsys):
    root = write_set(tmp_path / "refer_seg", [reference(1, 11, 1, ["a dog", "it"], "val")])
    files = ["-o", str(tmp_path / "layers.png"), "--json", str(tmp_path / "layers.json")]
    data = [str(root), "format=refer", "split=val"]
    assert main(["probe", "--model", str(folders / "base"), "--data", *data, *files]) == 0
    assert json.loads((tmp_path / "layers.json").read_text())["examples"] == 2


def test_app_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "lens_adapter.app.page", raising=False)
    monkeypatch.delitem(sys.modules, "lens_adapter.app.looks", raising=False)
    assert main(["app"]) == 1
    assert "pip install 'lens_adapter[app]'" in capsys.readouterr().err


def test_evaluate_writes_every_figure_it_prints(tmp_path, monkeypatch, capsys):
    ship_tiny(tmp_path / "builtin")
    use_shipped(monkeypatch, tmp_path / "builtin")
    monkeypatch.setattr(evaluation, "VALIDATION_SCENES", 1)
    file = tmp_path / "results" / "figures.json"
    assert main(["evaluate", "--builtin", "--scenes", "1", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("Wrote"))
    assert {name: f"{value:.4f}" for name, value in figures.items()} == printed
    assert "heads.lite.giou.attribute" in figures and "baselines.random_object.giou.attribute" in figures
