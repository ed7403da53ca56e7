"""The words and looks of the built-in world, as data: another world is another `Vocabulary`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Outline = list[np.ndarray]  # closed polygons (n, 2) around the origin, radius about 1; the second and later are holes
# u, v (fractions of the image's side, from the object's center, turned with it) -> how bright the object is there
Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
    """A plus sign; its bars are 2 * `arm` thick."""
    a = arm
    corners = (
        *((-a, -1), (a, -1), (a, -a)),
        *((1, -a), (1, a), (a, a)),
        *((a, 1), (-a, 1), (-a, a)),
        *((-1, a), (-1, -a), (-a, -a)),
    )
    return np.array(corners)


def _striped(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.where(np.sin(u * (2 * math.pi / 0.052)) > 0, 1.0, 0.45)


def _dotted(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    pitch = 0.058
    far = np.hypot((u / pitch + 0.5) % 1 - 0.5, (v / pitch + 0.5) % 1 - 0.5)
    return np.where(far < 0.3, 0.4, 1.0)


@dataclass(frozen=True, eq=False)  # one is like another only if it is the same: outlines are arrays
class Vocabulary:
    """What objects can look like and how each look is called.

    Attributes:
        shapes: singular name -> outline.
        plurals: name of a shape, or "object" -> its plural.
        colors: name -> RGB, 0 to 255.
        sizes: name -> (smallest, largest) radius in fractions of the image's side.
        textures: name -> how it is painted; None: evenly.
        cells: the image is named on a grid of `cells` x `cells` places.
    """

    shapes: dict[str, Outline]
    plurals: dict[str, str]
    colors: dict[str, tuple[int, int, int]]
    sizes: dict[str, tuple[float, float]]
    textures: dict[str, Texture | None]
    cells: int

    def looks(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> its possible values, in the order in which an expression names them."""
        return {
            "size": tuple(self.sizes),
            "texture": tuple(self.textures),
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
    textures={"plain": None, "striped": _striped, "dotted": _dotted},
    cells=8,
)
