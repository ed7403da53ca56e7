"""What resizing makes of an image, done again: a replica learns how from measurements, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import product
from math import ceil, floor, log
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.torch_version import TorchVersion
from torchvision.transforms.v2 import functional

from lens_adapter.vlm.layout.frames import BLACK, MIN_SIDE, NOWHERE, WHITE, Frame, Line, grey, measure_lines
from lens_adapter.vlm.layout.shortcuts import CannotTellError, Extent, Picture, Showing, ShowPicture, Told
from lens_adapter.vlm.layout.single import TiledCanvas

Interior = tuple[tuple[int, int], tuple[int, int]]  # rows and columns: the first, and the one behind the last
NOTHING: Interior = ((0, 0), (0, 0))
_Stretch = tuple[int, int, int, int]  # along an axis: where a window begins in its canvas, and its interior


class Place(NamedTuple):
    """Along an axis, in pixels: how long the resized image is, where it begins, and the lengths that it had before."""

    length: int
    start: int = 0
    before: tuple[int, ...] = ()


class Main(NamedTuple):
    """The axis along which an image fills a picture: 0 or 1, its length, and how long it becomes."""

    axis: int
    side: int
    filled: int


def exactly(side: int, main: Main) -> float:
    """How long a side becomes, in the proportions of the image."""
    return side * main.filled / main.side


def by_scale(side: int, main: Main) -> float:
    """As `exactly`, by a scale that is a float before it is applied."""
    return side * (main.filled / main.side)


def by_aspect(side: int, main: Main) -> float:
    """As `exactly`, by the width over the height, a float."""
    return main.filled / (main.side / side) if main.axis else main.filled * (side / main.side)


def even(length: float) -> int:
    """Rounded down, and one more where that is odd."""
    return floor(length) + floor(length) % 2


@dataclass(frozen=True)
class Fit:
    """One way of fitting an image into a picture of fixed size.

    Attributes:
        cover: whether no side is shorter than the picture's, else none is longer; None: both are as long.
        rounded: how the resized image comes to whole pixels.
        anchor: how the place where it begins does; None: it begins where the picture does.
        scaled: how long a side becomes, before that is rounded.
        stretched: the image's longer side fills the picture, and then all of it is resized to the picture's size.
        unseen: pixels of the picture, below and on the right, that belong to no token; `places` is given the rest.
    """

    cover: bool | None
    rounded: Callable[[float], int] = floor
    anchor: Callable[[float], int] | None = None
    scaled: Callable[[int, Main], float] = exactly
    stretched: bool = False
    unseen: int = 0

    def places(self, size: Extent, picture: Extent) -> tuple[Place, Place]:
        """Along y and x."""
        if self.cover is None:
            return Place(picture[0] + self.unseen), Place(picture[1] + self.unseen)
        if self.stretched:
            axis = int(size[1] >= size[0])
        else:
            axis = (max if self.cover else min)((0, 1), key=lambda axis: picture[axis] / size[axis])
        y, x = (self._place(*sides, Main(axis, size[axis], picture[axis])) for sides in zip(size, picture, strict=True))
        return y, x

    def _place(self, side: int, picture: int, main: Main) -> Place:
        length = picture if (side, picture) == main[1:] else self.rounded(self.scaled(side, main))
        if self.stretched:
            return Place(picture, before=(max(length, 1),))
        return Place(length, 0 if self.anchor is None else self.anchor((picture - length) / 2))


@dataclass(frozen=True)
class Resampling:
    """How a line of levels is resized: by Pillow or by torchvision, with one of Pillow's filters."""

    by_pillow: bool
    filter: Image.Resampling

    def __call__(self, levels: np.ndarray, length: int) -> np.ndarray:
        """uint8 (n,) -> (length,)"""
        if self.by_pillow:
            return np.asarray(Image.fromarray(levels[:, None]).resize((1, length), self.filter))[:, 0]
        picture = torch.from_numpy(levels)[None, :, None].expand(3, -1, 2).contiguous()  # torch fails at a single pixel
        mode = functional.InterpolationMode[self.filter.name]
        return functional.resize(picture, [length, 2], interpolation=mode, antialias=True)[0, :, 0].numpy()


