"""Text and JSON files of data sets, read with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path, PurePath
from typing import Any

from transformers.utils import logging

from lens_adapter.errors import InputError, brief

logger = logging.get_logger(__name__)


def read_text(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """The text of a file in the first of `encodings` that fits."""
    try:
        require_regular(path)
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # a name with letters that no name can have
        raise InputError(f"The file {brief(str(path), 300)} cannot be read: {_why(error)}.") from error
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"The file {str(path)!r} must be text in {' or '.join(encodings)}. Save it anew in the first.")


def require_regular(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which may never end. Whether there is anything is not asked.

    Raises:
        InputError: it is one.
        OSError, ValueError: it cannot be asked for.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{brief(str(path), 300)} is a pipe or a device; expected a file.")


def read_json(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> Any:
    """What a JSON file says."""
    text = read_text(path, encodings)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and too deep a nesting
        raise InputError(f"The file {str(path)!r} is no valid JSON: {error}") from error


def json_line(line: str) -> Any:
    """What a line says that should be a JSON object.

    Raises:
        InputError: it is no JSON, or a key stands twice in it, of whose values Python would keep the last.
    """
    try:
        return json.loads(line, object_pairs_hook=_with_keys_once)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and too deep a nesting
        raise InputError(f"Expected a JSON object, got {brief(line, 60)} ({error}).") from error


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {brief([key for key, _ in pairs])}")
    return found


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def within(folder: Path, name: Any) -> Path:
    """The file of this name in `folder`; a name that leads out of it is refused. Whether it exists is not asked."""
    if not isinstance(name, str) or not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise InputError(f"Expected the name of a file inside {str(folder)!r}, got {brief(name)}.")
    return folder / name


def is_file(path: Path) -> bool:
    """Whether there is a file; False, too, where no file can have that name."""
    return _is(path.is_file)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False, too, where no folder can have that name."""
    return _is(path.is_dir)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except (OSError, ValueError):
        return False


def require_folder(path: Path, what: str) -> Path:
    """`path` if it is a folder; `what` says in the error what it should hold."""
    if is_folder(path):
        return path
    raise InputError(f"Expected a folder with {what} at {brief(str(path), 300)}; there is none.")


def listed(folder: Path, below: bool = False) -> list[Path]:
    """The files in a folder, sorted; `below`: in those within it, too. Hidden ones (".DS_Store") are left out."""
    try:
        found = sorted(path for path in (folder.rglob("*") if below else folder.iterdir()) if not path.is_dir())
    except OSError as error:
        raise InputError(f"The folder {str(folder)!r} cannot be read: {_why(error)}.") from error
    return [path for path in found if not path.name.startswith(".")]


def say_left_out(paths: Sequence[Path | str], what: str) -> None:
    """Warn of files that are not read, with their number and the first names."""
    if paths:
        names = ", ".join(str(path) for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
        logger.warning("%d %s: %s", len(paths), what, names)


def as_label(value: Any, what: str) -> str:
    """A name or number as a text; "" where there is none (null).

    Raises:
        InputError: it is neither a text nor a whole number.
    """
    if value is None or value != value:  # tables write NaN for what is missing
        return ""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # tables make floats of numbers beside what is missing
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{what} must be a text or a whole number, got {brief(value)}.")
    return str(int(value))


def as_flag(value: Any, what: str) -> bool:
    """True or false, also as 1 or 0; a text such as "false" is refused, which Python takes for true."""
    if isinstance(value, str) or value not in (0, 1):
        raise InputError(f"{what} must be true or false, got {brief(value)}.")
    return bool(value)
