"""`lens-adapter demo`: what it hands on, and what it cannot do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from lens_adapter.cli import main


def test_demo_of_an_unreadable_picture(folders, tmp_path, capsys):
    picture = ["--image", str(folders / "broken.png"), "--prompt", "a dog"]
    assert main(["demo", *picture, "-o", str(tmp_path / "sheet.png")]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_demo_without_its_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lens_adapter.builtin.names.VLM", tmp_path / "vlm")
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
    assert calls == [(None, [], Path("lens-demo.png"), "lite-sam2"), (Path("p.png"), ["a", "b"], sheet, "mirror")]
