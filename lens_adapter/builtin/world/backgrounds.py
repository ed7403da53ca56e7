"""Backdrops that look like blurred photographs, from random numbers alone; the same for a seed at every size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Rng = np.random.Generator
Color = tuple[float, float, float]


def paint_background(rng: Rng, side: int) -> np.ndarray:
    """float32 (side, side, 3), 0 to 255."""
    canvas = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))](rng, side)
    x, y = _axes(side)
    towards = rng.uniform(-0.09, 0.09, 2)  # light falls in from somewhere, corners are a little darker
    light = 1 + towards[0] * x + towards[1] * y - rng.uniform(0.02, 0.1) * (x**2 + y**2)
    tint = 1 + rng.uniform(-0.03, 0.03, 3)
    return np.clip(canvas * light[..., None] * tint, 0, 255).astype(np.float32)


def _axes(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, side) and y (side, 1), -1 to 1."""
    line = np.linspace(-1 + 1 / side, 1 - 1 / side, side, dtype=np.float32)
    return line[None, :], line[:, None]


def _noise(rng: Rng, side: int, rows: int, columns: int | None = None) -> np.ndarray:
    """(side, side), about -1 to 1: smooth noise of so many bumps down and across."""
    grid = rng.uniform(-1, 1, (rows, columns or rows)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))


def _clouds(rng: Rng, side: int, rows: int, columns: int | None = None, octaves: int = 4) -> np.ndarray:
    """(side, side), about -1 to 1: noise at several scales, each finer and weaker."""
    columns = columns or rows
    layers = (_noise(rng, side, rows * 2**k, columns * 2**k) * 0.55**k for k in range(octaves))
    return sum(layers, np.zeros((side, side), np.float32)) * 0.8


def _mix(share: np.ndarray, first: Color, second: Color) -> np.ndarray:
    """(side, side) -> (side, side, 3): `first` where the share is 0, `second` where it is 1."""
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    return a + np.clip(share, 0, 1)[..., None] * (b - a)


def _color(rng: Rng, *colors: Color, spread: float = 10) -> Color:
    """One of the colors, varied a little."""
    chosen = np.array(colors[int(rng.integers(len(colors)))]) + rng.uniform(-spread, spread, 3)
    return tuple(chosen.tolist())


def _blur(canvas: np.ndarray, radius: float) -> np.ndarray:
    """Out of focus; `radius` in fractions of the side."""
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius * len(canvas))), np.float32)


def _sky(rng: Rng, side: int) -> np.ndarray:
    _, y = _axes(side)
    high = _color(rng, (92, 146, 204), (110, 160, 210), (120, 150, 190))
    low = _color(rng, (186, 212, 232), (214, 220, 224), (232, 214, 196))
    veil = np.clip(_clouds(rng, side, 3, 2) * 1.1 - rng.uniform(-0.2, 0.3), 0, 1) * rng.uniform(0.3, 0.75)
    canvas = _mix((y + 1) / 2 + np.zeros((1, side)), high, low)
    return canvas + veil[..., None] * (236 - canvas)


def _field(rng: Rng, side: int) -> np.ndarray:
    """A meadow or a beach under a sky, the far end out of focus."""
    x, y = _axes(side)
    horizon = rng.uniform(-0.55, -0.15)
    sky = _mix((y + 1) / (horizon + 1) + 0 * x, _color(rng, (130, 172, 214)), _color(rng, (214, 226, 234)))
    near, far = ((112, 140, 66), (150, 168, 98)) if rng.random() < 0.65 else ((196, 172, 130), (216, 198, 160))
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1) + np.zeros_like(x)
    ground = _mix(depth, _color(rng, far), _color(rng, near))
    ground += (_noise(rng, side, 40, 26) * 16 * depth + _noise(rng, side, 90, 60) * 12 * depth**2)[..., None]
    ground += (_noise(rng, side, 8, 3) * 10)[..., None]
    treeline = horizon - np.clip(_clouds(rng, side, 1, 5)[:1] * 0.14 + 0.08, 0, None)
    trees = _mix(_clouds(rng, side, 7, 9) + 0.5, (74, 100, 66), (116, 140, 96))
    canvas = np.where((y < horizon)[..., None], np.where((y < treeline)[..., None], sky, trees), ground)
    soft = _blur(canvas, 0.02)
    sharp = np.clip((depth - 0.15) * 2, 0, 1)[..., None]
    return soft + sharp * (canvas - soft)


def _grass(rng: Rng, side: int) -> np.ndarray:
    """Seen from above."""
    blades = (
        _noise(rng, side, 34, 80) * 0.35 + _noise(rng, side, 60, 100) * 0.3 + _clouds(rng, side, 4, octaves=2) * 0.4
    )
    return _mix(blades * 0.6 + 0.5, _color(rng, (74, 106, 48)), _color(rng, (138, 164, 84), (150, 160, 92)))


def _sand(rng: Rng, side: int) -> np.ndarray:
    x, y = _axes(side)
    bend = _noise(rng, side, 4) * 1.6
    ripples = np.sin((y * 1.0 + x * rng.uniform(-0.5, 0.5)) * rng.uniform(14, 26) + bend * 2)
    grains = _noise(rng, side, 100) * 0.16
    share = 0.5 + ripples * rng.uniform(0.05, 0.2) + grains + _noise(rng, side, 3) * 0.2
    return _mix(share, _color(rng, (186, 158, 118), (196, 176, 140)), _color(rng, (230, 210, 174), (224, 206, 180)))


