"""Antialiased shapes over a picture (matplotlib's Agg), and pictures cut to size."""

from __future__ import annotations

from math import sqrt

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.patches import BoxStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D
from PIL import Image, ImageDraw

from lens_adapter.pictures.colors import HAIRLINE, INK, RGB, WHITE
from lens_adapter.pictures.outlines import Box


class Canvas:
    """Antialiased shapes over an RGB picture.

    Args:
        picture: what to draw on.
        unit: the width of a fine line in pixels, all others are multiples of it; default: follows the picture's size.
    """

    def __init__(self, picture: Image.Image, unit: float | None = None):
        self.picture = picture
        self.unit = unit or max(0.5, 0.0022 * sqrt(picture.width * picture.height))
        # At 72 dots per inch a point is a pixel. Agg's y grows upwards.
        self._layer = RendererAgg(picture.width, picture.height, 72)
        self._upright = Affine2D().scale(1, -1).translate(0, picture.height)

    def outline(self, points: np.ndarray, color: RGB) -> None:
        """A closed line through (P, 2) x, y in pixels, on a white one that sets it off from any ground."""
        path = Path(points, closed=True)
        for width, stroke in ((4.4, (*WHITE, 225)), (2.2, (*color, 255))):
            self._draw(path, stroke=stroke, width=width * self.unit)

    def ring(self, x: float, y: float, color: RGB) -> None:
        """A small disc in a white ring with a dark hair around it."""
        for radius, fill in ((4.7, (*INK, 150)), (4.2, (*WHITE, 255)), (2.7, (*color, 255))):
            self._draw(Path.circle((x, y), max(radius * self.unit, 1.2)), fill=fill)

    def chip(self, box: Box, color: RGB) -> None:
        """A filled box with round corners."""
        left, top, right, bottom = box
        round_box = BoxStyle.Round(pad=0, rounding_size=0.22 * (bottom - top))
        self._draw(round_box(left, top, right - left, bottom - top, 1), fill=(*color, 255))

    def _draw(self, path: Path, *, stroke: RGB | None = None, width: float = 0.0, fill: RGB | None = None) -> None:
        """RGBs are red, green, blue and opacity, 0 to 255."""
        pen = self._layer.new_gc()
        pen.set_linewidth(width)
        pen.set_joinstyle("round")
        if stroke is not None:
            pen.set_foreground(_shares(stroke), isRGBA=True)
        self._layer.draw_path(pen, path, self._upright, None if fill is None else _shares(fill))
        pen.restore()

    def drawn(self) -> Image.Image:
        """The picture with everything on it."""
        layer = Image.fromarray(np.asarray(self._layer.buffer_rgba()))
        return Image.alpha_composite(self.picture.convert("RGBA"), layer).convert("RGB")


def _shares(color: RGB) -> tuple[float, float, float, float]:
    red, green, blue, opacity = color
    return red / 255, green / 255, blue / 255, opacity / 255


def stencil(mask: np.ndarray, size: tuple[int, int], opacity: float = 1.0) -> Image.Image:
    """bool (h, w), spread over a picture of `size` (W, H) -> the alpha channel that paints through it."""
    alpha = mask.astype(np.uint8) * round(255 * opacity)
    return Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC)


def scaled(picture: Image.Image, width: int) -> Image.Image:
    """`picture` made `width` wide; a tall one is made 1.25 times as high as that at most."""
    zoom = min(width / picture.width, 1.25 * width / picture.height)
    size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def framed(picture: Image.Image) -> Image.Image:
    """`picture` with slightly round corners and a hairline, on white."""
    zoom = 4
    shape = Image.new("L", (picture.width * zoom, picture.height * zoom), 0)
    edge = shape.copy()
    box = (0, 0, shape.width - 1, shape.height - 1)
    ImageDraw.Draw(shape).rounded_rectangle(box, 10 * zoom, fill=255)
    ImageDraw.Draw(edge).rounded_rectangle(box, 10 * zoom, outline=255, width=zoom)
    cut = Image.composite(picture, Image.new("RGB", picture.size, WHITE), shape.reduce(zoom))
    return Image.composite(Image.new("RGB", picture.size, HAIRLINE), cut, edge.reduce(zoom))


def to_image(pixels: np.ndarray) -> Image.Image:
    """Levels (H, W, 3), 0 to 255, rounded -> an RGB picture."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
