"""Where results go, looked at before any work is done: what cannot be written, and what would be written over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lens_adapter.cli.result import STDOUT
from lens_adapter.errors import InputError, brief
from lens_adapter.writing import require_here

_READ_OF_A_DATA_FOLDER = ("images", "masks", "prompts.jsonl")


def require_files(outputs: Mapping[str, Path | str | None], *inputs: Any) -> None:
    """Make the folders of files that are going to be written, and refuse those that cannot or must not be.

    Args:
        outputs: flag -> file; None: none; `STDOUT`: none either.
        inputs: what the command reads: paths, names that may be some, and lists and mappings of them (data sources).

    Raises:
        InputError: a file cannot be written, is an input or one of its files (also through a link, or under another of
            its names), or two are one.
    """
    seen: dict[str, str] = {}
    for flag, file in outputs.items():
        if file is None or file == STDOUT:
            continue
        path = Path(file)
        require_here(path)
        _refuse_inputs(flag, path, inputs)
        try:
            real = os.path.realpath(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            _require_writable(path)
        except (OSError, ValueError) as error:
            raise _cannot_be_written(flag, path, error) from error
        if other := seen.get(real):
            raise InputError(f"{flag} and {other} are one file, {brief(str(path), 300)}. Give each a name of its own.")
        seen[real] = flag


def require_folder_for(flag: str, folder: str | Path, *inputs: Any) -> None:
    """As `require_files`, of a folder that is going to be filled; it is not made yet.

    Raises:
        InputError: it cannot be made or written to, or is an input.
    """
    path = Path(folder)
    require_here(path)
    _refuse_inputs(flag, path, inputs)
    try:
        real = Path(os.path.realpath(path))
        there = next(parent for parent in (real, *real.parents) if parent.exists())
        if not there.is_dir():
            raise NotADirectoryError(20, f"{str(there)!r} is a file")
        with TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:
        raise _cannot_be_written(flag, path, error) from error


def _cannot_be_written(flag: str, path: Path, error: Exception) -> InputError:
    why = getattr(error, "strerror", None) or str(error)
    return InputError(f"{flag} {brief(str(path), 300)} cannot be written: {why}. Choose another place.")


def _require_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(21, "it is a folder")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(13, "it may not be written")
    if path.is_file() or not path.exists():  # else a device, /dev/stdout say
        with TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass


def _refuse_inputs(flag: str, output: Path, inputs: Any) -> None:
    for given in _paths(inputs):
        if _is_of(output, given):
            raise InputError(
                f"{flag} {brief(str(output), 300)} would be written over {brief(str(given), 300)}, which is read. "
                "Choose another place."
            )


def _is_of(output: Path, given: Path) -> bool:
    """Whether `output` is `given`, a file that is read of it, or another name of one."""
    try:
        found = output.stat()
        if os.path.samestat(found, given.stat()):
            return True
        if not given.is_dir():
            return False
        parts = [given]
        if (given / "prompts.jsonl").is_file():  # what else lies in a plain folder is not read
            parts = [given / name for name in _READ_OF_A_DATA_FOLDER if (given / name).exists()]
        if output.is_dir():  # one may be made in a folder that is read
            return any(os.path.samestat(found, part.stat()) for part in parts)
        real = Path(os.path.realpath(output))
        if any(real.is_relative_to(os.path.realpath(part)) for part in parts):
            return True
        inside = (file for part in parts for file in ([part] if part.is_file() else part.rglob("*")))
        return found.st_nlink > 1 and any(os.path.samestat(found, file.stat()) for file in inside if file.is_file())
    except (OSError, ValueError):  # there is no output yet, or none that can be
        return False


def _paths(inputs: Any) -> Iterator[Path]:
    if isinstance(inputs, Mapping):
        inputs = inputs.values()
    if isinstance(inputs, str | Path):
        try:
            if Path(inputs).exists():
                yield Path(inputs)
        except (OSError, ValueError):  # no name that a file can have
            return
    elif isinstance(inputs, Iterable):
        for one in inputs:
            yield from _paths(one)
