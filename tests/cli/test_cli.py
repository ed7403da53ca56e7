"""The command line as a whole: help, exit codes, what goes where, and messages."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch

import lens_adapter
from lens_adapter import LensAdapter
from lens_adapter.builtin import HEADS
from lens_adapter.cli import _parser, main
from lens_adapter.data.formats import FORMATS
from tests.attacks.interrupts import run_commands
from tests.cli.calls import example_lines, helped, segment

COMMANDS = ("demo", "segment", "annotate", "train", "evaluate", "probe", "push", "app", "serve", "env")


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


@pytest.mark.parametrize("command", ("train", "evaluate", "probe", "fit", "annotate"))
def test_help_says_how_data_are_written(command, capsys):
    told = helped(command, capsys).partition("\nlabelled images:\n")[2]
    assert all(f'"{key}": ' in told for key in ("image", "mask", "prompt"))
    parts = dict(re.findall(r"format=(\w+)(.*?)(?=\n  PATH|\n  All)", told, re.DOTALL))
    assert parts.keys() == FORMATS.keys() - {"folder"}
    for name, part in parts.items():
        _, *options = inspect.signature(FORMATS[name]).parameters
        assert re.findall(r"(\w+)=", part) == [option for option in options if option != "on_error"], name


@pytest.mark.parametrize("command", ("segment", "evaluate", "app"))
def test_help_names_every_head_that_ships(command, capsys):
    told = " ".join(helped(command, capsys).split())
    assert all(f"builtin-{name}" in told for name in HEADS)


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys; from lens_adapter.cli import main\n"
        "for words in ([], ['segment'], ['annotate'], ['train']):\n"
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
        (["segment", "photo.png", "a dog", "--adapter", "head"], "--adapter needs --model"),
        (["segment", __file__, "a dog", __file__], "more images go behind --also"),
        (["segment", "p.png", "a dog", "--also", "q.png", "-o", "out.png"], "go to a folder"),
        (["segmnet", "p.png"], "Did you mean 'segment'?"),
        (["segment", "p.png", "a dog", "--score-treshold", "0.3"], "Did you mean '--score-threshold'?"),
        (["annotate", "photos", "-o", "out", "--format", "cocoa"], "Did you mean 'coco'?"),
        (["demo", "--head", "miror"], "Did you mean 'mirror'?"),
        (["segment", "p.png", "a dog", "--model", "m", "--adapter", "a", "-o", "out"], "must end like a picture"),
        (["segment", "p.png", "a dog", "--model", "m", "--adapter", "a", "--dtype", "int8"], "--dtype"),
        (["segment", "p.png", "a dog", "--model", "m"], "--model needs --adapter"),
        (["segment", "--json", "p.png", "a dog", "--model", "builtin"], "'p.png' is no place for JSON"),
        (["train", "--json", "train.yaml"], "'train.yaml' is no place for JSON"),
        (["annotate", "photos", "-o", "out"], "give DATA and --model, or --rethreshold"),
        (["annotate", "-o", "out", "--model", "builtin"], "give DATA and --model, or --rethreshold"),
        (["annotate", "photos", "--model", "builtin"], "-o/--output"),
        (["annotate", "photos", "-o", "out", "--model", "m"], "--model needs --adapter"),
        (["annotate", "photos", "val", "-o", "out", "--model", "m"], "argument DATA: Expected KEY=VALUE"),
        (["annotate", "p", "-o", "o", "--model", "builtin", "--prompt", "a", "--prompts", "f"], "not allowed with"),
        (["annotate", "-o", "out", "--model", "builtin", "--rethreshold", "0.5"], "it takes no model"),
        (["annotate", "-o", "out", "--rethreshold", "0.5", "--preview", "3"], "needs DATA"),
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
        (["app", "--model", "m", "--share"], "--model needs --adapter"),
        (["app", "--port", "http"], "--port"),
        (["app", "--port", "65536"], "--port"),
        (["app", "--port", "-1"], "--port"),
        (["app", "--port", "9" * 5000], "--port"),
        (["demo", "-o", "sheet.psd"], "must end like a picture"),  # which Pillow reads and does not write
        (["demo", "-o", "sheet.xbm"], "must end like a picture"),  # which knows no color
        (["evaluate", "--builtin", "--scenes", "9" * 5000], "at least 1"),
        (["probe", "--data", "folder"], "--model"),
        (["probe", "--model", "builtin", "--examples", "0"], "at least 1"),
        (["probe", "--model", "builtin", "-o", "layers.txt"], "must end like a picture"),
    ],
)
def test_usage_errors(arguments, complaint, capsys):
    assert complaint in usage_error(capsys, *arguments)


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
    assert segment(folders, "-o", str(tmp_path / "out.png")) == 130
    assert capsys.readouterr().err.endswith("lens-adapter: interrupted\n")


def test_an_interrupt_that_a_library_made_another_error_of_is_one(folders, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Failed to import a part") from error

    monkeypatch.setattr(LensAdapter, "segment", interrupted)
    assert segment(folders, "-o", str(tmp_path / "out.png")) == 130
    assert capsys.readouterr().err.endswith("lens-adapter: interrupted\n")


def test_a_process_is_interrupted_without_a_traceback():
    found = run_commands(2, seed=0)
    assert found == {"interrupts": 2, "other_endings": 0}


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
