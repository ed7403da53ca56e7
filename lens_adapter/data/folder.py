"""A plain folder of labelled images:

    images/         JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, ...: what `load_image` reads
    masks/          PNG with one channel, as large as the image; what is not zero is the target
    prompts.jsonl   a line per record:
                    {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}

Names are relative to `images/` and `masks/`. Keys of a line:

    image           required
    prompt          a text; or "prompts", a list of them
    mask            for all prompts; or "masks", a list with one per prompt: the name of
                    a PNG, COCO run lengths {"size": [H, W], "counts": ...}, polygons
                    [[x, y, x, y, ...], ...] in pixels, H rows of W numbers (what is not
                    zero), or null for nothing
    ignore          in the same forms: what counts neither way
    id, subset      texts or whole numbers
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lens_adapter.data.breakage import OnError, collect
from lens_adapter.data.files import as_label, is_file, json_line, read_text, require_regular, within
from lens_adapter.data.masks import Region
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError, brief
from lens_adapter.reading import only_our_errors

_KEYS = frozenset({"image", "prompt", "prompts", "mask", "masks", "ignore", "id", "subset"})


@only_our_errors
def read_folder(folder: str | Path, on_error: OnError = "raise") -> list[Record]:
    """A record per line of prompts.jsonl. Lines are checked now, and that files are there; pictures are read later.

    Args:
        folder: laid out as the module says.
        on_error: "raise" over a broken record, or "skip" it with a warning.

    Raises:
        InputError: there is no prompts.jsonl, or it is not UTF-8.
    """
    listing = Path(folder) / "prompts.jsonl"
    if not is_file(listing):
        raise InputError(
            f"There is no {str(listing)!r}. A folder of labelled images holds images/, masks/ and prompts.jsonl with "
            'lines like {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}.'
        )
    lines = read_text(listing).split("\n")  # JSON texts may hold other line separators
    entries = ((index, line) for index, line in enumerate(lines) if line.strip())
    return collect(listing, entries, lambda line: _fields(Path(folder), line), on_error)


@only_our_errors
def digest_folder(folder: str | Path) -> str:
    """Changes with prompts.jsonl and with every file in images/ and masks/; reads them all, but decodes none."""
    digest, root = hashlib.sha256(), Path(folder)
    inside = [file for part in ("images", "masks") for file in sorted((root / part).rglob("*")) if file.is_file()]
    for path in [root / "prompts.jsonl", *inside]:
        require_regular(path)
        with path.open("rb") as file:
            digest.update(
                f"{path.relative_to(root).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return digest.hexdigest()[:16]


def _fields(folder: Path, line: str) -> dict[str, Any]:
    entry = json_line(line)
    if not isinstance(entry, dict) or not _KEYS.issuperset(entry) or "image" not in entry:
        raise InputError(f"Expected a JSON object with image and some of {sorted(_KEYS)}, got {brief(line, 60)}.")
    prompts = _listed(entry, "prompt", "prompts", 1)
    masks = _listed(entry, "mask", "masks", len(prompts))
    return {
        "image": _inside(folder / "images", entry["image"]),
        "prompts": prompts,
        "regions": [_region(folder, mask) for mask in masks],
        "ignored": _region(folder, entry.get("ignore")),
        "id": as_label(entry.get("id"), "id") or entry["image"],
        "subset": as_label(entry.get("subset"), "subset"),
    }


def _listed(entry: dict[str, Any], one: str, several: str, count: int) -> list[Any]:
    if (one in entry) == (several in entry):
        raise InputError(f"Expected either {one!r} or {several!r}, got {sorted(entry)}.")
    if one in entry:
        return [entry[one]] * count
    if not isinstance(entry[several], list):
        raise InputError(f"{several!r} must be a list, got {brief(entry[several])}.")
    return list(entry[several])


def _region(folder: Path, mask: Any) -> Region:
    return _inside(folder / "masks", mask) if isinstance(mask, str) else mask


def _inside(folder: Path, name: Any) -> Path:
    path = within(folder, name)
    if not is_file(path):
        raise InputError(f"There is no file {brief(str(path), 300)}.")
    return path
