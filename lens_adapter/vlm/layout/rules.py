"""How a processor fits images of any size into its pictures, as a rule that its measured frames bear out.

A processor resizes an image to whole pixels and cuts or pads the rest. `RULES` are the ways in which that is usually
done. Which of them a processor follows is not looked up but found: those that explain every frame that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import ceil, floor
from typing import Literal

import torch

from lens_adapter.vlm.layout.frames import Frame, Line, least_squares, line_between
from lens_adapter.vlm.layout.single import Cut, Window

Size = tuple[int, int]  # (rows, columns)
Place = tuple[Fraction, Fraction]  # along one axis: how long the resized image is, and where it begins in the picture


@dataclass(frozen=True)
class Rule:
    """One way of fitting an image into a picture.

    Attributes:
        fit: "stretch" (both sides to the picture's), "cover" (none is shorter), "contain" (none is longer) or "keep"
            (as many pixels as it has).
        length: how the resized image comes to whole pixels; "exact": it does not, being padded before it is resized.
        floats: the scale is rounded to a float first, which shows where an exact length is a whole number.
        anchor: where it lies: at the "start", or centred: "exact", or to whole pixels ("floor", "ceil") of the picture,
            or of the image ("image floor", "image ceil").
    """

    fit: Literal["stretch", "cover", "contain", "keep"]
    length: Literal["floor", "round", "ceil", "exact"] = "exact"
    floats: bool = False
    anchor: Literal["start", "exact", "floor", "ceil", "image floor", "image ceil"] = "start"

    def places(self, size: Size, picture: Size) -> tuple[Place, Place]:
        """Where an image of `size` comes to lie in a picture of that size, along y and x."""
        if self.fit == "stretch":
            return (Fraction(picture[0]), Fraction(0)), (Fraction(picture[1]), Fraction(0))
        scales = [Fraction(there, here) for there, here in zip(picture, size, strict=True)]
        scale = {"cover": max(scales), "contain": min(scales), "keep": Fraction(1)}[self.fit]
        y, x = (self._place(*axis, scale) for axis in zip(size, picture, scales, strict=True))
        return y, x

    def _place(self, side: int, picture: int, own: Fraction, scale: Fraction) -> Place:
        exact = side * (Fraction(float(scale)) if self.floats and own != scale else scale)
        length = Fraction(_ROUNDED[self.length](float(exact) if self.floats else exact))
        if self.anchor == "start":
            return length, Fraction(0)
        if self.anchor.startswith("image"):
            return length, scale * Fraction(
                _ROUNDED[self.anchor.removeprefix("image ")]((picture - length) / scale / 2)
            )
        return length, Fraction(_ROUNDED[self.anchor]((picture - length) / 2))


_ROUNDED: dict[str, Callable[..., Fraction | float | int]] = {
    "floor": floor,
    "ceil": ceil,
    "round": round,
    "exact": lambda exact: exact,
}


def _rules() -> Iterator[Rule]:
    yield Rule("stretch")
    anchors = ("start", "exact", "floor", "ceil")
    for fit in ("cover", "contain"):
        for length, floats, anchor in product(("floor", "round", "ceil"), (False, True), anchors):
            yield Rule(fit, length, floats, anchor)  # type: ignore[arg-type]
        for anchor in (*anchors, "image floor", "image ceil"):
            yield Rule(fit, "exact", False, anchor)  # type: ignore[arg-type]
    for anchor in ("start", "floor", "ceil"):
        yield Rule("keep", anchor=anchor)  # type: ignore[arg-type]


RULES = tuple(_rules())


def frame_by(rule: Rule, size: Size, window: Window) -> Frame:
    """The frame that a window has by a rule, if it shows an image of `size`."""
    cuts = window.cut or tuple(Cut(count, torch.arange(count)) for count in window.shape)
    y, x = (_line(*axis) for axis in zip(rule.places(size, (cuts[0].length, cuts[1].length)), cuts, strict=True))
    return y, x


def _line(place: Place, cut: Cut) -> Line:
    """From a picture's pixels to fractions of the image; where some are missing, as frames.py would fit a line."""
    length, start = place
    first, last, count = int(cut.pixels[0]), int(cut.pixels[-1]), len(cut.pixels)
    if last - first + 1 == count:
        return float(count / length), float((first - start) / length)
    fractions = (cut.pixels + 0.5 - float(start)) / float(length)
    inside = (fractions > 0) & (fractions < 1)
    if not inside[0] and not inside[-1]:
        return line_between(inside.float())
    return least_squares(((torch.arange(count) + 0.5) / count)[inside], fractions[inside])


def apart(one: Sequence[Frame], other: Sequence[Frame], windows: Sequence[Window]) -> list[tuple[float, float]]:
    """How far apart frames of the same windows put the image's edges, at most.

    Returns:
        Per window and axis, in tokens; and how many tokens the image is long.
    """
    found = []
    for window, frame, another in zip(windows, one, other, strict=True):
        for tokens, (a, b), (c, d) in zip(window.grid, frame, another, strict=True):
            length = abs(tokens / a)
            found.append((max(abs(b - d), abs(a + b - c - d)) * length, length))
    return found
