"""Where a mask ends: its outlines and its box. Knows nothing of what a mask means."""

from __future__ import annotations

import numpy as np
from contourpy import contour_generator

_AT_ONCE = 2**20  # pixels that are looked at together: contourpy takes forty bytes for each

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed outlines (P, 2), x then y in pixels, of a bool mask (H, W), their stairs smoothed."""
    return [_smooth(line) for line in exact_outlines(mask)]


def exact_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines (P, 2), x then y in pixels, between the pixels inside and outside a bool mask (H, W).

    The last point is the first again. Outer ones run clockwise as seen, holes counterclockwise.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    inner = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    # Index 0 is the padding, whose centre lies half a pixel outside.
    shift = np.array([left - 0.5, top - 0.5])
    step = max(_AT_ONCE // inner.shape[1], 1)
    pieces = [
        line + np.array([0, start])
        for start in range(0, len(inner) - 1, step)
        for line in contour_generator(z=inner[start : start + step + 1].astype(np.float32)).lines(0.5)
    ]
    return [line + shift for line in _joined(pieces)]


def _joined(pieces: list[np.ndarray]) -> list[np.ndarray]:
    """Lines (P, 2) that are closed, or end where another begins, as closed ones."""
    closed = [line for line in pieces if (line[0] == line[-1]).all()]
    begins = {tuple(line[0].tolist()): line for line in pieces if not (line[0] == line[-1]).all()}
    while begins:
        parts = [begins.pop(next(iter(begins)))]
        while (end := tuple(parts[-1][-1].tolist())) in begins:
            parts.append(begins.pop(end)[1:])
        closed.append(np.concatenate(parts) if len(parts) > 1 else parts[0])
    return closed


def _smooth(line: np.ndarray) -> np.ndarray:
    """A closed line (P, 2), first point repeated at the end, averaged along itself; tiny ones stay as they are."""
    points = line[:-1]
    if len(points) < 24:
        return line
    weights = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1]) / 256
    points = sum(weight * np.roll(points, shift, axis=0) for shift, weight in enumerate(weights, -4))
    return np.concatenate([points, points[:1]])


def bounding_box(mask: np.ndarray) -> Box:
    """Of a bool mask (H, W): left, top, right, bottom in pixel edges, right minus left the width; 0 0 0 0 if empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
