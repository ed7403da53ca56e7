"""Where results go is looked at before a model is loaded, and no input is ever written over."""

from __future__ import annotations

import os
import socket

import pytest

from lens_adapter.cli import loading, main
from lens_adapter.cli.outputs import require_files, require_folder_for
from lens_adapter.cli.result import Result
from lens_adapter.errors import InputError
from tests.cli.calls import segment
from tests.data.formats import write_image, write_json
from tests.tiny.sam import noise_image


@pytest.fixture(autouse=True)
def _no_model_is_loaded(monkeypatch):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    for room in ("segment", "evaluate", "fit", "probe", "train", "app"):
        monkeypatch.setattr(f"lens_adapter.cli.{room}.base_by_name", load)
    for room in ("segment", "evaluate", "app"):
        monkeypatch.setattr(f"lens_adapter.cli.{room}.head_by_name", load)
    monkeypatch.setattr("lens_adapter.cli.annotate.loaded_adapter", load)
    monkeypatch.setattr("lens_adapter.builtin.demo.run_demo", load)
    assert loading


@pytest.fixture
def data(tmp_path):
    """A plain folder of labelled images."""
    write_image(tmp_path / "data" / "images" / "a.jpg")
    (tmp_path / "data" / "masks").mkdir()
    line = '{"image": "a.jpg", "prompt": "it", "mask": null}'
    (tmp_path / "data" / "prompts.jsonl").write_text(line)
    return tmp_path / "data"


def names_of(path, folder):
    """Other names of a file: a link, a hard link, another spelling."""
    (folder / "link.png").symlink_to(path)
    os.link(path, folder / "hard.png")
    (folder / "below").mkdir()
    return [path, folder / "link.png", folder / "hard.png", folder / "below" / ".." / path.name]


def test_segment_and_demo_never_write_over_their_picture(folders, tmp_path, capsys):
    picture = tmp_path / "a.png"
    noise_image(45, 60).save(picture)
    before = picture.read_bytes()
    for name in names_of(picture, tmp_path):
        assert segment(folders, "-o", str(name), image=str(picture)) == 1
        assert "would be written over" in capsys.readouterr().err
        assert main(["demo", "--image", str(picture), "--prompt", "a dog", "-o", str(name)]) == 1
        assert "would be written over" in capsys.readouterr().err
    assert picture.read_bytes() == before and (tmp_path / "link.png").is_symlink()


def test_no_command_writes_over_its_data_or_models(folders, data, tmp_path, capsys):
    head, base, image = folders / "head", folders / "base", data / "images" / "a.jpg"
    os.link(image, tmp_path / "out.jpg")
    models = ["--model", str(base), "--adapter", str(head)]
    asked = tmp_path / "asked.json"
    asked.write_text("a dog")
    rows = ["annotate", str(data), *models, "--prompts", str(asked), "-o"]
    lines = [
        *([*rows, str(folder)] for folder in (data, data / "images", base, head)),
        *(
            [*rows, str(tmp_path / "new"), "--json", str(file)]
            for file in (asked, base / "config.json", head / "config.json")
        ),
        ["probe", "--model", str(base), "--data", str(data), "-o", str(image)],
        ["probe", "--model", str(base), "--data", str(data), "-o", str(tmp_path / "out.jpg")],
        ["probe", "--model", str(base), "--data", str(data), "--json", str(base / "config.json")],
        ["evaluate", *models, "--data", str(data), "--json", str(data / "prompts.jsonl")],
        ["evaluate", *models, "--data", str(data), "--gallery", str(head / "config.json")],
        ["fit", "--model", str(base), "--data", str(data), "-o", str(base)],
        ["fit", "--model", str(base), "--data", str(data), "-o", str(data / "images")],
        [
            "fit",
            "--model",
            str(base),
            "--data",
            str(data),
            "-o",
            str(tmp_path / "new"),
            "--json",
            str(base / "config.json"),
        ],
        ["train", "--model", str(base), "--data", str(data), "-o", str(base)],
        ["train", "--model", str(base), "--data", str(data), "-o", str(data)],
        ["push", str(head), "me/it", "--json", str(head / "config.json")],
    ]
    for line in lines:
        assert main(line) == 1, line
        assert "would be written over" in capsys.readouterr().err, line


def test_a_new_file_beside_the_data_is_none_of_them(data, tmp_path):
    write_json(data / "figures.json", {})
    require_files({"--json": data / "figures.json", "-o": data / "new.png"}, {"path": str(data)})
    require_folder_for("-o", data / "head", {"path": str(data)})
    with pytest.raises(InputError, match="are one file"):
        require_files({"--json": tmp_path / "a", "--gallery": tmp_path / "below" / ".." / "a"})


@pytest.mark.parametrize("place", ["a file/out", "y" * 300, "a\0b", "/proc/nowhere/out", "folder"])
def test_what_cannot_be_written_is_found_first(place, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("")
    (tmp_path / "folder.json").mkdir()
    assert segment(folders, "--json", f"{place}.json") == 1
    assert "cannot be written" in capsys.readouterr().err
    if place != "folder":
        assert main(["fit", "--model", "builtin", "-o", place]) == 1
        assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:99", "meta", "gpu", "", "xla", "vulkan", "cpu:x", "mps:1"])
def test_devices_that_are_none_are_found_first(device, folders, tmp_path, capsys):
    assert segment(folders, "--device", device, "-o", str(tmp_path / "out.png")) == 1
    assert f"--device {device}".strip() + " cannot be used here" in capsys.readouterr().err


def test_ports_that_are_taken_are_found_first(capsys):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["app", "--port", str(taken.getsockname()[1])]) == 1
    assert "--port" in capsys.readouterr().err


def test_json_is_whole_or_not_there_and_devices_stay(tmp_path):
    (tmp_path / "out.json").write_text("before")
    result = Result("", {"a": 1})
    result.report(str(tmp_path / "out.json"))
    assert (tmp_path / "out.json").read_text() == '{\n  "a": 1\n}\n'
    result.report("/dev/null")
    assert not os.path.isfile("/dev/null") and [*tmp_path.iterdir()] == [tmp_path / "out.json"]
