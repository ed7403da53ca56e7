"""Pictures of the things: cut from one sheet, repainted, and laid anywhere at any size and angle."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from lens_adapter.builtin.world.catalog import COLORS, THINGS

SHEET = Path(__file__).parent / "sprites.webp"
CELL = 128  # pixels of a cell of the sheet
COLUMNS = 8
_LEVELS = tuple(0.8**k for k in range(9))  # scales kept ready: hardly anything is shrunk while it is laid
_BORDER = 2  # transparent pixels around each, for smooth edges
_HUE_REACH = 0.11  # how far from the natural hue paint still is paint, in turns of the color circle

Slices = tuple[slice, slice]  # rows and columns of a canvas


@cache
def sheet() -> Image.Image:
    """The whole sheet, RGBA; cells in the order of `THINGS`."""
    return Image.open(SHEET).convert("RGBA")


@cache
def sprite(name: str, color: str) -> Image.Image:
    """A thing in one of its `paints`, trimmed: RGBA, at most `CELL` pixels a side."""
    k = list(THINGS).index(name)
    left, top = k % COLUMNS * CELL, k // COLUMNS * CELL
    cell = sheet().crop((left, top, left + CELL, top + CELL))
    picture = cell.crop(cell.getchannel("A").point(lambda a: 255 * (a > 25)).getbbox())
    natural = THINGS[name].color
    return picture if color == natural else _repaint(picture, natural, color)


@cache
def proportions(name: str) -> tuple[float, float, float]:
    """Width and height in fractions of the longer side, and area in fractions of its square."""
    picture = sprite(name, THINGS[name].color)
    longer = max(picture.size)
    area = float((np.asarray(picture)[..., 3] > 127).sum())
    return picture.width / longer, picture.height / longer, area / longer**2


def lay(
    name: str, color: str, *, x: float, y: float, side: float, angle: float, mirrored: bool, canvas: int
) -> tuple[Slices, np.ndarray]:
    """Where on a canvas of `canvas` x `canvas` pixels a thing comes to lie, and what is there.

    Args:
        x, y: the middle of the trimmed picture; like `side`, its longer side, in pixels of the canvas.
        angle: in radians, clockwise as seen.

    Returns:
        The window, on even rows and columns, and uint8 (h, w, 4) in it: RGB times alpha, and alpha.
    """
    width, height, _ = proportions(name)
    cos, sin = math.cos(angle), math.sin(angle)
    reach_x = (abs(cos) * width + abs(sin) * height) * side / 2 + 1
    reach_y = (abs(sin) * width + abs(cos) * height) * side / 2 + 1
    left, top = max(int(x - reach_x) // 2 * 2, 0), max(int(y - reach_y) // 2 * 2, 0)
    right, bottom = (min(-int(-(v + r) // 2) * 2, canvas) for v, r in ((x, reach_x), (y, reach_y)))
    level = min((scale for scale in _LEVELS if scale * CELL >= side), default=1.0)
    source = _scaled(name, color, level)
    zoom = (max(source.size) - 2 * _BORDER) / side  # source pixels per canvas pixel
    flip = -1 if mirrored else 1
    a, b, d, e = zoom * cos * flip, zoom * sin * flip, -zoom * sin, zoom * cos
    c = source.width / 2 + a * (left - x) + b * (top - y)
    f = source.height / 2 + d * (left - x) + e * (top - y)
    size = (max(right - left, 0), max(bottom - top, 0))
    laid = source.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return (slice(top, bottom), slice(left, right)), np.asarray(laid)


@cache
def _scaled(name: str, color: str, scale: float) -> Image.Image:
    """RGBa (colors times alpha), with a border."""
    picture = sprite(name, color)
    size = [max(round(scale * s), 1) for s in picture.size]
    bordered = Image.new("RGBa", (size[0] + 2 * _BORDER, size[1] + 2 * _BORDER))
    bordered.paste(picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS), (_BORDER, _BORDER))
    return bordered


def _repaint(picture: Image.Image, natural: str, color: str) -> Image.Image:
    """Exchange what has about the natural hue; light and shade of the paint stay, and so does everything else."""
    pixels = np.asarray(picture).astype(np.float32) / 255
    rgb = pixels[..., :3]
    hue, saturation = _hue_and_saturation(rgb)
    (named,), _ = _hue_and_saturation(np.array([COLORS[natural]], np.float32) / 255)
    away = _turn(hue - named)
    about = (pixels[..., 3] > 0.5) & (np.abs(away) < _HUE_REACH) & (saturation > 0.1)
    away -= np.median(away[about])
    vivid = saturation / np.median(saturation[about])
    share = np.clip((_HUE_REACH - np.abs(away)) / 0.03, 0, 1) * np.clip((vivid - 0.3) / 0.2, 0, 1)
    light = rgb.mean(-1)
    paint = (share > 0.5) & (pixels[..., 3] > 0.5)
    shade = light / np.median(light[paint])
    new = np.array(COLORS[color], np.float32) / 255
    dark = new * np.minimum(shade, 1)[..., None]
    glow = np.clip(shade - 1, 0, 1)[..., None] * 0.6
    painted = dark + (1 - dark) * glow
    pixels[..., :3] = rgb + share[..., None] * (painted - rgb)
    return Image.fromarray((255 * np.clip(pixels, 0, 1)).round().astype(np.uint8))


def _turn(difference: np.ndarray) -> np.ndarray:
    """A difference of hues, the shorter way around the circle."""
    return (difference + 0.5) % 1 - 0.5


def _hue_and_saturation(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 3) in [0, 1] -> hue in turns, saturation as in HSV."""
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = np.maximum(high - low, 1e-6)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    hue = np.select(
        [high == red, high == green],
        [(green - blue) / chroma % 6, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    return hue / 6, (high - low) / np.maximum(high, 1e-6)