_ROUNDINGS: tuple[Callable[[float], int], ...] = (floor, round, ceil)
_ANCHORS: tuple[Callable[[float], int] | None, ...] = (None, *_ROUNDINGS)
FITS = (
    *(Fit(None, unseen=unseen) for unseen in range(32)),
    *(Fit(*way) for way in product((True, False), _ROUNDINGS, _ANCHORS, (exactly, by_scale))),
    *(
        Fit(False, rounded, None, scaled, stretched=True)
        for rounded, scaled in product((*_ROUNDINGS, even), (exactly, by_scale, by_aspect))
    ),
)
# LANCZOS came with 0.27; processors that find an older one take BICUBIC for it.
_LANCZOS = ("LANCZOS",) if TorchVersion(torchvision.__version__) >= "0.27" else ()
RESAMPLINGS = (
    *(Resampling(True, one) for one in Image.Resampling),
    *(Resampling(False, Image.Resampling[name]) for name in ("NEAREST", "BILINEAR", "BICUBIC", *_LANCZOS)),
)
_UNSEEN = np.full(256, np.nan, np.float32)
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


class Order(NamedTuple):
    """How tiles follow one another.

    Attributes:
        whole_at: index of the one with the whole image; None: there is none.
        of_tiles: that one is what the others make, resized; else it is made of the image.
    """

    whole_at: int | None = None
    of_tiles: bool = False

    def is_whole(self, index: int, count: int) -> bool:
        """Whether that one, of so many, shows the whole image."""
        return self.whole_at is not None and index == self.whole_at % count


