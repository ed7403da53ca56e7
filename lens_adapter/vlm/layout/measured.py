"""What a processor makes of images of one size: measured, or by a rule that it was found to follow.

A measurement shows the processor several pictures as large as the image (frames.py), which costs several times what
the image itself does; and photographs differ in size. So, once per processor and its settings, small pictures are
measured, and the rules that explain all of them are kept (rules.py). A size is told by these rules only where a
measurement in its class of sizes bears them out. Where that fails, or the rules disagree, the size itself is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL.Image import Image
from torch import Tensor

from lens_adapter.errors import InputError
from lens_adapter.vlm.layout.frames import NOWHERE, Frame, is_enlarged, measure_frames
from lens_adapter.vlm.layout.rules import RULES, Rule, Size, apart, frame_by
from lens_adapter.vlm.layout.single import ImageTokens, Window
from lens_adapter.vlm.layout.tiled import joined

Show = Callable[[Image], list[ImageTokens]]  # what the processor makes of a picture, by the model's family

MAX_CACHED = 1024  # image sizes per processor
FEW = 8  # values of padding; where there are more, it is none

# (H, W) that rules are found by: wide, tall and nearly square ones, odd, so that every way of rounding shows, and of
# lengths that a ramp of 256 levels tells apart pixel by pixel; and two where it shows, for pictures of a multiple of
# 336 or 384 pixels, whether a scale was rounded to a float.
LESSONS: tuple[Size, ...] = (
    *((251, 382), (381, 247), (241, 253), (127, 311), (341, 123)),
    *((180, 240), (220, 352)),
)
ENOUGH = 3  # lessons with as many windows
# How far a measured edge may lie off, in tokens; and of a large picture, also as a share of the image.
EXACT, SHARE = 0.02, 0.001
SAME = 0.004  # tokens that two rules may differ by and still say the same


@dataclass(frozen=True)
class Measured:
    """What a processor makes of images of one size.

    Attributes:
        pictures: what the family counts as images, each tile where the inputs do not say which belong together.
        grids: (h, w) tokens of the windows, of all pictures in order.
        frames: of the same windows.
        shapes: (rows, columns) of the preprocessed pixels of the same windows; none where another size was shown.
        paddings: the few values that stand around the image in each of them, whatever the image is.
    """

    pictures: int
    grids: list[tuple[int, int]]
    frames: list[Frame]
    shapes: list[tuple[int, int]]
    paddings: list[Tensor]


def measure(show: Show, size: Size) -> Measured:
    """Show the processor pictures as large as an image of `size`, or a multiple of it where it is tiny.

    Raises:
        InputError: as `measure_frames`.
    """
    return _measure_windows(show, size)[0]


def _measure_windows(show: Show, size: Size) -> tuple[Measured, tuple[Window, ...]]:
    """Also the windows, of a black picture."""
    black: list[ImageTokens] = []

    def pixels_of(picture: Image) -> list[Tensor]:
        images = show(picture)
        black.extend([] if black else images)  # that is the first
        return [window.pixels for image in images for window in image.windows if window.pixels is not None]

    frames = measure_frames(pixels_of, size)
    windows = joined(black).windows
    grids = [window.grid for window in windows]
    if is_enlarged(size):  # what was shown is a larger picture: its frame is the same, but not its pixels
        return Measured(len(black), grids, frames, [], []), windows
    paddings = [_around(*pair).unique() for pair in zip(windows, frames, strict=True)]
    return Measured(len(black), grids, frames, [window.shape for window in windows], paddings), windows


def _around(window: Window, frame: Frame) -> Tensor:
    """(n,), in thousandths: the pixels of a window that lie outside of the image, by two of them at least."""
    if NOWHERE in frame or window.pixels is None:  # there may be a little of the image in it
        return torch.zeros(0)
    outside = []
    for count, (scale, offset) in zip(window.shape, frame, strict=True):
        edges = scale * torch.arange(count + 1) / count + offset
        margin = 2 * scale / count
        outside.append((edges[1:] < -margin) | (edges[:-1] > 1 + margin))
    rows, columns = outside
    if not rows.any() and not columns.any():
        return torch.zeros(0)
    pixels = window.pixels[(rows[:, None] | columns).to(window.pixels.device)]
    return (pixels.float().cpu() * 1000).round() / 1000


def require_same(image: ImageTokens, size: Size, measured: Measured) -> None:
    """Refuse an image whose windows are not those that were measured.

    Raises:
        InputError: says what differs.
    """
    got = [window.grid for window in image.windows]
    advice = (
        "Give the sizes of the very images that were processed, in order, and the same processor: with the settings "
        "that it was called with, if those were a call's own."
    )
    if measured.grids != got and (not is_enlarged(size) or len(measured.grids) != len(got)):
        raise InputError(
            f"image_sizes: an image of (H, W) = {size} has token grids {measured.grids} by this processor, but the "
            f"inputs have {got}. {advice}"
        )
    if is_enlarged(size):
        return
    for window, shape, frame, padding in zip(
        image.windows, measured.shapes, measured.frames, measured.paddings, strict=True
    ):
        if window.shape != shape:
            raise InputError(
                f"image_sizes: an image of (H, W) = {size} becomes {shape} pixels by this processor, but the inputs "
                f"have {window.shape}. {advice}"
            )
        around = _around(window, frame) if 0 < len(padding) <= FEW else padding[:0]
        if len(around) and (around[:, None] - padding).abs().amin(dim=1).max() > 0.05:  # of about 4, black to white
            raise InputError(
                f"image_sizes: an image of (H, W) = {size} has padding around it by this processor, but the "
                f"inputs show something there. {advice}"
            )


@dataclass(frozen=True)
class Told:
    """What the lessons say about one window.

    Attributes:
        rules: that explain its frame in all of them.
        shapes: that it had.
        padding: the values around the image in it.
    """

    rules: tuple[Rule, ...]
    shapes: frozenset[Size]
    padding: Tensor

    def frame(self, size: Size, window: Window) -> Frame | None:
        """Of a window of an image of `size`; None: the rules disagree, or the window is not one that they are about."""
        fits = window.shape in self.shapes if len(self.shapes) == 1 else _one_scale(size, window)
        if not self.rules or not fits:
            return None
        first, *others = (frame_by(rule, size, window) for rule in self.rules)
        same = all(off <= SAME for other in others for off, _ in apart([first], [other], [window]))
        return first if same else None


def _one_scale(size: Size, window: Window) -> bool:
    """Whether a window may show the whole of an image of `size`, resized evenly and then to whole tokens."""
    for more, less in ((0, 1), (0.5, 0.5), (1, 0)):  # what rounding down, to the nearest, and up has left or added
        scales = [
            ((tokens - more) / tokens * count / side, (tokens + less) / tokens * count / side)
            for side, count, tokens in zip(size, window.shape, window.grid, strict=True)
        ]
        if max(low for low, _ in scales) < min(high for _, high in scales):
            return True
    return False


@dataclass
class Sizes:
    """What is known of what a processor makes of images, by their size (H, W). It keeps no processor.

    Attributes:
        measured: sizes that were measured themselves.
        told: {number of windows: of each}, what the lessons say; None: they were not given yet.
        borne_out: {class of sizes: whether a measurement in it has borne that out}.
    """

    measured: dict[Size, Measured] = field(default_factory=dict)
    told: dict[int, tuple[Told, ...]] | None = None
    borne_out: dict[tuple[int, int, bool, int], bool] = field(default_factory=dict)

    def measure(self, show: Show, size: Size) -> Measured:
        """As the function `measure`, once."""
        if size not in self.measured:
            if len(self.measured) >= MAX_CACHED:
                self.measured.clear()
            self.measured[size] = measure(show, size)
        return self.measured[size]

    def tell(self, show: Show, size: Size, image: ImageTokens) -> Measured | None:
        """What is known of an image of `size` with such windows without showing the processor one as large.

        None: nothing. The first image of its class of sizes, whose sides lie between the same powers of 2, pays for one
        measurement of the class; the very first of all for the lessons.
        """
        if is_enlarged(size):
            return None
        if self.told is None:
            self.told = _lessons(show)
        frames = self._frames(size, image.windows)
        rows, columns = (side.bit_length() for side in size)
        key = (rows, columns, size[0] > size[1], len(image.windows))
        if frames is None:
            return None
        if key not in self.borne_out:
            self.borne_out[key] = self._is_borne_out(show, _in_the_middle(*key[:3]))
        if not self.borne_out[key]:
            return None
        windows = image.windows
        paddings = [one.padding for one in self.told[len(windows)]]
        return Measured(1, [window.grid for window in windows], frames, [window.shape for window in windows], paddings)

    def _frames(self, size: Size, windows: Sequence[Window]) -> list[Frame] | None:
        known = (self.told or {}).get(len(windows), ())
        frames = [one.frame(size, window) for one, window in zip(known, windows, strict=False)]
        whole = [frame for frame in frames if frame is not None]
        return whole if len(whole) == len(windows) else None

    def _is_borne_out(self, show: Show, size: Size) -> bool:
        """Whether what the lessons say about `size` is what is measured there."""
        if is_enlarged(size) or (shown := _try(show, size)) is None:
            return False
        measured, windows = shown
        frames = self._frames(size, windows)
        if frames is None or measured.pictures != 1:
            return False
        return all(off <= EXACT + SHARE * length for off, length in apart(measured.frames, frames, windows))


def _in_the_middle(rows: int, columns: int, tall: bool) -> Size:
    """A size whose sides have as many bits, somewhat above the least, and not square."""
    less, more = 9 / 16, 11 / 16
    height, width = (more, less) if tall else (less, more)
    return int(height * 2**rows) + 1, int(width * 2**columns) + 1


def _lessons(show: Show) -> dict[int, tuple[Told, ...]]:
    """See which rules explain the frames of the sizes of `LESSONS`, as long as any does."""
    told: dict[int, tuple[Told, ...]] = {}
    given: Counter[int] = Counter()
    for size in LESSONS:
        if (shown := _try(show, size)) is None:
            continue
        measured, windows = shown
        if measured.pictures != 1:  # how many pictures make an image is not known before
            return {}
        given[len(windows)] += 1
        before = told.get(len(windows)) or tuple(Told(RULES, frozenset(), torch.zeros(0)) for _ in windows)
        told[len(windows)] = tuple(
            Told(
                tuple(rule for rule in one.rules if _explains(rule, size, window, frame)),
                one.shapes | {window.shape},
                torch.cat([one.padding, padding]).unique(),
            )
            for one, window, frame, padding in zip(before, windows, measured.frames, measured.paddings, strict=True)
        )
        if not any(all(one.rules for one in windows) for windows in told.values()):
            return {}
    return {count: tuple(map(_simplest, told[count])) for count in told if given[count] >= ENOUGH}


def _simplest(told: Told) -> Told:
    """Where every lesson shows the whole image, a rule that rounds to as much says nothing beyond that."""
    return replace(told, rules=tuple(rule for rule in told.rules if rule.fit == "stretch") or told.rules)


def _explains(rule: Rule, size: Size, window: Window, frame: Frame) -> bool:
    return all(off <= EXACT for off, _ in apart([frame], [frame_by(rule, size, window)], [window]))


def _try(show: Show, size: Size) -> tuple[Measured, tuple[Window, ...]] | None:
    """As `_measure_windows`, of a size that nobody asked for: None where it cannot be measured."""
    try:
        return _measure_windows(show, size)
    except Exception:  # a processor meets what it cannot use with whatever error it runs into first
        return None
