"""Text and JSON files of data sets, read with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lens_adapter.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def read_text(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """The text of a file in the first of `encodings` that fits."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from error
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"The file {str(path)!r} must be text in {' or '.join(encodings)}. Save it anew in the first.")


def read_json(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> Any:
    """What a JSON file says."""
    text = read_text(path, encodings)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"The file {str(path)!r} is no valid JSON: {error}") from error


def by_id(entries: Iterable[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """id -> entry; entries without an `id` are left out."""
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and "id" in entry}


def require_folder(path: Path, what: str) -> Path:
    """`path` if it is a folder; `what` says in the error what it should hold."""
    if not path.is_dir():
        raise InputError(f"Expected a folder with {what} at {str(path)!r}; there is none.")
    return path
