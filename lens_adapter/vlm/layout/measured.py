"""What a processor makes of images of one size: measured, or told by a shortcut that measurements have borne out.

A measurement shows the processor four pictures as large as the image (frames.py), and photographs differ in size. A
shortcut (shortcuts.py) says what it would find without showing any as large. It is believed only about sizes like one
that was measured and became as many windows, and only as long as every measurement found the very numbers that it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lens_adapter.errors import InputError
from lens_adapter.vlm.layout.frames import NOWHERE, Frame, grey, is_enlarged, measure_frames, shown_size
from lens_adapter.vlm.layout.resized import Replica, Tiles
from lens_adapter.vlm.layout.shortcuts import (
    CannotTellError,
    Extent,
    Picture,
    Shortcut,
    Showing,
    ThinSlices,
    Told,
    class_of,
)
from lens_adapter.vlm.layout.single import ImageTokens, Window
from lens_adapter.vlm.layout.tiled import joined
from lens_adapter.vlm.threads import one_at_a_time

MAX_CACHED = 1024  # image sizes per processor
FEW = 8  # values of padding; where there are more, it is none
ENOUGH = 5  # measurements that a shortcut agrees with before it is believed
PATIENCE = 10  # measurements within which a cheaper shortcut may still come to be believed


@dataclass(frozen=True)
class Measured:
    """What a processor makes of images of one size.

    Attributes:
        pictures: what the family counts as images, each tile where the inputs do not say which belong together.
        grids: (h, w) tokens of the windows, of all pictures in order.
        frames: of the same windows.
        shapes: (rows, columns) of the preprocessed pixels of the same windows; none where a larger size was shown.
        paddings: the few values that stand around the image in each of them, whatever the image is.
    """

    pictures: int
    grids: list[tuple[int, int]]
    frames: list[Frame]
    shapes: list[tuple[int, ...]]
    paddings: list[Tensor]


@dataclass
class Sizes:
    """What is known of what a processor makes of images, by their size (H, W). It keeps no processor.

    Attributes:
        known: by size.
        shortcuts: that no measurement has contradicted.
        agreed: {(shortcut, class of sizes, number of windows): how many measurements of such agreed}.
        measurements: how many were made.
    """

    known: dict[Extent, Measured] = field(default_factory=dict)
    shortcuts: list[Shortcut] = field(default_factory=lambda: [Replica(), Tiles(), ThinSlices()])
    agreed: Counter[tuple[Shortcut, tuple[int, int, int], int]] = field(default_factory=Counter)
    measurements: int = 0

    @one_at_a_time
    def measured(
        self, show: Callable[[Image.Image], list[ImageTokens]], size: Extent, image: Sequence[ImageTokens] | None
    ) -> Measured:
        """What a measurement of `size` finds, made once or told.

        Args:
            show: what the processor makes of a picture.
            size: (H, W).
            image: the tokens of one of that size, of each tile where the inputs do not say which make an image; None:
                it is not known which they are.

        Raises:
            InputError: as `measure_frames`.
        """
        if size not in self.known:
            if len(self.known) >= MAX_CACHED:
                self.known.clear()
            told = None if image is None else self._told(show, size, image)
            self.known[size] = told or self._measure(show, size)
        return self.known[size]

    def agreements(self, shortcut: Shortcut) -> int:
        """How many measurements have found what a shortcut says."""
        return sum(count for (one, *_), count in self.agreed.items() if one is shortcut)

    def _told(
        self, show: Callable[[Image.Image], list[ImageTokens]], size: Extent, image: Sequence[ImageTokens]
    ) -> Measured | None:
        windows = joined(image).windows
        pictures = _pictures(windows)
        for shortcut in self.shortcuts:
            if self.agreements(shortcut) < ENOUGH and self.measurements < PATIENCE:
                break  # the first ones are the cheapest: they are given time
            if self.agreements(shortcut) < ENOUGH or not self.agreed[shortcut, class_of(size), len(pictures)]:
                continue
            if told := _ask(shortcut, show, size, pictures):
                paddings = [_padding(*pair) for pair in zip(told.black, told.frames, strict=True)]
                shapes = [tuple(picture.pixels.shape) for picture in pictures]
                return Measured(len(image), [window.grid for window in windows], told.frames, shapes, paddings)
        return None

    def _measure(self, show: Callable[[Image.Image], list[ImageTokens]], size: Extent) -> Measured:
        self.measurements += 1
        images: list[ImageTokens] = []
        seen: list[Showing] = []

        def show_levels(levels: np.ndarray) -> list[Tensor]:
            made = show(grey(levels, shown_size(size)))
            images[:] = images or made
            seen.append(Showing(levels, _pictures(joined(made).windows)))
            return [picture.pixels for picture in seen[-1].pictures]

        frames = measure_frames(show_levels, size)
        count, grids = len(images), [window.grid for window in joined(images).windows]
        if is_enlarged(size):  # what was shown is a larger picture: its frame is the same, but not its pixels
            return Measured(count, grids, frames, [], [])
        black = seen[0].pictures
        paddings = [_padding(picture.pixels, frame) for picture, frame in zip(black, frames, strict=True)]
        measured = Measured(count, grids, frames, [tuple(picture.pixels.shape) for picture in black], paddings)
        for shortcut in list(self.shortcuts):
            told = _ask(shortcut, show, size, black)
            agrees = told is None or self._says(told, measured)
            if not agrees or not shortcut.learn(size, seen):
                self.shortcuts.remove(shortcut)
            elif told is not None:
                self.agreed[shortcut, class_of(size), len(black)] += 1
        return measured

    @staticmethod
    def _says(told: Told, measured: Measured) -> bool:
        paddings = [_padding(pixels, frame) for pixels, frame in zip(told.black, told.frames, strict=True)]
        return told.frames == measured.frames and all(map(torch.equal, paddings, measured.paddings))


def _ask(
    shortcut: Shortcut, show: Callable[[Image.Image], list[ImageTokens]], size: Extent, pictures: Sequence[Picture]
) -> Told | None:
    def show_windows(picture: Image.Image) -> list[Tensor]:
        try:
            return [shown.pixels for shown in _pictures(joined(show(picture)).windows)]
        except Exception as error:  # nobody asked for so thin a picture; a processor refuses it in whatever way
            raise CannotTellError from error

    try:
        return shortcut.tell(show_windows, size, pictures)
    except CannotTellError:
        return None


def _pictures(windows: Sequence[Window]) -> list[Picture]:
    return [Picture(window.pixels, window.canvas) for window in windows if window.pixels is not None]


def _padding(pixels: Tensor, frame: Frame) -> Tensor:
    """The values of those pixels of a window that lie outside of the image."""
    return (_around(pixels, frame) * 1000).round().unique() / 1000


def frames_of(image: ImageTokens, size: tuple[int, int], measured: Measured) -> list[Frame]:
    """The frames of an image's windows, if they are what was measured."""
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
        return measured.frames
    for window, shape, frame, padding in zip(
        image.windows, measured.shapes, measured.frames, measured.paddings, strict=True
    ):
        pixels = cast(Tensor, window.pixels)
        if tuple(pixels.shape) != shape:
            raise InputError(
                f"image_sizes: an image of (H, W) = {size} becomes {shape} pixels by this processor, but the inputs "
                f"have {tuple(pixels.shape)}. {advice}"
            )
        if 0 < len(padding) <= FEW:
            around = _around(pixels, frame)
            if (around[:, None] - padding).abs().amin(dim=1).max() > 0.05:  # of about 4 from black to white
                raise InputError(
                    f"image_sizes: an image of (H, W) = {size} has padding around it by this processor, but the "
                    f"inputs show something there. {advice}"
                )
    return measured.frames


def _around(pixels: Tensor, frame: Frame) -> Tensor:
    """(n,): of `pixels` (rows, columns), those that lie outside of the image, by two of them at least."""
    outside = []
    for count, (scale, offset) in zip(pixels.shape, frame, strict=True):
        edges = scale * torch.arange(count + 1, device=pixels.device) / count + offset
        margin = 2 * scale / count
        outside.append((edges[1:] < -margin) | (edges[:-1] > 1 + margin))
    rows, columns = outside
    if NOWHERE in frame or not (rows.any() or columns.any()):  # of the first there may be a little of the image in it
        return torch.zeros(0)
    return pixels[rows[:, None] | columns].float().cpu()
