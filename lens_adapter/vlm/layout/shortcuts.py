"""What a measurement of a size would find, without showing the processor pictures as large: two ways.

Neither is derived from settings, and neither is believed before measurements were found to say the very same
(measured.py). Both make what a measurement would have seen along one axis, and leave the rest to frames.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from math import ceil, floor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from lens_adapter.vlm.layout.frames import BLACK, MIN_SIDE, WHITE, Frame, Line, grey, measure_lines

Extent = tuple[int, int]  # (rows, columns)
Interior = tuple[tuple[int, int], tuple[int, int]]  # rows and columns: the first, and the one behind the last
ShowPicture = Callable[[Image.Image], list[Tensor]]  # a picture -> (rows, columns) of each of its windows
SLICES = (64, 128, 256)  # pixels


class Showing(NamedTuple):
    """What came of one grey picture: of its levels, as `grey` takes them, in every window (rows, columns)."""

    levels: np.ndarray
    pictures: list[Tensor]


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

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Tensor]) -> Told | None:
        """None: it says nothing about this size.

        Args:
            show: shows the processor a picture; raises `CannotTellError` where that is refused.
            size: (H, W) of an image.
            windows: (rows, columns) of that image, as processed.

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

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Tensor]) -> Told | None:
        if class_of(size) in self._silent:
            return None
        try:
            axes = [self._lines(show, size, windows, axis) for axis in (0, 1)]
        except CannotTellError:
            self._silent.add(class_of(size))
            return None
        return Told(list(zip(*axes, strict=True)), list(windows))

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


@dataclass(frozen=True)
class Fit:
    """One way of fitting an image into a picture of fixed size.

    Attributes:
        cover: whether no side is shorter than the picture's, else none is longer; None: both are as long.
        rounded: how the resized image comes to whole pixels.
        anchor: how the place where it begins does; None: it begins where the picture does.
        by_float: the scale is a float before it is applied.
        unseen: pixels of the picture, below and on the right, that belong to no token; `places` is given the rest.
    """

    cover: bool | None
    rounded: Callable[[float], int] = floor
    anchor: Callable[[float], int] | None = None
    by_float: bool = False
    unseen: int = 0

    def places(self, size: Extent, picture: Extent) -> tuple[Extent, Extent]:
        """Along y and x, in pixels of the picture: how long the resized image is, and where it begins."""
        if self.cover is None:
            return (picture[0] + self.unseen, 0), (picture[1] + self.unseen, 0)
        pick = max if self.cover else min
        main = pick((0, 1), key=lambda axis: picture[axis] / size[axis])
        y, x = (self._place(size[axis], picture[axis], size[main], picture[main]) for axis in (0, 1))
        return y, x

    def _place(self, side: int, picture: int, main: int, filled: int) -> Extent:
        if (side, picture) == (main, filled):
            length = picture
        else:
            length = self.rounded(side * (filled / main) if self.by_float else side * filled / main)
        return length, 0 if self.anchor is None else self.anchor((picture - length) / 2)


@dataclass(frozen=True)
class Resampling:
    """How a line of levels is resized: by Pillow or by torchvision, with one of Pillow's filters."""

    by_pillow: bool
    filter: Image.Resampling

    def __call__(self, levels: np.ndarray, length: int) -> np.ndarray:
        """uint8 (n,) -> (length,)"""
        if self.by_pillow:
            return np.asarray(Image.fromarray(levels[:, None]).resize((1, length), self.filter))[:, 0]
        picture = torch.from_numpy(levels)[None, :, None].expand(3, -1, 1).contiguous()
        mode = functional.InterpolationMode[self.filter.name]
        return functional.resize(picture, [length, 1], interpolation=mode, antialias=True)[0, :, 0].numpy()


_ROUNDINGS: tuple[Callable[[float], int], ...] = (floor, round, ceil)
_ANCHORS: tuple[Callable[[float], int] | None, ...] = (None, *_ROUNDINGS)
FITS = (
    *(Fit(None, unseen=unseen) for unseen in range(32)),
    *(
        Fit(cover, rounded, anchor, by_float)
        for cover, rounded, anchor, by_float in product((True, False), _ROUNDINGS, _ANCHORS, (False, True))
    ),
)
RESAMPLINGS = (
    *(Resampling(True, one) for one in Image.Resampling),
    *(Resampling(False, Image.Resampling[name]) for name in ("NEAREST", "BILINEAR", "BICUBIC")),
)
MOST = 12  # ways that are still possible; of more, one waits for measurements to tell them apart