def _water(rng: Rng, side: int) -> np.ndarray:
    x, y = _axes(side)
    swell = _noise(rng, side, 14, 4) + 0.6 * _noise(rng, side, 34, 9) + 0.35 * _noise(rng, side, 70, 20)
    glitter = np.clip(np.sin(y * rng.uniform(16, 26) + swell * 3.2 + x) - 0.72, 0, 1) * 2.2
    share = 0.45 + swell * 0.2 - 0.15 * y
    canvas = _mix(share, _color(rng, (44, 96, 128), (50, 110, 120)), _color(rng, (122, 172, 190), (130, 180, 180)))
    return canvas + glitter[..., None] * 34


def _wood(rng: Rng, side: int) -> np.ndarray:
    """A table of planks."""
    x, y = _axes(side)
    across = x if rng.random() < 0.5 else y
    planks = int(rng.integers(3, 7))
    place = (across + 1) / 2 * planks + rng.uniform(0, 1)
    number = np.floor(place).astype(int)
    tone = rng.uniform(-0.14, 0.14, planks + 2)[number]
    grain = _clouds(rng, side, *((3, 26) if across is x else (26, 3)), octaves=3)
    rings = np.sin(place * 9 + 5 * _noise(rng, side, *((2, 7) if across is x else (7, 2))))
    seam = np.exp(-(((place - number) % 1 / 0.035) ** 2)) + np.zeros((side, side))
    dark, light = ((106, 72, 46), (168, 124, 84)) if rng.random() < 0.5 else ((158, 126, 92), (212, 184, 148))
    share = 0.5 + tone + grain * 0.3 + rings * 0.07 - seam * 0.6
    return _mix(share, _color(rng, dark), _color(rng, light))


def _wall_and_floor(rng: Rng, side: int) -> np.ndarray:
    """A room: plaster above, a plain floor or table below, light from one side."""
    x, y = _axes(side)
    wall = _color(rng, (206, 198, 186), (176, 190, 196), (198, 178, 162), (178, 188, 168), (150, 158, 172), spread=14)
    floor = _color(rng, (150, 118, 88), (128, 122, 116), (176, 150, 120), spread=12)
    edge = rng.uniform(0.0, 0.55)
    below = np.clip((y - edge) / 0.03, 0, 1) + np.zeros_like(x)
    canvas = _mix(below, wall, floor)
    plaster = (
        _noise(rng, side, 70) * 3 + _clouds(rng, side, 3, octaves=3) * 7 - 16 * np.exp(-(((y - edge) / 0.05) ** 2))
    )
    window = np.clip(1 - np.abs(x + y * 0.5 - rng.uniform(-1, 1)) / rng.uniform(0.3, 0.8), 0, 1) * (1 - below)
    return canvas + (plaster + 22 * window)[..., None]


def _lights(rng: Rng, side: int) -> np.ndarray:
    """Out of focus: soft discs of light before a dim evening, or before leaves."""
    x, y = _axes(side)
    leaves = rng.random() < 0.5
    deep = _color(rng, (62, 84, 52), (76, 96, 60)) if leaves else _color(rng, (58, 60, 88), (84, 64, 66), (52, 74, 84))
    glow = _color(rng, (150, 170, 100)) if leaves else _color(rng, (176, 140, 110), (130, 130, 160))
    canvas = _mix(_clouds(rng, side, 3, octaves=2) * 0.6 + 0.4, deep, glow)
    tones = ((196, 210, 130), (160, 190, 110)) if leaves else ((240, 200, 140), (220, 160, 140), (160, 180, 220))
    for _ in range(int(rng.integers(8, 18))):
        radius, at_x, at_y = rng.uniform(0.08, 0.24), *rng.uniform(-1, 1, 2)
        disc = np.clip((radius - np.sqrt((x - at_x) ** 2 + (y - at_y) ** 2)) / 0.03, 0, 1) * rng.uniform(0.12, 0.4)
        canvas += disc[..., None] * (np.array(_color(rng, *tones), np.float32) - canvas)
    return _blur(canvas, 0.008)


def _cloth(rng: Rng, side: int) -> np.ndarray:
    """A checked or striped tablecloth with folds."""
    x, y = _axes(side)
    turn, pitch = rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.42)
    bend = _noise(rng, side, 3) * 0.06
    u, v = x * np.cos(turn) + y * np.sin(turn) + bend, y * np.cos(turn) - x * np.sin(turn) + bend
    stripes = [np.clip(np.sin(w * np.pi / pitch) * 6 + 0.5, 0, 1) for w in (u, v)]
    share = stripes[0] * 0.5 + (stripes[1] * 0.5 if rng.random() < 0.7 else 0)
    ground = _color(rng, (222, 216, 204))
    band = _color(rng, (178, 120, 112), (120, 142, 172), (140, 158, 124), (178, 160, 120))
    weave = _noise(rng, side, 110) * 7 + _clouds(rng, side, 3, octaves=2) * 12
    return _mix(share * 0.8, ground, band) + weave[..., None]


def _stone(rng: Rng, side: int) -> np.ndarray:
    """Marble, slate or concrete."""
    cloud = _clouds(rng, side, 3, octaves=5)
    veins = np.exp(-((_clouds(rng, side, 2, octaves=4) / 0.07) ** 2)) * rng.uniform(0, 0.4)
    pale = rng.random() < 0.5
    first, second = ((190, 188, 186), (226, 222, 216)) if pale else ((92, 96, 102), (140, 142, 144))
    share = 0.5 + cloud * 0.4 - veins + _noise(rng, side, 100) * 0.08
    return _mix(share, _color(rng, first), _color(rng, second))


BACKGROUNDS: tuple[Callable[[Rng, int], np.ndarray], ...] = (
    _sky,
    _field,
    _grass,
    _sand,
    _water,
    _wood,
    _wall_and_floor,
    _lights,
    _cloth,
    _stone,
)
