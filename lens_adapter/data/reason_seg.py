"""ReasonSeg: a folder of images, each with a JSON file of the same name that LabelMe might have written.

    {"text": ["..."], "is_sentence": true, "shapes": [{"label": "target", "points": [[x, y], ...]}, ...]}

A shape is drawn as its `shape_type` says: a polygon (also where it says nothing), a rectangle, a circle or a mask.
Lines, points and others are refused: which pixels they name is not said. Shapes are painted over one another, the
largest first, so that small ones stay visible. What is left of a shape whose label holds "ignore" counts neither way; a
shape labelled "flag" means nothing. A file without shapes is taken for texts that name nothing in their image, with a
warning. Some files are not UTF-8 but cp1252.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lens_adapter.data.breakage import OnError, collect
from lens_adapter.data.files import as_flag, listed, read_json, require_folder, say_left_out
from lens_adapter.data.masks import read_levels
from lens_adapter.data.records import Record
from lens_adapter.data.shapes import NoPixelError, Size, draw_circle, draw_outlined
from lens_adapter.errors import InputError, brief
from lens_adapter.reading import only_our_errors
from lens_adapter.vlm.images import picture_suffixes

_IGNORED, _TARGET = 255, 1


@dataclass(frozen=True)
class _Shape:
    """What LabelMe wrote of one shape."""

    kind: str
    points: tuple[tuple[float, float], ...]
    value: int
    picture: bytes = b""  # of a mask

    def draw(self, size: Size) -> np.ndarray:
        """bool (H, W), not empty; like OpenCV's and LabelMe's, with all pixels of its outline."""
        if self.kind == "circle":
            center, edge = self.points
            drawn = draw_circle(center, edge, size)
        elif self.kind == "rectangle" and len(self.points) == 2:
            (left, top), (right, bottom) = self.points
            drawn = draw_outlined([(left, top), (right, top), (right, bottom), (left, bottom)], size)
        elif self.kind == "mask":
            drawn = self._pasted(size)
        else:
            drawn = draw_outlined(self.points, size)
        if not drawn.any():
            raise NoPixelError(f"A {self.kind} covers no pixel of an image of {size[1]} x {size[0]}: {self.points}.")
        return drawn

    def _pasted(self, size: Size) -> np.ndarray:
        """The mask's picture at its place, the rectangle between its two points, which are in it."""
        (left, top), (right, bottom) = (map(int, point) for point in self.points)
        inside = read_levels(self.picture) != 0
        if inside.shape != (bottom - top + 1, right - left + 1) or min(left, top) < 0:
            raise InputError(f"A mask of {inside.shape[1]} x {inside.shape[0]} pixels does not fit {self.points}.")
        drawn = np.zeros(size, bool)
        place = drawn[top : bottom + 1, left : right + 1]
        if place.shape != inside.shape:
            raise InputError(f"A mask at {self.points} leaves its image of {size[1]} x {size[0]} pixels.")
        place |= inside
        return drawn


# How many points a shape has.
_POINTS = {"polygon": range(1, 10**9), "rectangle": (2, 4), "circle": (2,), "mask": (2,)}


@dataclass(frozen=True)
class _Painting:
    """A region: the pixels that have `value` once all shapes are painted."""

    shapes: tuple[_Shape, ...]
    value: int

    def draw(self, size: Size) -> np.ndarray:
        drawn: np.ndarray = _paint(self.shapes, size) == self.value
        return drawn


@lru_cache(maxsize=2)  # the target and what to ignore are asked for in turn
def _paint(shapes: tuple[_Shape, ...], size: Size) -> np.ndarray:
    drawn = [(shape.draw(size), shape.value) for shape in shapes]
    canvas = np.zeros(size, np.uint8)
    for mask, value in sorted(drawn, key=lambda shape: int(shape[0].sum()))[::-1]:  # of equals, the last comes first
        canvas[mask] = value
    return canvas


@only_our_errors
def read_reason_seg(folder: str | Path, on_error: OnError = "raise") -> list[Record]:
    """A record per image with all its texts, which name the same; subset "long" (sentences) or "short".

    What is neither a picture nor JSON is left out, with a warning that names it.

    Args:
        folder: of one split, e.g. "ReasonSeg/val". Its JSON files are read now, images when asked for.
        on_error: "raise" over a broken record (e.g. an image without its JSON file, or a JSON file without its image),
            or "skip" it with a warning.
    """
    files = listed(require_folder(Path(folder), "the images and JSON files of a split of ReasonSeg"))
    suffixes = picture_suffixes()
    pairs: dict[str, tuple[list[Path], list[Path]]] = {}  # stem: pictures and JSON files
    for path in files:
        if path.suffix.lower() in suffixes or path.suffix.lower() == ".json":
            pairs.setdefault(path.stem, ([], []))[path.suffix.lower() == ".json"].append(path)
    others = [path.name for path in files if not any(path in found for found in pairs.get(path.stem, ()))]
    say_left_out(others, f"files in {str(folder)!r} are neither pictures nor JSON, and left out")
    in_order = sorted(pairs.items(), key=lambda pair: (pair[1][0] or pair[1][1])[0])
    records = collect(folder, enumerate(in_order), lambda pair: _fields(Path(folder), *pair), on_error)
    nothing = [record.id for record in records if not record.regions[0].shapes]
    say_left_out(nothing, f"JSON files in {str(folder)!r} have no shapes: taken for texts that name nothing there")
    return records


def _fields(folder: Path, stem: str, files: tuple[list[Path], list[Path]]) -> dict[str, Any]:
    for found, kind in zip(files, ("picture", "JSON file"), strict=True):
        if len(found) > 1 or not files[0]:
            names = " and ".join(path.name for path in found) or "none"
            raise InputError(f"Expected one {kind} with the name {stem!r} in {str(folder)!r}, got {names}.")
    image, path = files[0][0], (files[1] or [folder / f"{stem}.json"])[0]
    entry = read_json(path, ("utf-8-sig", "cp1252"))
    try:
        texts = entry["text"]
        if not isinstance(texts, str | list):
            raise TypeError(f"text is a {type(texts).__name__}")
        texts = [texts] if isinstance(texts, str) else texts
        shapes = tuple(_shape(shape) for shape in entry["shapes"] if shape["label"].lower() != "flag")
        subset = "long" if as_flag(entry["is_sentence"], "is_sentence") else "short"
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    except Exception as error:  # what others wrote breaks in whatever way comes first
        raise InputError(f"{path.name} is not as ReasonSeg writes it: {brief(error, 300)}.") from error
    return {
        "image": image,
        "prompts": [text.strip() if isinstance(text, str) else text for text in texts],
        "regions": [_Painting(shapes, _TARGET)] * len(texts),
        "ignored": _Painting(shapes, _IGNORED) if any(shape.value == _IGNORED for shape in shapes) else None,
        "id": image.stem,
        "subset": subset,
    }


def _shape(shape: dict[str, Any]) -> _Shape:
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind not in _POINTS:
        raise InputError(
            f"The shape {brief(shape['label'])} is a {brief(kind)}, which cannot be drawn as a mask; expected "
            f"{', '.join(_POINTS)}. Draw it anew as one of these, or label it 'flag'."
        )
    points = tuple((float(x), float(y)) for x, y in shape["points"])
    if len(points) not in _POINTS[kind]:
        raise InputError(f"The {kind} {brief(shape['label'])} has {len(points)} points.")
    picture = base64.b64decode(shape["mask"], validate=True) if kind == "mask" else b""
    return _Shape(kind, points, _IGNORED if "ignore" in shape["label"].lower() else _TARGET, picture)
