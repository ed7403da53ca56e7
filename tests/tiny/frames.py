"""Frames of what a processor makes of whole pictures."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from lens_adapter.vlm.layout.frames import Frame, grey, measure_frames, shown_size


def measured_frames(show: Callable[[Image.Image], list[Tensor]], size: tuple[int, int]) -> list[Frame]:
    """As `measure_frames`, by a function of a picture."""
    return measure_frames(lambda levels: show(grey(levels, shown_size(size))), size)