class Replica:
    """Where every image becomes one picture of the same size, what happens to a line of levels can be done again.

    Every way to do it, a fit and a resampling, that makes other pixels than were measured is given up.
    """

    def __init__(self) -> None:
        self._shape: Extent | None = None
        self._padding = np.float32(np.nan)  # its value in the picture; nan: there was none
        # {way: values (256,) that levels become, nan where that was not seen}
        self._ways = {way: np.full(256, np.nan, np.float32) for way in product(FITS, RESAMPLINGS)}

    def learn(self, size: Extent, seen: Sequence[Showing]) -> bool:
        if any(len(one.pictures) != 1 for one in seen):
            return False
        pictures = [one.pictures[0].float().cpu().numpy() for one in seen]
        shape = pictures[0].shape
        inside = _box(pictures[0] != pictures[1])  # a black and a white one
        if inside is None or self._shape not in (None, shape) or not self._pads(pictures, inside):
            return False
        self._shape = shape
        for way in list(self._ways):
            if _inside(way[0].places(size, shape), shape) != inside:
                del self._ways[way]
        black, white = (float(picture[inside[0][0], inside[1][0]]) for picture in pictures[:2])
        nearly = np.linspace(black, white, 256)  # what levels become, up to rounding
        return all(self._follows(size, *pair, inside, nearly) for pair in zip(seen, pictures, strict=True))

    def _follows(self, size: Extent, seen: Showing, picture: np.ndarray, inside: Interior, nearly: np.ndarray) -> bool:
        """Give up the ways that make something else than this picture (rows, columns); False: none is left."""
        axis = int(seen.levels.shape[1] > 1)
        image = picture[slice(*inside[0]), slice(*inside[1])]
        line = image.take(0, 1 - axis)
        if not (image == np.expand_dims(line, 1 - axis)).all():
            return False
        resized = cache(partial(_resized, seen.levels))
        for (fit, resampling), values in list(self._ways.items()):
            made = resized(resampling, fit.places(size, picture.shape)[axis], inside[axis])
            before = values[made]
            values[made] = line
            same = (np.isnan(before) | (before == line)) & (values[made] == line)
            if not (same & (abs(line - nearly[made]) < abs(nearly[1] - nearly[0]) / 4)).all():
                del self._ways[fit, resampling]
        return bool(self._ways)

    def _pads(self, pictures: Sequence[np.ndarray], inside: Interior) -> bool:
        """Whether pictures have nothing but the same value around the image, as those before them."""
        around = np.ones(pictures[0].shape, bool)
        around[slice(*inside[0]), slice(*inside[1])] = False
        for padding in np.unique([picture[around] for picture in pictures]):
            if not np.isnan(self._padding) and padding != self._padding:
                return False
            self._padding = padding
        return True

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Tensor]) -> Told | None:
        shape = self._shape
        if shape is None or [tuple(window.shape) for window in windows] != [shape]:
            return None
        ways = {(fit.places(size, shape), resampling): values for (fit, resampling), values in self._ways.items()}
        (inside, *others) = {_inside(places, shape) for places, _ in ways}
        if others or len(ways) > MOST:
            return None

        def show_axis(axis: int, levels: np.ndarray) -> list[Tensor]:
            """One picture by each way, one pixel wide."""
            lines = np.full((len(ways), shape[axis]), self._padding)
            for line, ((places, resampling), values) in zip(lines, ways.items(), strict=True):
                made = _resized(levels, resampling, places[axis], inside[axis])
                for level in np.unique(made[np.isnan(values[made])]).tolist():
                    values[level] = self._value(show, level)
                line[slice(*inside[axis])] = values[made]
            return list(torch.from_numpy(np.expand_dims(lines, 2 - axis)))

        frame = []
        for axis, length in enumerate(size):
            show_levels = partial(show_axis, axis)
            lines = measure_lines(show_levels, show_levels(BLACK), show_levels(WHITE), length, axis)
            if len(set(lines)) != 1:
                return None
            frame.append(lines[0])
        black = np.full(shape, self._padding)
        black[slice(*inside[0]), slice(*inside[1])] = next(iter(ways.values()))[0]
        return Told([(frame[0], frame[1])], [torch.from_numpy(black)])

    def _value(self, show: ShowPicture, level: int) -> float:
        """What a level becomes: that of a small picture of nothing else, in the middle of the window."""
        (picture,) = show(grey(np.full((1, 1), level, np.uint8), (MIN_SIDE, MIN_SIDE)))
        return picture[picture.shape[0] // 2, picture.shape[1] // 2].item()


def _resized(levels: np.ndarray, resampling: Resampling, place: Extent, inside: Extent) -> np.ndarray:
    """uint8 (n,): what levels along one axis, or a single one, become in those pixels of a picture."""
    length, start = place
    made = np.full(length, levels) if levels.size == 1 else resampling(levels.ravel(), length)
    return made[inside[0] - start : inside[1] - start]


def _inside(places: tuple[Extent, Extent], shape: Extent) -> Interior:
    """The rows and columns of a picture that show an image which is so long and begins there."""
    y, x = ((max(start, 0), min(start + length, n)) for (length, start), n in zip(places, shape, strict=True))
    return y, x


def _box(inside: np.ndarray) -> Interior | None:
    """The rows and columns that a rectangle of pixels (rows, columns) covers; None: it is not one."""
    rows, columns = (np.flatnonzero(inside.any(axis)).tolist() for axis in (1, 0))
    if not rows or not inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
        return None
    return (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
