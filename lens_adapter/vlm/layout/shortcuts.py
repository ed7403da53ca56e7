"""What a measurement of a size would find, without showing the processor pictures as large: what every way has in
common, and the plainest of them. The others are in resized.py.

None is derived from settings, and none is believed before measurements were found to say the very same (measured.py).
All make what a measurement would have seen along one axis, and leave the rest to frames.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lens_adapter.vlm.layout.frames import Frame, Line, grey, measure_lines
from lens_adapter.vlm.layout.single import TiledCanvas

Extent = tuple[int, int]  # (rows, columns)
ShowPicture = Callable[[Image.Image], list[Tensor]]  # a picture -> (rows, columns) of each of its windows
SLICES = (64, 128, 256)  # pixels


class Picture(NamedTuple):
    """What an image became in one window.

    Attributes:
        pixels: (rows, columns).
        canvas: what they were cut from, if that is known.
        source: (rows, columns) of the picture that was resized to them, if that is known.
    """

    pixels: Tensor
    canvas: TiledCanvas | None
    source: Extent | None = None


class Showing(NamedTuple):
    """What came of one grey picture: of its levels, as `grey` takes them, in every window."""

    levels: np.ndarray
    pictures: list[Picture]


class Told(NamedTuple):
    """The frames of an image's windows, and what a black image looks like in them."""

    frames: list[Frame]
    black: list[Tensor]


def class_of(size: Extent) -> tuple[int, int, int]:
    """Sizes are alike whose sides lie between the same powers of 2, the same one being the longer."""
    rows, columns = size
    return rows.bit_length(), columns.bit_length(), (rows > columns) - (rows < columns)


class CannotTellError(Exception):
    """A picture that nobody asked for is refused, or shows nothing; never leaves these rooms."""


class Shortcut(Protocol):
    """A way to tell what a measurement would find."""

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Picture]) -> Told | None:
        """None: it says nothing about this size.

        Args:
            show: shows the processor a picture; raises `CannotTellError` where that is refused.
            size: (H, W) of an image.
            windows: what that image became.

        Raises:
            CannotTellError: as None.
        """
        ...

    def learn(self, size: Extent, seen: Sequence[Showing]) -> bool:
        """Learn from a measurement; False: it is of no use for this processor."""
        ...


class ThinSlices:
    """Where every window shows the whole image, stretched, a thin slice of an image tells how its length is resized."""

    def __init__(self) -> None:
        self._silent: set[tuple[int, int, int]] = set()  # classes of sizes: in vain, slices cost as much as pictures
        self._flat: dict[int, list[float]] = {}  # {level: what it becomes in every window}

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Picture]) -> Told | None:
        if class_of(size) in self._silent:
            return None
        pixels = [window.pixels for window in windows]
        try:
            axes = [self._lines(show, size, pixels, axis) for axis in (0, 1)]
        except CannotTellError:
            self._silent.add(class_of(size))
            return None
        return Told(list(zip(*axes, strict=True)), pixels)

    def learn(self, size: Extent, seen: Sequence[Showing]) -> bool:
        return True

    def _lines(self, show: ShowPicture, size: Extent, windows: Sequence[Tensor], axis: int) -> list[Line]:
        lengths = [window.shape[axis] for window in windows]
        # Without padding, black and white are the same all over.
        black, white = (
            [
                torch.full((length, 1) if axis == 0 else (1, length), value)
                for length, value in zip(lengths, self._values(show, level, len(windows)), strict=True)
            ]
            for level in (0, 255)
        )
        for thickness in SLICES:
            if 2 * thickness <= size[1 - axis]:
                slice_size = (size[0], thickness) if axis == 0 else (thickness, size[1])
                ramps = partial(_shown_slice, show, slice_size, axis, lengths)
                with suppress(CannotTellError):
                    return measure_lines(ramps, black, white, size[axis], axis)
        raise CannotTellError

    def _values(self, show: ShowPicture, level: int, count: int) -> list[float]:
        """What a level becomes in each of so many windows."""
        if level not in self._flat:
            pictures = show(grey(np.full((1, 1), level, np.uint8), (SLICES[0], SLICES[0])))
            self._flat[level] = [picture[0, 0].item() for picture in pictures]
        if len(self._flat[level]) != count:
            raise CannotTellError
        return self._flat[level]


def _shown_slice(
    show: ShowPicture, size: Extent, axis: int, lengths: Sequence[int], levels: np.ndarray
) -> list[Tensor]:
    """A slice of levels, if it becomes as long as the image does."""
    pictures = show(grey(levels, size))
    if [picture.shape[axis] for picture in pictures] != lengths:
        raise CannotTellError
    return pictures
