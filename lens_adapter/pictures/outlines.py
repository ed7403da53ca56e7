"""Where a mask ends: its outlines and its box. Knows nothing of what a mask means."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

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


def in_turn(
    lines: Sequence[Sequence[np.ndarray]], size: tuple[float, float], dash: float, spacing: float = 1.0
) -> list[list[np.ndarray]]:
    """Which points of outlines show, if those of several masks that run along each other do so in turn, in dashes.

    Args:
        lines: per mask its closed outlines (P, 2), x then y.
        size: (W, H) of the picture, which they lie in.
        dash: how long a dash is; nearer than a quarter of it, outlines run along each other.
        spacing: about how far apart neighboring points of an outline are.

    Returns:
        Per mask and outline a bool (P,).
    """
    cell = max(dash / 4, spacing)
    shape = int(size[1] / cell) + 3, int(size[0] / cell) + 3
    near = np.zeros((len(lines), *shape), bool)  # which masks have an outline in a cell, or in one beside it
    along = np.full(shape, np.nan)  # how far along the first of these outlines, which they all count their dashes by
    places = [[((line.clip(0, size) / cell).astype(int) + 1)[:, ::-1].T for line in own] for own in lines]
    for cells, own, where in zip(near, lines, places, strict=True):
        for line, (rows, columns) in zip(own, where, strict=True):
            length = np.append(0, np.hypot(*np.diff(line, axis=0).T).cumsum())
            for down, right in product((0, -1, 1), repeat=2):
                cells[rows + down, columns + right] = True
                free = np.isnan(along[rows + down, columns + right])
                along[rows[free] + down, columns[free] + right] = length[free]
    window = max(1, round(3 * dash / spacing))
    shown = []
    for index, where in enumerate(places):
        # Lines that merely cross are near each other for a few points only.
        beside = [[_mean_around(flags, window) > 0.8 for flags in near[:, rows, columns]] for rows, columns in where]
        before = [np.sum(flags[:index], axis=0, dtype=int) for flags in beside]
        dashes = [along[rows, columns] // dash for rows, columns in where]
        turns = zip(dashes, before, beside, strict=True)
        shown.append([dash % np.sum(flags, axis=0) == rank for dash, rank, flags in turns])
    return shown


def _mean_around(flags: np.ndarray, window: int) -> np.ndarray:
    """Of each flag (P,) and those around it, `window` in all; the last is followed by the first."""
    window = min(window, len(flags))
    before = window // 2
    sums = np.concatenate([[0], flags[len(flags) - before :], flags, flags[:window]]).cumsum(dtype=float)
    return np.asarray((sums[window:] - sums[:-window])[: len(flags)] / window)


def bounding_box(mask: np.ndarray) -> Box:
    """Of a bool mask (H, W): left, top, right, bottom in pixel edges, right minus left the width; 0 0 0 0 if empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