class Tiles:
    """Where nothing says how tiles of one size make an image: in as many rows and columns as fit its shape best, alone,
    or with the whole image in one more tile, before or behind them. Then as a replica."""

    def __init__(self) -> None:
        self._tile: tuple[Extent, Extent] | None = None  # its pixels, and those that are seen
        orders = (Order(), *map(Order._make, product((0, -1), (False, True))))
        self._copies = {order: (_Copy(), _Copy()) for order in orders}  # of the tiles, and of the whole

    def learn(self, size: Extent, seen: Sequence[Showing]) -> bool:
        self._tile = self._tile or next(map(_tile_of, seen[0].pictures), None)
        self._copies = {order: copies for order, copies in self._copies.items() if self._learned(order, size, seen)}
        return bool(self._copies)

    def _learned(self, order: Order, size: Extent, seen: Sequence[Showing]) -> bool:
        tile, whole = self._copies[order]
        shown = [arranged for one in seen if (arranged := self._arranged(order, size, one.pictures))]
        if [len(arranged) for arranged in shown] != [len(seen[0].pictures)] * len(seen):
            return False
        return all(
            (whole if order.is_whole(index, len(shown[0])) else tile).learn(
                size, [(one.levels, picture) for one, picture in zip(seen, window, strict=True)]
            )
            for index, window in enumerate(zip(*shown, strict=True))
        )

    def tell(self, show: ShowPicture, size: Extent, windows: Sequence[Picture]) -> Told | None:
        if len(self._copies) != 1:
            return None
        ((order, (tile, whole)),) = self._copies.items()
        value, lines = partial(_value, show, 0), dict[_Stretch, Line]()
        arranged = self._arranged(order, size, windows) or []
        return _all_told(
            whole.tell(value, size, one, {})
            if order.is_whole(index, len(arranged))
            else tile.tell(value, size, one, lines)
            for index, one in enumerate(arranged)
        )

    def _arranged(self, order: Order, size: Extent, pictures: Sequence[Picture]) -> list[Picture] | None:
        """Tiles as parts of their canvas; None: they are none."""
        if self._tile is None or {_tile_of(picture) for picture in pictures} != {self._tile}:
            return None
        (height, width), _ = self._tile
        wholes = [order.is_whole(index, len(pictures)) for index in range(len(pictures))]
        count = wholes.count(False)
        if not count:
            return None if order.of_tiles else list(pictures)
        columns = min(
            (n for n in range(1, count + 1) if count % n == 0),
            key=lambda n: abs(log(n * width / (count // n * height)) - log(size[1] / size[0])),
        )
        canvas = (count // columns * height, columns * width)
        places, arranged = product(range(0, canvas[0], height), range(0, canvas[1], width)), []
        for picture, whole in zip(pictures, wholes, strict=True):
            if not whole:
                (top, left), (rows, seen) = next(places), _Shown.of(picture).lines
                part = TiledCanvas(canvas, torch.from_numpy(top + rows), torch.from_numpy(left + seen))
                picture = picture._replace(canvas=part)
            elif order.of_tiles:
                picture = picture._replace(source=canvas)
            arranged.append(picture)
        return arranged


def _tile_of(picture: Picture) -> tuple[Extent, Extent]:
    """Its pixels, and those of them that are seen."""
    return (picture.canvas.size if picture.canvas else _shape(picture)), _shape(picture)


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
        self._ways = dict.fromkeys(product(FITS, RESAMPLINGS), _UNSEEN)

    def learn(self, size: Extent, seen: Sequence[tuple[np.ndarray, Picture]]) -> bool:
        """As `Shortcut`, from levels and what became of them."""
        shown = _Shown.of(seen[0][1])
        pictures = [picture.pixels.float().cpu().numpy() for _, picture in seen]
        inside = _box(pictures[0] != pictures[1])  # a black and a white one
        if inside is None or not self._fits(seen[0][1]) or not self._pads(pictures, inside):
            return False
        if seen[0][1].canvas is None:
            self._shape = _shape(seen[0][1])
        self._ways = {
            way: values.copy()
            for way, values in self._ways.items()
            if shown.inside(shown.places(way[0], size)) == inside
        }
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
            made = resized(resampling, shown.places(fit, size)[axis])
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
        ways = {(shown.places(fit, size), resampling): values for (fit, resampling), values in self._ways.items()}
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
    """A canvas (rows, columns), to what it was then resized, and which rows and columns of that a window shows."""

    canvas: Extent
    lines: tuple[np.ndarray, np.ndarray]
    resized: Extent | None = None

    @staticmethod
    def of(picture: Picture) -> _Shown:
        canvas = _shape(picture)
        lines = (np.arange(canvas[0]), np.arange(canvas[1]))
        if picture.canvas is not None:
            canvas, lines = picture.canvas.size, (picture.canvas.rows.numpy(), picture.canvas.columns.numpy())
        if picture.source is not None:
            return _Shown(picture.source, lines, canvas)
        return _Shown(canvas, lines)

    def places(self, fit: Fit, size: Extent) -> tuple[Place, Place]:
        """Where a way to fit images into the canvas places one of that size."""
        y, x = fit.places(size, self.canvas)
        if self.resized is None:
            return y, x
        y, x = (
            Place(length, place.start, (*place.before, place.length))
            for place, length in zip((y, x), self.resized, strict=True)
        )
        return y, x

    def inside(self, places: tuple[Place, Place]) -> Interior:
        """The rows and columns of the window that show an image which is placed so; of a canvas that was resized, if
        the image fills it."""
        if self.resized is not None:
            sides = zip(places, self.canvas, strict=True)
            if any(place.start != 0 or place.before[-1] != side for place, side in sides):
                return NOTHING
        (top, bottom), (left, right) = (
            np.searchsorted(line, (place.start, place.start + place.length)).tolist()
            for place, line in zip(places, self.lines, strict=True)
        )
        return ((top, bottom), (left, right)) if top < bottom and left < right else NOTHING


def _resized(levels: np.ndarray, pixels: np.ndarray, resampling: Resampling, place: Place) -> np.ndarray:
    """uint8 (n,): what levels along one axis, or a single one, become in those pixels of a canvas."""
    if levels.size == 1:
        return np.full(len(pixels), levels)
    return _whole_line(levels.tobytes(), (*place.before, place.length), resampling)[pixels - place.start]


@lru_cache(maxsize=64)  # tiles in a row and in a column share theirs
def _whole_line(levels: bytes, lengths: tuple[int, ...], resampling: Resampling) -> np.ndarray:
    """uint8 (n,): what levels become that are resized to these lengths, one after the other."""
    made = np.frombuffer(levels, np.uint8).copy()
    for length in lengths:
        made = resampling(made, length)
    return made


def _box(inside: np.ndarray) -> Interior | None:
    """The rows and columns that a rectangle of pixels (rows, columns) covers, if any; None: it is not one."""
    rows, columns = (np.flatnonzero(inside.any(axis)).tolist() for axis in (1, 0))
    if not rows:
        return NOTHING
    if not inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
        return None
    return (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
