"""Antialiased shapes over a picture (matplotlib's Agg), and pictures cut to size."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.patches import BoxStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D
from PIL import Image, ImageDraw

from lens_adapter.pictures.colors import HAIRLINE, INK, RGB, WHITE, ink_on
from lens_adapter.pictures.outlines import Box

# In units: how wide a line is, and how much its casing shows at each side; the radii of a ring, from outside.
LINE, CASING = 1.8, 0.9
RING = (4.6, 4.1, 2.7)


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

    def outline(self, points: np.ndarray, color: RGB, shown: np.ndarray | None = None) -> None:
        """A closed line in a casing that sets it off from any ground.

        Args:
            points: (P, 2), x then y in pixels; the first one is also the last.
            color: of the line.
            shown: bool (P,): the line is drawn from these points to the next ones only; None: from all.
        """
        path = Path(points, closed=True)
        if shown is not None and not shown.all():
            path = Path(points, np.where(np.append(False, shown[:-1]), Path.LINETO, Path.MOVETO))
        for stroke, more in ((*ink_on(color), 225), CASING), ((*color, 255), 0.0):
            self._draw(path, stroke=stroke, width=LINE + 2 * more)

    def leader(self, ends: tuple[float, float, float, float], color: RGB) -> None:
        """A straight line from x, y to x, y with a dot at its end, in a casing."""
        x0, y0, x1, y1 = ends
        for stroke, more in ((*ink_on(color), 225), CASING), ((*color, 255), 0.0):
            self._draw(Path([(x0, y0), (x1, y1)]), stroke=stroke, width=LINE + 2 * more)
            self._draw(Path.circle((x1, y1), (1.5 * LINE + more) * self.unit), fill=stroke)

    def ring(self, x: float, y: float, color: RGB, most: float = inf) -> None:
        """A small disc in a white ring with a dark hair around it, of a radius of at most `most` pixels."""
        scale = min(self.unit, max(most, 1.2) / RING[0])
        for radius, ink in zip(RING, ((*INK, 150), (*WHITE, 255), (*color, 255)), strict=True):
            self._draw(Path.circle((x, y), max(radius * scale, 0.8)), fill=ink)

    def chip(self, box: Box, color: RGB) -> None:
        """A filled box with round corners."""
        left, top, right, bottom = box
        round_box = BoxStyle.Round(pad=0, rounding_size=0.22 * (bottom - top))
        self._draw(round_box(left, top, right - left, bottom - top, 1), fill=(*color, 255))

    def _draw(self, path: Path, *, stroke: RGB | None = None, width: float = 0.0, fill: RGB | None = None) -> None:
        """RGBs are red, green, blue and opacity, 0 to 255; `width` in units."""
        pen = self._layer.new_gc()
        pen.set_linewidth(max(width * self.unit, 1.0) if width else 0.0)
        pen.set_capstyle("butt")
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
