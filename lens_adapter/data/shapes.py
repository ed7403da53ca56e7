"""Polygons and run lengths as masks: numbers in, bool (H, W) out; what does not fit is refused, with numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from torch import Tensor

from lens_adapter.errors import InputError, brief

Size = tuple[int, int]  # (H, W)

_NUMBERS = (Real, np.generic, list, tuple, np.ndarray)  # or rows of them
_FAR = 4  # sides of the image beyond which a polygon's corner is no longer taken for a pixel
_LONGEST = 200  # half perimeters of the image that all outlines together may have: drawing takes memory for each pixel
_MARGIN = 2  # pixels before the image, cut off again, for corners there: below 0 Pillow rounds the other way


class NoPixelError(InputError):
    """Polygons that lie beside the image, or between its pixels' centers."""


def draw_outlined(points: Sequence[Sequence[float]], size: Size) -> np.ndarray:
    """bool (H, W): a polygon with all pixels that its outline runs through, corners cut to whole pixels.

    This is how labelling tools with OpenCV below draw (`polylines` and `fillPoly`).
    """
    corners = _corners(points, size).astype(int)
    _require_short([corners], size)
    left, top = np.where(corners.min(0) < 0, _MARGIN, 0).tolist()
    drawing = Image.new("1", (size[1] + left, size[0] + top))  # no larger: what is beyond is cut off anyway
    outline = [(x + left, y + top) for x, y in corners.tolist()]
    pen = ImageDraw.Draw(drawing)
    if len(outline) > 1:
        pen.polygon(outline, fill=1)
    pen.line([*outline, outline[0]], fill=1)
    return np.asarray(drawing)[top:, left:]


def draw_circle(center: Sequence[float], edge: Sequence[float], size: Size) -> np.ndarray:
    """bool (H, W): a circle about `center` through `edge`, both x then y, as LabelMe draws it: the outline is in it."""
    (x, y), _ = corners = _corners([center, edge], size).tolist()
    radius = math.dist(*corners)
    drawing = Image.new("1", size[::-1])
    bounds = [math.floor(value) for value in (x - radius, y - radius, x + radius, y + radius)]
    ImageDraw.Draw(drawing).ellipse(bounds, fill=1)
    return np.asarray(drawing)


def as_numbers(value: Any) -> np.ndarray | None:
    """Numbers, nested in whatever way, as an array of any rank; None: something else, or rows of different lengths."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        value = [as_numbers(part) for part in value]
    if isinstance(value, list | tuple) and not all(isinstance(part, _NUMBERS) for part in value):
        return None
    if not isinstance(value, np.ndarray | list | tuple):
        return None
    try:
        array = np.asarray(value)
        if array.dtype == object and not isinstance(value, np.ndarray):  # rows that are arrays of arrays
            array = np.asarray(array.tolist())
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.dtype.kind in "biuf" else None


def fill_polygons(polygons: Any, size: Size) -> np.ndarray:
    """bool (H, W) as COCO draws: a pixel is in where the polygon covers (about) its center.

    Args:
        polygons: one, [x, y, x, y, ...] or [[x, y], ...]; or a list of such parts, whose union it is.
        size: (H, W).

    Raises:
        InputError: these are no polygons.
        NoPixelError: together they cover no pixel.
    """
    sequence = (list, tuple, np.ndarray, Tensor)
    if not isinstance(polygons, sequence) or not len(polygons):
        raise InputError(f"Expected polygons, got {brief(polygons)}. Nothing is written as null (None).")
    flat = isinstance(polygons[0], Real) or getattr(polygons[0], "ndim", 1) == 0
    if not flat and not all(isinstance(part, sequence) for part in polygons):
        raise InputError(f"Expected polygons as lists of numbers, got {brief(polygons)}.")
    one = flat or all(len(part) == 2 for part in polygons)  # a list of points is one polygon too
    parts = [_corners(part, size) for part in ([polygons] if one else polygons)]
    _require_short(parts, size)
    areal = [part.ravel().tolist() for part in parts if len(part) >= 3]  # lines and points hold no pixel
    if not areal:
        raise InputError(f"Expected polygons with at least 3 corners, got {brief(polygons)}.")
    _require_outlines(parts, polygons, size)
    mask: np.ndarray = coco.decode(coco.merge(coco.frPyObjects(areal, *size))).astype(bool)
    if not mask.any():
        raise NoPixelError(
            f"The polygons cover no pixel of an image of {size[1]} x {size[0]}: {brief(polygons)}. Expected x and y in "
            "pixels; nothing is written as null (None)."
        )
    return mask


def fill_runs(counts: Any, size: Size) -> np.ndarray:
    """bool (H, W). pycocotools leaves what the runs do not reach uninitialised, so runs are checked and laid here."""
    runs: Any = counts.tolist() if isinstance(counts, np.ndarray | Tensor) else counts
    if isinstance(runs, list | tuple):
        runs = [run.item() if isinstance(run, np.integer | Tensor) else run for run in runs]
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


def _require_short(parts: Sequence[np.ndarray], size: Size) -> None:
    """Refuse outlines that go to and fro so often that to draw them takes gigabytes, or hours."""
    steps = [np.abs(np.diff(part, axis=0, append=part[:1])).max(axis=1).sum() for part in parts]
    if (length := float(sum(steps))) > _LONGEST * sum(size):
        raise InputError(
            f"Polygons have outlines of {length:.0f} pixels on an image of {size[1]} x {size[0]}; expected at most "
            f"{_LONGEST * sum(size)}. Corners lie far outside, or in no order."
        )


def _require_outlines(parts: Sequence[np.ndarray], polygons: Any, size: Size) -> None:
    """Refuse what has the form of polygons and means another thing: a mask's numbers, or fractions of the image."""
    corners = np.concatenate(parts)
    few = len(np.unique(corners, axis=0)) < len(corners) / 2
    in_a_corner = corners.min() >= 0 and corners.max() <= 1
    if (few and len(corners) > 5) or (in_a_corner and (len(corners) > 5 or (corners != corners.round()).any())):
        raise InputError(
            f"Expected the corners of polygons in pixels, got {brief(polygons)}: "
            + ("most of them are the same. " if few else "all lie between 0 and 1. ")
            + f"A mask for this image is {size[0]} rows of {size[1]} numbers; fractions of the image have to be "
            "multiplied by its width and height."
        )


def _corners(points: Any, size: Size) -> np.ndarray:
    """float (n, 2), x then y; of [x, y, x, y, ...] or [[x, y], ...]."""
    numbers = as_numbers(points)
    if numbers is None or numbers.dtype == bool:
        raise InputError(f"Expected the corners of a polygon as numbers, got {brief(points)}.")
    in_form = numbers.ndim == 1 or (numbers.ndim == 2 and numbers.shape[1] == 2)
    numbers = numbers.astype(float).ravel()
    if not in_form or not len(numbers) or len(numbers) % 2 or not (np.abs(numbers) <= _FAR * max(size)).all():
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
