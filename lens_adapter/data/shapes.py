"""Polygons and run lengths as masks: numbers in, bool (H, W) out; what does not fit is refused, with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from lens_adapter.errors import InputError

Size = tuple[int, int]  # (H, W)

_FAR = 4  # sides of the image beyond which a polygon's corner is no longer taken for a pixel


def draw_outlined(points: Sequence[Sequence[float]], size: Size) -> np.ndarray:
    """bool (H, W): a polygon with all pixels that its outline runs through, corners cut to whole pixels.

    This is how labelling tools with OpenCV below draw (`polylines` and `fillPoly`).
    """
    corners = _corners(points, size).astype(int)
    low = np.minimum(corners.min(0), 0)  # Pillow rounds otherwise where coordinates are negative
    high = np.maximum(corners.max(0) + 1, size[::-1])
    drawing = Image.new("1", tuple((high - low).tolist()))
    outline = [tuple(corner) for corner in (corners - low).tolist()]
    pen = ImageDraw.Draw(drawing)
    if len(outline) > 1:
        pen.polygon(outline, fill=1)
    pen.line([*outline, outline[0]], fill=1)
    left, top = -low
    return np.asarray(drawing)[top : top + size[0], left : left + size[1]]


def fill_polygons(polygons: Any, size: Size) -> np.ndarray:
    """bool (H, W) as COCO draws: a pixel is in where the polygon covers (about) its center."""
    if not isinstance(polygons, list | tuple | np.ndarray) or not len(polygons):
        raise InputError(f"Expected polygons, got {brief(polygons)}. Nothing is written as null (None).")
    flat = isinstance(polygons[0], Real)
    if not flat and not all(isinstance(part, list | tuple | np.ndarray) for part in polygons):
        raise InputError(f"Expected polygons as lists of numbers, got {brief(polygons)}.")
    one = flat or all(len(part) == 2 for part in polygons)  # a list of points is one polygon too
    parts = [_corners(part, size) for part in ([polygons] if one else polygons)]
    areal = [part.ravel().tolist() for part in parts if len(part) >= 3]  # lines and points hold no pixel
    if not areal:
        raise InputError(f"Expected polygons with at least 3 corners, got {brief(polygons)}.")
    mask: np.ndarray = coco.decode(coco.merge(coco.frPyObjects(areal, *size)))
    return mask.astype(bool)


def fill_runs(counts: Any, size: Size) -> np.ndarray:
    """bool (H, W). pycocotools leaves what the runs do not reach uninitialised, so runs are checked and laid here."""
    runs: Any = counts.tolist() if isinstance(counts, np.ndarray) else counts
    if isinstance(runs, str | bytes):
        runs = _decompress(runs)
    whole = isinstance(runs, list | tuple) and all(type(run) is int and run >= 0 for run in runs)
    if not whole or sum(runs) != size[0] * size[1]:
        raise InputError(
            f"Expected run lengths (whole numbers from 0) that add up to {size[0]} x {size[1]} pixels, got "
            f"{brief(counts)}{f', which add up to {sum(runs)}' if whole else ''}."
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, runs).reshape(size, order="F"))


def brief(value: Any) -> str:
    """`value` for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _corners(points: Any, size: Size) -> np.ndarray:
    """float (n, 2), x then y."""
    try:
        numbers = np.asarray(points, float).ravel()
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected the corners of a polygon as numbers, got {brief(points)}.") from error
    if not len(numbers) or len(numbers) % 2 or not (np.abs(numbers) <= _FAR * max(size)).all():
        raise InputError(
            f"Expected pairs of x and y in pixels of an image of {size[1]} x {size[0]}, got {brief(points)}."
        )
    return numbers.reshape(-1, 2)


def _decompress(text: str | bytes) -> list[int] | None:
    """COCO's compressed counts: base 32, low digits first, 48 added; from the third on, differences to two before."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("latin-1", "replace") if isinstance(text, str) else text:
        digit = code - 48
        if not 0 <= digit < 64 or shift > 60:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs
