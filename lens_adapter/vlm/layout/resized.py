"""What resizing makes of an image, done again: a replica learns how from measurements, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from math import ceil, floor, log
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from lens_adapter.vlm.layout.frames import BLACK, MIN_SIDE, NOWHERE, WHITE, Frame, Line, grey, measure_lines
from lens_adapter.vlm.layout.shortcuts import CannotTellError, Extent, Picture, Showing, ShowPicture, Told
from lens_adapter.vlm.layout.single import TiledCanvas

Interior = tuple[tuple[int, int], tuple[int, int]]  # rows and columns: the first, and the one behind the last
NOTHING: Interior = ((0, 0), (0, 0))
_Stretch = tuple[int, int, int, int]  # along an axis: where a window begins in its canvas, and its interior


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
    """Where an image becomes pictures of the same size, or of a size that is told, what happens to a line of levels can
    be done again.

    Every way to do it, a fit and a resampling, that makes other pixels than were measured is given up.
    """

    def __init__(self) -> None:
        self._copies: list[_Copy] = []  # one for each window

    def learn(self, size: Extent, seen: Sequence[Showing]) -> bool:
        self._copies = self._copies or [_Copy() for _ in seen[0].pictures]
        return all(len(one.pictures) == len(self._copies) for one in seen) and all(
            copy.learn(size, [(one.levels, one.pictures[index]) for one in seen])
            for index, copy in enumerate(self._copies)
        )

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Picture]) -> Told | None:
        if len(windows) != len(self._copies):
            return None
        return _all_told(
            copy.tell(partial(_value, show, index), size, window, {})
            for index, (copy, window) in enumerate(zip(self._copies, windows, strict=True))
        )


class Tiles:
    """Where nothing says how tiles of one size make an image: in as many rows and columns as fit its shape best, alone,
    or with the whole image in one more tile, before or behind them. Then as a replica."""

    def __init__(self) -> None:
        self._tile: Extent | None = None
        self._copies = {whole_at: (_Copy(), _Copy()) for whole_at in (None, 0, -1)}  # {index: (of tiles, of the whole)}

    def learn(self, size: Extent, seen: Sequence[Showing]) -> bool:
        self._tile = self._tile or next((_shape(one) for one in seen[0].pictures), None)
        self._copies = {at: copies for at, copies in self._copies.items() if self._learned(at, size, seen)}
        return bool(self._copies)

    def _learned(self, whole_at: int | None, size: Extent, seen: Sequence[Showing]) -> bool:
        tile, whole = self._copies[whole_at]
        shown = [arranged for one in seen if (arranged := self._arranged(whole_at, size, one.pictures))]
        if [len(arranged) for arranged in shown] != [len(seen[0].pictures)] * len(seen):
            return False
        return all(
            (tile if window[0].canvas else whole).learn(
                size, [(one.levels, picture) for one, picture in zip(seen, window, strict=True)]
            )
            for window in zip(*shown, strict=True)
        )

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Picture]) -> Told | None:
        if len(self._copies) != 1:
            return None
        ((whole_at, (tile, whole)),) = self._copies.items()
        value, lines = partial(_value, show, 0), dict[_Stretch, Line]()
        arranged = self._arranged(whole_at, size, windows) or []
        return _all_told(
            tile.tell(value, size, one, lines) if one.canvas else whole.tell(value, size, one, {}) for one in arranged
        )

    def _arranged(self, whole_at: int | None, size: Extent, pictures: Sequence[Picture]) -> list[Picture] | None:
        """Tiles as parts of their canvas; None: they are none."""
        if {_shape(picture) for picture in pictures} != {self._tile} or any(picture.canvas for picture in pictures):
            return None
        arranged = list(pictures)
        whole = arranged.pop(whole_at) if whole_at is not None else None
        height, width = _shape(pictures[0])
        count = len(arranged)
        if count:
            columns = min(
                (n for n in range(1, count + 1) if count % n == 0),
                key=lambda n: abs(log(n * width / (count // n * height)) - log(size[1] / size[0])),
            )
            canvas = (count // columns * height, columns * width)
            for index, picture in enumerate(arranged):
                row, column = divmod(index, columns)
                lines = (row * height + torch.arange(height), column * width + torch.arange(width))
                arranged[index] = Picture(picture.pixels, TiledCanvas(canvas, *lines))
        if whole is not None:
            arranged.insert(whole_at if whole_at == 0 else len(arranged), whole)
        return arranged


def _shape(picture: Picture) -> Extent:
    rows, columns = picture.pixels.shape
    return rows, columns


def _value(show: ShowPicture, window: int, level: int) -> float:
    """What a level becomes in a window: that of a small picture of nothing else, in the middle.

    Raises:
        CannotTellError: a small picture becomes fewer windows.
    """
    pictures = show(grey(np.full((1, 1), level, np.uint8), (MIN_SIDE, MIN_SIDE)))
    if window >= len(pictures):
        raise CannotTellError
    picture = pictures[window]
    return picture[picture.shape[0] // 2, picture.shape[1] // 2].item()


def _all_told(windows: Iterable[tuple[Frame, Tensor] | None]) -> Told | None:
    """What is told of every window, if it is of each, and any shows something of the image."""
    told = []
    for window in windows:
        if window is None:
            return None
        told.append(window)
    if all(NOWHERE in frame for frame, _ in told):
        return None
    return Told(*map(list, zip(*told, strict=True)))


def _between(values: np.ndarray, level: int, value: float) -> float:
    """A level's value, if it is about where those of black and white would have it.

    Raises:
        CannotTellError: it is not: what was shown there may have been padding.
    """
    black, white = values[0], values[255]
    if not abs(value - (black + (white - black) * level / 255)) < abs(white - black) / 255 / 4:  # nor where one is nan
        raise CannotTellError
    return value


class _Copy:
    """A replica of what becomes of an image in one window."""

    def __init__(self) -> None:
        self._shape: Extent | None = None  # of every picture, if they are of no canvas
        self._padding = np.float32(np.nan)  # its value in the picture; nan: there was none
        # {way: values (256,) that levels become, nan where that was not seen}
        self._ways = {way: np.full(256, np.nan, np.float32) for way in product(FITS, RESAMPLINGS)}

    def learn(self, size: Extent, seen: Sequence[tuple[np.ndarray, Picture]]) -> bool:
        """As `Shortcut`, from levels and what became of them."""
        shown = _Shown.of(seen[0][1])
        pictures = [picture.pixels.float().cpu().numpy() for _, picture in seen]
        inside = _box(pictures[0] != pictures[1])  # a black and a white one
        if inside is None or not self._fits(seen[0][1]) or not self._pads(pictures, inside):
            return False
        if seen[0][1].canvas is None:
            self._shape = shown.canvas
        for way in list(self._ways):
            if shown.inside(way[0].places(size, shown.canvas)) != inside:
                del self._ways[way]
        if inside == NOTHING:
            return bool(self._ways)
        black, white = (float(picture[inside[0][0], inside[1][0]]) for picture in pictures[:2])
        nearly = np.linspace(black, white, 256)  # what levels become, up to rounding
        return all(
            self._follows(size, levels, shown, picture, inside, nearly)
            for (levels, _), picture in zip(seen, pictures, strict=True)
        )

    def _fits(self, picture: Picture) -> bool:
        return picture.canvas is not None or self._shape in (None, _shape(picture))

    def _follows(
        self,
        size: Extent,
        levels: np.ndarray,
        shown: _Shown,
        picture: np.ndarray,
        inside: Interior,
        nearly: np.ndarray,
    ) -> bool:
        """Give up the ways that make something else than this picture (rows, columns); False: none is left."""
        axis = int(levels.shape[1] > 1)
        image = picture[slice(*inside[0]), slice(*inside[1])]
        line = image.take(0, 1 - axis)
        if not (image == np.expand_dims(line, 1 - axis)).all():
            return False
        resized = cache(partial(_resized, levels, shown.lines[axis][slice(*inside[axis])]))
        for (fit, resampling), values in list(self._ways.items()):
            made = resized(resampling, fit.places(size, shown.canvas)[axis])
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

    def tell(
        self, value: Callable[[int], float], size: Extent, picture: Picture, lines: dict[_Stretch, Line]
    ) -> tuple[Frame, Tensor] | None:
        """The frame, and what a black image looks like.

        Args:
            value: says what a level becomes.
            lines: that are known of an image of this size; those that were not are added.
        """
        if not self._fits(picture):
            return None
        shown, shape = _Shown.of(picture), _shape(picture)
        ways = {
            (fit.places(size, shown.canvas), resampling): values for (fit, resampling), values in self._ways.items()
        }
        (inside, *others) = {shown.inside(places) for places, _ in ways}
        unknown = np.isnan(self._padding) and inside != ((0, shape[0]), (0, shape[1]))
        if others or len(ways) > MOST or unknown:
            return None

        def show_axis(axis: int, levels: np.ndarray) -> list[Tensor]:
            """One picture by each way, one pixel wide."""
            lines = np.full((len(ways), shape[axis]), self._padding)
            for line, ((places, resampling), values) in zip(lines, ways.items(), strict=True):
                made = _resized(levels, shown.lines[axis][slice(*inside[axis])], resampling, places[axis])
                for level in np.unique(made[np.isnan(values[made])]).tolist():
                    values[level] = _between(values, level, value(level))
                line[slice(*inside[axis])] = values[made]
            return list(torch.from_numpy(np.expand_dims(lines, 2 - axis)))

        black = np.full(shape, self._padding)
        if inside == NOTHING:
            return (NOWHERE, NOWHERE), torch.from_numpy(black)
        frame = []
        for axis, length in enumerate(size):
            stretch = (axis, int(shown.lines[axis][0]), *inside[axis])
            if stretch not in lines:
                show_levels = partial(show_axis, axis)
                found = measure_lines(show_levels, show_levels(BLACK), show_levels(WHITE), length, axis)
                if len(set(found)) != 1:
                    return None
                lines[stretch] = found[0]
            frame.append(lines[stretch])
        black[slice(*inside[0]), slice(*inside[1])] = next(iter(ways.values()))[0]
        return (frame[0], frame[1]), torch.from_numpy(black)


class _Shown(NamedTuple):
    """A canvas (rows, columns), and which of its rows and columns a window shows."""

    canvas: Extent
    lines: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def of(picture: Picture) -> _Shown:
        if picture.canvas is not None:
            return _Shown(picture.canvas.size, (picture.canvas.rows.numpy(), picture.canvas.columns.numpy()))
        rows, columns = _shape(picture)
        return _Shown((rows, columns), (np.arange(rows), np.arange(columns)))

    def inside(self, places: tuple[Extent, Extent]) -> Interior:
        """The rows and columns of the window that show an image which is so long and begins there."""
        (top, bottom), (left, right) = (
            np.searchsorted(line, (start, start + length)).tolist()
            for (length, start), line in zip(places, self.lines, strict=True)
        )
        return ((top, bottom), (left, right)) if top < bottom and left < right else NOTHING


def _resized(levels: np.ndarray, pixels: np.ndarray, resampling: Resampling, place: Extent) -> np.ndarray:
    """uint8 (n,): what levels along one axis, or a single one, become in those pixels of a canvas."""
    length, start = place
    made = np.full(length, levels) if levels.size == 1 else resampling(levels.ravel(), length)
    return made[pixels - start]


def _box(inside: np.ndarray) -> Interior | None:
    """The rows and columns that a rectangle of pixels (rows, columns) covers, if any; None: it is not one."""
    rows, columns = (np.flatnonzero(inside.any(axis)).tolist() for axis in (1, 0))
    if not rows:
        return NOTHING
    if not inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
        return None
    return (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
