"""Commands as tests call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_adapter.cli import main


def segment(folders: Path, *more: str, image: str = "photo.png", base: str = "base", head: str = "head") -> int:
    model, adapter = folders / base, folders / head
    return main(["segment", str(folders / image), "a dog", "--model", str(model), "--adapter", str(adapter), *more])


def helped(command: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def example_lines(printed: str) -> list[str]:
    """Command lines below "examples:", each on one line."""
    lines = printed.partition("\nexamples:\n")[2].replace("\\\n", "").splitlines()
    starts = ("lens-adapter ", "accelerate launch -m lens_adapter ")
    return [line.strip().replace(starts[1], starts[0]) for line in lines if line.strip().startswith(starts)]
