"""What part of the original image a preprocessed picture shows: measured, not derived from settings.

Grey pictures of the original's size go through the user's own image processor: a black one, a white one, and ramps
whose brightness is a coordinate. What comes out says where every pixel comes from, however the processor resizes,
crops, pads and normalizes, and however it arranges the result.
"""

from __future__ import annotations

from collections.abc import Callable
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
BLACK, WHITE = np.zeros((1, 1), np.uint8), np.full((1, 1), 255, np.uint8)  # levels
MAX_SIDE = 16384  # pixels; what no thin image is enlarged beyond


Show = Callable[[np.ndarray], list[Tensor]]  # levels, as `measure_frames` says -> pictures


def measure_frames(show: Show, size: tuple[int, int]) -> list[Frame]:
    """Measure the frame of every picture that preprocessing makes of an image.

    Args:
        show: preprocesses `grey(levels, shown_size(size))` and returns what comes of it: pictures, float (rows,
            columns), of one resolution or another, in any scale that is linear in brightness.
        size: (H, W) of the original image.

    Returns:
        One frame per picture. One that shows next to nothing of the image (a tile of padding, say) has a NOWHERE in it.

    Raises:
        InputError: next to no pixel of any preprocessed picture shows the image.
    """
    black, white = show(BLACK), show(WHITE)
    rows, columns = (measure_lines(show, black, white, length, axis) for axis, length in enumerate(shown_size(size)))
    frames = list(zip(rows, columns, strict=True))
    if all(NOWHERE in frame for frame in frames):
        raise InputError(
            f"An image of (H, W) = {size} is too thin: nothing in it can be located once it is preprocessed. Crop it."
        )
    return frames


def grey(levels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An RGB picture of levels, uint8, that can be broadcast to its size (H, W)."""
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(levels, size))).convert("RGB")


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the pictures that are shown to measure an image of `size`."""
    height, width = size
    return height * _multiple(size), width * _multiple(size)


def is_enlarged(size: tuple[int, int]) -> bool:
    """Whether `measure_frames` shows a multiple of an image of this size: its frame is the same, but not its tokens."""
    return _multiple(size) > 1


def _multiple(size: tuple[int, int]) -> int:
    """How much larger the picture is that stands in for an image of `size`.

    Where an image lands depends on its shape: a multiple of a tiny one lands in the same place and can be measured.
    """
    return max(1, min(ceil(MIN_SIDE / min(size)), MAX_SIDE // max(size)))


def measure_lines(show: Show, black: list[Tensor], white: list[Tensor], length: int, axis: int) -> list[Line]:
    """Measure one axis of every picture: its line.

    A ramp has 256 levels. Where the pictures show only a small part of a long axis, a second ramp spans just that part.

    Args:
        show: as for `measure_frames`.
        black: what comes of a black picture.
        white: of a white one. Normalization is undone by what these become; padding is where they do not differ.
        length: pixels along the axis, of what is shown.
        axis: 0, along y, or 1, along x.
    """
    contrasts = [bright - dark for bright, dark in zip(white, black, strict=True)]
    inside = [_between_padding(contrast.sum(1 - axis, dtype=torch.float64)) for contrast in contrasts]
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
        lines: list[Line] = []
        fitted: dict[bytes, Line] = {}  # tiles in a row share theirs
        seen = show(ramp[:, None] if axis == 0 else ramp[None, :])
        for picture, dark, contrast, line in zip(seen, black, contrasts, inside, strict=True):
            lit = contrast > 0.98 * _plateau(contrast)  # wholly image, no padding
            level = torch.where(lit, 255 * (picture - dark) / contrast, torch.nan).nanmedian(1 - axis).values
            fraction = (level / slope + low + 0.5) / length  # nan where a row or column shows no image
            key = fraction.numpy().tobytes()
            if line is None and key not in fitted:
                fitted[key] = _line(fraction)
            lines.append(line or fitted[key])
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
    slopes = ((y - y[:, None]) / (x - x[:, None])).numpy()  # every pair twice, and on the diagonal nan, the largest
    middle = len(x) * (len(x) - 1) // 2 - 1
    slope = np.partition(slopes, middle, axis=None)[middle].item()
    return slope, (y - slope * x).median().item()
