"""What part of the original image a preprocessed picture shows: measured, not derived from settings.

Grey pictures of the original's size go through the user's own image processor: a black one, a white one, and ramps
whose brightness is a coordinate. What comes out says where every pixel comes from, however the processor resizes,
crops, pads and normalizes, and however it arranges the result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, floor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lens_adapter.errors import InputError

Line = tuple[float, float]  # (a, b): fraction of the original = a * fraction of the picture + b
Frame = tuple[Line, Line]  # along y, along x
WHOLE: Frame = ((1.0, 0.0), (1.0, 0.0))
NOWHERE: Line = (1.0, -2.0)  # of a picture that shows next to none of the image: all of it lies outside

MIN_SIDE = 24  # pixels; a ramp over fewer says little, because interpolation bends its ends
MAX_SIDE = 16384  # pixels; what no thin image is enlarged beyond


def measure_frames(show: Callable[[Image.Image], list[Tensor]], size: tuple[int, int]) -> list[Frame]:
    """Measure the frame of every picture that preprocessing makes of an image.

    Args:
        show: preprocesses an RGB image and returns what comes of it: pictures, float (rows, columns), of one resolution
            or another, in any scale that is linear in brightness.
        size: (H, W) of the original image.

    Returns:
        One frame per picture. One that shows next to nothing of the image (a tile of padding, say) has a NOWHERE in it.

    Raises:
        InputError: next to no pixel of any preprocessed picture shows the image.
    """
    height, width = (_multiple(size) * side for side in size)

    def show_grey(levels: np.ndarray) -> list[Tensor]:
        grey = Image.fromarray(np.ascontiguousarray(np.broadcast_to(levels, (height, width))))
        return show(grey.convert("RGB"))

    # Normalization is undone by what black and white become; padding is where they do not differ.
    black, white = show_grey(np.zeros((1, 1), np.uint8)), show_grey(np.full((1, 1), 255, np.uint8))
    contrasts = [bright - dark for bright, dark in zip(white, black, strict=True)]

    def show_ramp(axis: int, ramp: np.ndarray) -> list[Tensor]:
        seen = show_grey(ramp[:, None] if axis == 0 else ramp[None, :])
        return [picture - dark for picture, dark in zip(seen, black, strict=True)]

    rows = _measure_axis(partial(show_ramp, 0), contrasts, height, axis=0)
    columns = _measure_axis(partial(show_ramp, 1), contrasts, width, axis=1)
    frames = list(zip(rows, columns, strict=True))
    if all(NOWHERE in frame for frame in frames):
        raise InputError(
            f"An image of (H, W) = {size} is too thin: nothing in it can be located once it is preprocessed. Crop it."
        )
    return frames


def is_enlarged(size: tuple[int, int]) -> bool:
    """Whether `measure_frames` shows a multiple of an image of this size: its frame is the same, but not its tokens."""
    return _multiple(size) > 1


def _multiple(size: tuple[int, int]) -> int:
    """How much larger the picture is that stands in for an image of `size`.

    Where an image lands depends on its shape: a multiple of a tiny one lands in the same place and can be measured.
    """
    return max(1, min(ceil(MIN_SIDE / min(size)), MAX_SIDE // max(size)))


def _measure_axis(
    show: Callable[[np.ndarray], list[Tensor]], contrasts: list[Tensor], length: int, axis: int
) -> list[Line]:
    """Fit the line of every picture along one axis.

    A ramp has 256 levels. Where the pictures show only a small part of a long axis, a second ramp spans just that part.
    """
    inside = [_between_padding(contrast.sum(1 - axis)) for contrast in contrasts]
    known = [line for line in inside if line is not None]
    if len(known) == len(inside):
        return known
    if length < 4:
        return [line or NOWHERE for line in inside]
    low, high = 0, length - 1  # the ramp's first and last pixel
    while True:
        # Whole levels per pixel where there are enough of them: then the ramp is exact.
        slope = max(255 // (high - low), 1) if high - low <= 255 else 255 / (high - low)
        ramp = np.clip((np.arange(length) - low) * slope, 0, 255).round().astype(np.uint8)
        lines = []
        for seen, contrast, line in zip(show(ramp), contrasts, inside, strict=True):
            lit = contrast > 0.98 * _plateau(contrast)  # wholly image, no padding
            level = torch.where(lit, 255 * seen / contrast, torch.nan).nanmedian(1 - axis).values
            fraction = (level / slope + low + 0.5) / length  # nan where a row or column shows no image
            lines.append(line or _line(fraction))
        ends = np.clip([end for a, b in lines if (a, b) != NOWHERE for end in (b, a + b)], 0, 1) * length
        if not ends.size or ends.max() - ends.min() > (high - low) / 8 or high - low <= 16:
            return lines
        margin = 2 + 2 / slope  # two pixels and two levels
        low, high = max(floor(ends.min() - margin), 0), min(ceil(ends.max() + margin), length - 1)


def _between_padding(profile: Tensor) -> Line | None:
    """The line along an axis with padding at both ends: all of the image is in between. None: there is no such padding.

    Sums see edges that interpolation has blurred, however few pixels the image is thick.
    """
    if not profile.any():
        return NOWHERE
    profile = profile / _plateau(profile)
    if max(profile[0], profile[-1]) > 0.5:
        return None
    thickness = profile.sum()
    if thickness < 3:  # pixels; less never reaches full contrast, and what that is stays unknown
        return NOWHERE
    where = (torch.arange(len(profile)) + 0.5) / len(profile)
    scale = (len(profile) / thickness).item()
    return scale, 0.5 - scale * ((profile * where).sum() / thickness).item()


def _plateau(values: Tensor) -> Tensor:
    """The usual height of what is high."""
    return values[values > 0.5 * values.max()].median()


def _line(values: Tensor) -> Line:
    """The line through values along [0, 1], by Theil and Sen: medians, which bent ends cannot pull."""
    x, y = ((torch.arange(len(values)) + 0.5) / len(values))[values.isfinite()], values[values.isfinite()]
    if len(x) < 2:
        return NOWHERE
    first, second = torch.triu_indices(len(x), len(x), offset=1)
    slope = ((y[second] - y[first]) / (x[second] - x[first])).median()
    return slope.item(), (y - slope * x).median().item()
