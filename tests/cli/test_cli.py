"""The command line: help, exit codes, messages, and `segment` from folder to picture."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco

import lens_adapter
from lens_adapter import LensAdapter
from lens_adapter.builtin.demo import ONLY_ITS_WORLD
from lens_adapter.cli import _parser, main
from lens_adapter.evaluation import Evaluation
from lens_adapter.training.run import read_config
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


def helped(command: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def example_lines(printed: str) -> list[str]:
    """Command lines below "examples:", each on one line."""
    lines = printed.partition("\nexamples:\n")[2].replace("\\\n", "").splitlines()
    starts = ("lens-adapter ", "accelerate launch -m lens_adapter ")
    return [line.strip().replace(starts[1], starts[0]) for line in lines if line.strip().startswith(starts)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_examples_that_are_understood(command, capsys):
    printed = helped(command, capsys)
    about = printed.partition("\n\n")[2]
    assert about[0].isupper() and len(about.partition("\n\n")[0]) > 60
    examples = example_lines(printed)
    assert examples
    for line in examples:
        if "..." not in line:
            args = _parser().parse_args(shlex.split(line, comments=True)[1:])
            assert args.command == command


def test_help_of_train_holds_a_whole_file(capsys, tmp_path):
    printed = helped("train", capsys)
    text = printed.partition("CONFIG.yaml:\n")[2].partition("\n\n")[0]
    (tmp_path / "train.yaml").write_text(text)
    config = read_config(tmp_path / "train.yaml", {})
    assert config["validation"]["dataset"] == "refcoco" and config["training"]["learning_rate"] == 1e-4
    line = next(line for line in example_lines(printed) if "--validation" in line)
    args = _parser().parse_args(shlex.split(line)[1:])
    assert (args.validation, args.head["tap_layer"]) == (config["validation"], config["head"]["tap_layer"])
    assert args.training.keys() < config["training"].keys() and yaml.safe_load(text)["data"] == args.data["path"]


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys; from lens_adapter.cli import main\n"
        "for words in ([], ['segment'], ['train']):\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'yaml'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


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
        (["segment", "p.png", "a dog", "--model", "m"], "--model needs --adapter"),
        (["segment", "--json", "p.png", "a dog", "--model", "builtin"], "'p.png' is no place for JSON"),
        (["train", "--json", "train.yaml"], "'train.yaml' is no place for JSON"),
        (["train"], "give CONFIG.yaml, or all of --model, --data and --output"),
        (["train", "--model", "m", "--data", "d"], "give CONFIG.yaml, or all of"),
        (["train", "--head", "lite"], "argument --head: Expected KEY=VALUE, got ['lite']"),
        (["train", "--training", "bf16=[", "--head", "fusion=lite"], "argument --training: A value in ['bf16=['] is"),
        (["evaluate"], "give --builtin alone, or all of --model, --adapter and --data"),
        (["evaluate", "--model", "m", "--adapter", "a"], "all of --model, --adapter and --data"),
        (["evaluate", "--model", "m", "--data", "d"], "--model needs --adapter"),
        (["evaluate", "--model", "m", "--adapter", "a", "--data", "d", "val"], "argument --data: Expected KEY=VALUE"),
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


def test_env_names_versions_and_no_secrets(capsys, monkeypatch):
    secret = "hf_thisisnobodysbusiness"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("HF_ENDPOINT", f"https://me:{secret}@hub.example")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    packages = ("torch", "transformers", "huggingface-hub", "segment-anything", "gradio")
    for name in ("lens_adapter", "python", "platform", *packages, "accelerator", "cuda", "threads"):
        assert f"\n{name} " in f"\n{printed}" and name in facts
    assert facts["lens_adapter"] == lens_adapter.__version__ and facts["HF_HUB_OFFLINE"] == "1"
    assert facts["shipped_models"] == ["lens-lite", "lens-mirror", "sam", "vlm"]
    assert secret not in printed and str(Path.home()) not in printed and str(Path.cwd()) not in printed


def test_env_where_torch_is_broken(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["env"]) == 0
    assert "accelerator unknown, torch cannot be imported (ModuleNotFoundError)" in capsys.readouterr().out


def test_results_go_to_stdout_and_all_else_to_stderr(folders, tmp_path, capsys, monkeypatch):
    def noisy(self, *given, **more):
        print("said by a library")
        return segment_(self, *given, **more)

    segment_ = LensAdapter.segment
    monkeypatch.setattr(LensAdapter, "segment", noisy)
    assert segment(folders, "-o", str(tmp_path / "out.png"), "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["prompts"] and "said by a library" in captured.err


def test_an_interrupted_command_says_so_in_one_line(folders, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LensAdapter, "segment", interrupted)
    assert segment(folders, "-o", str(tmp_path / "out.png")) == 1
    assert capsys.readouterr().err.endswith("lens-adapter segment: interrupted\n")


def test_memory_that_does_not_suffice_is_said_in_one_line(folders, tmp_path, capsys, monkeypatch):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB.")

    monkeypatch.setattr(LensAdapter, "segment", too_large)
    assert segment(folders, "-o", str(tmp_path / "out.png")) == 1
    assert capsys.readouterr().err.endswith("segment: CUDA out of memory. Tried to allocate 9 GiB.\n")


def test_an_error_of_ours_is_not_hidden(folders, monkeypatch):
    monkeypatch.setattr(LensAdapter, "segment", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment(folders)


def test_segment_from_folders_to_a_picture(folders, tmp_path, capsys):
    output = tmp_path / "new" / "out.png"
    assert segment(folders, "-o", str(output)) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a dog\tscore ") and captured.out.count("\n") == 1
    assert captured.err.endswith(f"Wrote {output}\n")
    with Image.open(output) as picture:
        assert picture.size == (60, 45)


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
    assert (one["prompt"], one["area"]) == ("a dog", int(out.masks[0].sum()))
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


def test_demo_of_an_unreadable_picture(folders, tmp_path, capsys):
    picture = ["--image", str(folders / "broken.png"), "--prompt", "a dog"]
    assert main(["demo", *picture, "-o", str(tmp_path / "sheet.png")]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_demo_without_its_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lens_adapter.builtin.models.VLM", tmp_path / "vlm")
    assert main(["demo", "-o", str(tmp_path / "sheet.png")]) == 1
    assert "examples/builtin" in capsys.readouterr().err


def test_demo_hands_everything_on(tmp_path, monkeypatch):
    calls = []
    nothing = SimpleNamespace(to_dict=dict)
    monkeypatch.setattr("lens_adapter.builtin.demo.run_demo", lambda *arguments: calls.append(arguments) or nothing)
    monkeypatch.chdir(tmp_path)
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
    captured, result = capsys.readouterr(), Evaluation.load(files[0])
    assert captured.out == result.to_markdown() + "\n" and all(f"Wrote {file}" in captured.err for file in files)
    assert (result.prompts, result.images, result.mask_threshold) == (2, 1, 0.3)
    assert result.dataset == {"name": "refcoco", "split": "val", "revision": None}
    assert (result.base_model, result.adapter) == (str(folders / "base"), str(folders / "head"))
    assert list(result.figures) == ["all", "val"] and files[1].read_text().count("<figure>") == 2


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"--data": ["nowhere"]}, "prompts.jsonl"),
        ({"--data": ["nowhere", "format=voc"]}, "expected one of folder, refer"),
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
    monkeypatch.setattr("lens_adapter.builtin.figures.VALIDATION_SCENES", 1)
    file = tmp_path / "results" / "figures.json"
    assert main(["evaluate", "--builtin", "--scenes", "1", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {name: f"{value:.4f}" for name, value in figures.items()} == printed
    assert "heads.lite.giou.attribute" in figures and "baselines.random_object.giou.attribute" in figures
