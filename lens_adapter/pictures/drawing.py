"""Antialiased shapes (matplotlib's Agg) and well-set text (Pillow); knows nothing of masks' meaning or of models."""

from __future__ import annotations

from functools import cache, lru_cache
from math import sqrt
from pathlib import Path as FilePath

import matplotlib
import numpy as np
from contourpy import contour_generator
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.patches import BoxStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, ...]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

WHITE, INK, GREY, HAIRLINE = (255, 255, 255), (28, 32, 38), (104, 112, 124), (222, 226, 231)


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

    def outline(self, points: np.ndarray, color: Color) -> None:
        """A closed line through (P, 2) x, y in pixels, on a white one that sets it off from any ground."""
        path = Path(points, closed=True)
        for width, stroke in ((4.4, (*WHITE, 225)), (2.2, (*color, 255))):
            self._draw(path, stroke=stroke, width=width * self.unit)

    def ring(self, x: float, y: float, color: Color) -> None:
        """A small disc in a white ring with a dark hair around it."""
        for radius, fill in ((4.7, (*INK, 150)), (4.2, (*WHITE, 255)), (2.7, (*color, 255))):
            self._draw(Path.circle((x, y), max(radius * self.unit, 1.2)), fill=fill)

    def chip(self, box: Box, color: Color) -> None:
        """A filled box with round corners."""
        left, top, right, bottom = box
        round_box = BoxStyle.Round(pad=0, rounding_size=0.22 * (bottom - top))
        self._draw(round_box(left, top, right - left, bottom - top, 1), fill=(*color, 255))

    def _draw(self, path: Path, *, stroke: Color | None = None, width: float = 0.0, fill: Color | None = None) -> None:
        """Colors are red, green, blue and opacity, 0 to 255."""
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


def _shares(color: Color) -> tuple[float, float, float, float]:
    red, green, blue, opacity = color
    return red / 255, green / 255, blue / 255, opacity / 255


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed outlines (P, 2), x then y in pixels, of a bool mask (H, W), their stairs smoothed."""
    return [_smooth(line) for line in exact_outlines(mask)]


def exact_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines (P, 2), x then y in pixels, between the pixels inside and outside a bool mask (H, W).

    The last point is the first again. Outer ones run clockwise as seen, holes counterclockwise.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    inner = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.float32), 1)
    # Index 0 is the padding, whose centre lies half a pixel outside.
    shift = np.array([left - 0.5, top - 0.5])
    return [np.asarray(line) + shift for line in contour_generator(z=inner).lines(0.5)]


def _smooth(line: np.ndarray) -> np.ndarray:
    """A closed line (P, 2), first point repeated at the end, averaged along itself; tiny ones stay as they are."""
    points = line[:-1]
    if len(points) < 24:
        return line
    weights = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1]) / 256
    points = sum(weight * np.roll(points, shift, axis=0) for shift, weight in enumerate(weights, -4))
    return np.concatenate([points, points[:1]])


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


def ink_on(color: Color) -> Color:
    """White or near-black, whichever reads better on `color` (WCAG's relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if (luminance + 0.05) ** 2 > 1.05 * 0.06 else WHITE


def font(size: int, *, bold: bool = False, text: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it; for a text that it lacks letters for, a font of the system that has them."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    usual = str(FilePath(matplotlib.get_data_path(), "fonts", "ttf", name))
    lacking = frozenset(letter for letter in text if letter.isprintable() and not _has(usual, letter))
    return _open_font((_font_with(lacking) if lacking else None) or usual, size)


@cache
def _open_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=64)
def _font_with(letters: frozenset[str]) -> str | None:
    """The file of a font that has these letters and plain ones; None: there is none here."""
    files = dict.fromkeys(entry.fname for entry in font_manager.fontManager.ttflist if entry.style == "normal")
    for file in files:
        # "Last Resort" has a box for every letter there is.
        if "LastResort" not in file and all(_has(file, letter) for letter in (*letters, "a", "0")):
            return file
    return None


def _has(file: str, letter: str) -> bool:
    return font_manager.get_font(file).get_char_index(ord(letter)) != 0


def fit(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """`text` on one line, cut with an ellipsis where it would be wider than `width` pixels; "" if nothing fits."""
    text = " ".join(text.split())
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """`text` broken between words into at most `lines` lines, the last one cut."""
    words = text.split()
    wrapped: list[str] = []
    while words and len(wrapped) < lines - 1:
        taken = 1
        while taken < len(words) and face.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        wrapped.append(fit(" ".join(words[:taken]), face, width))
        words = words[taken:]
    return [*wrapped, fit(" ".join(words), face, width)] if words else wrapped
