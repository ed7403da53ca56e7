"""The words and looks of the built-in world, as data: another world is another `Vocabulary`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Outline = list[np.ndarray]  # closed polygons (n, 2) around the origin, radius about 1; the second and later are holes


def _regular(corners: int, start: float = -90.0, inner: float | None = None) -> np.ndarray:
    """A regular polygon, or a star when `inner` gives the radius of every second corner."""
    count = corners if inner is None else 2 * corners
    angle = math.radians(start) + 2 * math.pi * np.arange(count) / count
    radius = np.ones(count) if inner is None else np.where(np.arange(count) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(y + 2.5) / 15], axis=1)


def _cross(arm: float = 0.36) -> np.ndarray:
    a = arm
    corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    return np.array(corners)


@dataclass(frozen=True)
class Vocabulary:
    """What objects can look like and how each look is called.

    Attributes:
        shapes: singular name -> outline.
        plurals: singular name -> plural name.
        colors: name -> RGB, 0 to 255.
        sizes: name -> (smallest, largest) radius in fractions of the image's side.
        textures: names; the first is the absence of texture.
        cells: the image is named on a grid of `cells` x `cells` places.
    """

    shapes: dict[str, Outline]
    plurals: dict[str, str]
    colors: dict[str, tuple[int, int, int]]
    sizes: dict[str, tuple[float, float]]
    textures: tuple[str, ...]
    cells: int

    def looks(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> its possible values, in the order in which an expression names them."""
        return {
            "size": tuple(self.sizes),
            "texture": self.textures,
            "color": tuple(self.colors),
            "shape": tuple(self.shapes),
        }


SHAPES_WORLD = Vocabulary(
    shapes={
        "circle": [_regular(48)],
        "square": [_regular(4, start=45) * 1.15],
        "triangle": [_regular(3) * 1.15],
        "star": [_regular(5, inner=0.5) * 1.1],
        "cross": [_cross()],
        "ring": [_regular(48), _regular(48) * 0.5],
        "diamond": [_regular(4) * np.array([0.8, 1.1])],
        "heart": [_heart()],
    },
    plurals={
        "circle": "circles",
        "square": "squares",
        "triangle": "triangles",
        "star": "stars",
        "cross": "crosses",
        "ring": "rings",
        "diamond": "diamonds",
        "heart": "hearts",
        "object": "objects",
    },
    colors={
        "red": (214, 40, 40),
        "green": (46, 160, 67),
        "blue": (45, 85, 220),
        "yellow": (240, 214, 50),
        "purple": (150, 50, 185),
        "orange": (243, 135, 27),
        "white": (242, 242, 242),
        "cyan": (64, 214, 228),
    },
    sizes={"small": (0.088, 0.102), "large": (0.142, 0.168)},
    textures=("plain", "striped", "dotted"),
    cells=8,
)
