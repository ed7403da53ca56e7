"""A plain folder of labelled images:

images/         photographs, in any format that `load_image` reads
masks/          PNG with one channel, as large as the image; what is not zero is the target
prompts.jsonl   a line per example: {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from lens_adapter.errors import InputError
from lens_adapter.vlm.inputs import load_image

KEYS = ("image", "mask", "prompt")


@dataclass(frozen=True)
class Example:
    """An RGB image, a prompt about it, and the pixels that the prompt names: bool (H, W), all False for none."""

    image: Image.Image
    prompt: str
    mask: np.ndarray


@dataclass(frozen=True)
class _Line:
    """A line of prompts.jsonl; `place` names it in messages."""

    place: str
    image: Path
    mask: Path
    prompt: str


class LabelledFolder:
    """The examples of a folder, in the order of their lines. Lines are checked now, pictures read when asked for.

    Args:
        folder: laid out as the module says. Names in the lines are relative to `images/` and `masks/`.

    Raises:
        InputError: names the file and the line. Here: no such folder or file, a line that is not as it should be; at
            `[index]`: a damaged picture, a mask with several channels or of another size than its image.
    """

    def __init__(self, folder: str | Path):
        listing = Path(folder) / "prompts.jsonl"
        if not listing.is_file():
            raise InputError(
                f"There is no {listing}. A folder of labelled images holds images/, masks/ and prompts.jsonl with "
                'lines like {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}.'
            )
        try:
            text = listing.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{listing} must be UTF-8 text: {error}. Save it anew in that encoding.") from error
        lines = text.removesuffix("\n").split("\n")
        self._lines = [_read_line(listing, number, line) for number, line in enumerate(lines, 1)]

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Example:
        line = self._lines[index]
        try:
            image, mask = load_image(line.image), _load_mask(line.mask)
        except InputError as error:
            raise InputError(f"{line.place}: {error}") from error
        if mask.shape != (image.height, image.width):
            raise InputError(
                f"{line.place}: the mask {line.mask.name!r} is {mask.shape[1]} x {mask.shape[0]} pixels, its image, as "
                f"a viewer shows it, {image.width} x {image.height}. Draw the mask on the upright image at full size."
            )
        return Example(image, line.prompt, mask)


def _read_line(listing: Path, number: int, text: str) -> _Line:
    place = f"{listing}, line {number}"
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: expected a JSON object, got {text[:60]!r} ({error}).") from error
    if not isinstance(entry, dict) or set(entry) != set(KEYS):
        got = sorted(entry) if isinstance(entry, dict) else text[:60]
        raise InputError(f"{place}: expected a JSON object with just the keys {list(KEYS)}, got {got!r}.")
    for key in KEYS:
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise InputError(f"{place}: {key} must be a text that is not empty, got {entry[key]!r}.")
    files = {key: _inside(place, listing.parent / f"{key}s", entry[key]) for key in ("image", "mask")}
    if files["mask"].suffix.lower() != ".png":
        raise InputError(f"{place}: a mask must be a PNG, which keeps pixels as they are; got {entry['mask']!r}.")
    return _Line(place, files["image"], files["mask"], entry["prompt"])


def _inside(place: str, folder: Path, name: str) -> Path:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise InputError(f"{place}: expected a name inside {folder}, got {name!r}.")
    if not (folder / name).is_file():
        raise InputError(f"{place}: there is no file {folder / name}.")
    return folder / name


def _load_mask(path: Path) -> np.ndarray:
    """bool (H, W): the pixels that are not zero; of a palette, its first color is zero."""
    try:
        with Image.open(path) as opened:
            channels, values = opened.getbands(), np.asarray(opened)
    except Exception as error:  # a decoder meets damage with whatever error it runs into first
        raise InputError(f"The mask {str(path)!r} cannot be read as an image: {error}") from error
    if len(channels) != 1:
        raise InputError(
            f"The mask {str(path)!r} has the channels {''.join(channels)}; expected one (greyscale, black and white, "
            "or a palette), zero outside the target."
        )
    return values != 0
