"""Scenes of everyday things: seeded, drawn at any size, with exact masks.

A scene is described in fractions of the image's side and drawn at the size asked for: what people look at at 384
pixels and what the model's processor shrinks to 128 are the same scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from lens_adapter.builtin.world.backgrounds import paint_background
from lens_adapter.builtin.world.catalog import THINGS
from lens_adapter.builtin.world.sprites import Slices, lay, proportions

# Seeds of the splits never meet: seed = index * len(SPLITS) + offset. "words" are scenes that are only talked about:
# from them the vision-language model learns; from "train" the mask decoder and the heads do.
SPLITS = {"words": 0, "train": 1, "validation": 2, "test": 3}
# Name -> shortest and longest side; the steps between them are clear to see.
SIZES = {"small": (0.19, 0.215), "medium": (0.255, 0.285), "large": (0.34, 0.39)}
CELLS = 8  # places are named on a grid of so many columns and rows
_SUPERSAMPLING = 2
_CLOSEST = 0.9  # distance of two middles, in sums of their radii


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    Attributes:
        name: of the class, a key of `THINGS`.
        color: one of its paints.
        size: a key of `SIZES`.
        x, y: its middle, in fractions of the image's side; so is `side`, the longer side of its picture.
        angle: in radians, clockwise.
        mirrored: left and right exchanged.
    """

    name: str
    color: str
    size: str
    x: float
    y: float
    side: float
    angle: float
    mirrored: bool

    @property
    def category(self) -> str:
        """The narrowest."""
        return THINGS[self.name].category

    @property
    def area(self) -> float:
        """Of its whole silhouette, in fractions of the image."""
        return proportions(self.name)[2] * self.side**2

    def look(self, attribute: str) -> str:
        """Its value of "size", "color", "category" or "name"."""
        return getattr(self, attribute)


@dataclass(frozen=True)
class Scene:
    """Objects from back to front over a background that `seed` determines."""

    objects: list[SceneObject]
    seed: int

    def draw(self, size: int, resample: Image.Resampling = Image.Resampling.BOX) -> Image.Image:
        """The scene as an RGB picture of `size` x `size` pixels; `resample`: how things are shrunk to it."""
        rng = np.random.default_rng([self.seed, 1])
        canvas = paint_background(rng, size)
        light = (rng.uniform(0.88, 1.02) * (1 + rng.uniform(-0.03, 0.03, 3))).astype(np.float32)
        side = size * _SUPERSAMPLING
        layer = np.zeros((side, side, 4), np.uint8)
        for window, laid in self._lay(side):
            _cover(layer, window, laid)
        things = np.asarray(Image.fromarray(layer, "RGBa").resize((size, size), resample), np.float32)
        alpha = things[..., 3:] / 255
        shadow = self._shadow(things[..., 3], rng)
        canvas *= (1 - shadow[..., None]) * (1 - alpha)
        canvas += things[..., :3] * light
        canvas += rng.normal(0, rng.uniform(1, 5), (size, size, 1)).astype(np.float32)
        return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))

    def masks(self, size: int) -> np.ndarray:
        """bool (objects, size, size): the visible part of every object, at the size of `draw`.

        A pixel belongs to the object that makes up more than half of it, if one does: no two share a pixel.
        """
        side = size * _SUPERSAMPLING
        free = np.ones((side, side), np.float32)  # what of a pixel is not yet covered
        masks = np.zeros((len(self.objects), size, size), bool)
        for mask, (window, laid) in zip(masks[::-1], reversed(self._lay(side)), strict=True):  # from front to back
            rows, columns = (slice(s.start // _SUPERSAMPLING, s.stop // _SUPERSAMPLING) for s in window)
            seen = free[window] * (laid[..., 3] / np.float32(255))
            free[window] -= seen
            height, width = rows.stop - rows.start, columns.stop - columns.start
            mask[rows, columns] = seen.reshape(height, _SUPERSAMPLING, width, _SUPERSAMPLING).mean(axis=(1, 3)) > 0.5
        return masks

    def _lay(self, side: int) -> list[tuple[Slices, np.ndarray]]:
        """Where every object lies on a canvas of `side` x `side` pixels, and its RGBa there."""
        return [
            lay(
                *(thing.name, thing.color),
                x=thing.x * side,
                y=thing.y * side,
                side=thing.side * side,
                angle=thing.angle,
                mirrored=thing.mirrored,
                canvas=side,
            )
            for thing in self.objects
        ]

    def _shadow(self, covered: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """float (size, size): how much darker the background is: a wide soft shadow, and a narrow one close to it."""
        size = len(covered)
        lean, depth = rng.uniform(-0.02, 0.02), rng.uniform(0.25, 0.5)
        union = Image.fromarray(covered.astype(np.uint8)).resize((96, 96), Image.Resampling.BOX)
        dark = np.zeros((size, size), np.float32)
        for reach, blur, share in ((1.0, 2.2, 0.6), (0.4, 1.0, 0.5)):
            moved = union.transform(
                (96, 96), Image.Transform.AFFINE, (1, 0, -96 * lean * reach, 0, 1, -96 * 0.022 * reach)
            )
            soft = moved.filter(ImageFilter.GaussianBlur(blur)).resize((size, size), Image.Resampling.BICUBIC)
            dark = np.maximum(dark, np.asarray(soft, np.float32) / 255 * share)
        return dark * (depth / 0.5)


def sample_scene(index: int, split: str = "train", *, count: tuple[int, int] = (2, 8)) -> Scene:
    """The `index`-th scene of a split: always the same one.

    Args:
        index: any non-negative integer.
        split: a key of `SPLITS`.
        count: smallest and largest number of objects; an object that finds no room is left out.

    Things of one name, or of one category, often come together, so that one word is seldom enough. Objects may overlap
    a little; each stays inside the picture and mostly visible.
    """
    seed = index * len(SPLITS) + SPLITS[split]
    rng = np.random.default_rng([seed, 0])
    objects: list[SceneObject] = []
    for _ in range(int(rng.integers(count[0], count[1] + 1))):
        name, color = _choose(rng, objects)
        mirrored = THINGS[name].mirrors and rng.random() < 0.5
        size = list(SIZES)[int(rng.integers(len(SIZES)))]
        side, angle = float(rng.uniform(*SIZES[size])), float(rng.uniform(-0.22, 0.22))
        half_x, half_y = reach(name, side, angle)
        for x, y in rng.uniform((half_x, half_y), (1 - half_x, 1 - half_y), (60, 2)):
            thing = SceneObject(name, color, size, float(x), float(y), side, angle, bool(mirrored))
            if all(_apart(thing, other) for other in objects):
                objects.append(thing)
                break
    return Scene(objects, seed)


def _choose(rng: np.random.Generator, objects: list[SceneObject]) -> tuple[str, str]:
    """Name and color of one more thing."""
    chance = rng.random()
    if objects and chance < 0.46:
        other = objects[int(rng.integers(len(objects)))]
        kin = [thing.name for thing in THINGS.values() if thing.category == other.category]
        name = other.name if chance < 0.2 else kin[int(rng.integers(len(kin)))]
    else:
        name = list(THINGS)[int(rng.integers(len(THINGS)))]
    paints = THINGS[name].paints
    return name, paints[int(rng.integers(len(paints)))]


def reach(name: str, side: float, angle: float) -> tuple[float, float]:
    """How far a thing reaches to the side and up from its middle, with a little air."""
    width, height, _ = proportions(name)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    return (cos * width + sin * height) * side / 2 + 0.005, (sin * width + cos * height) * side / 2 + 0.005


def _radius(thing: SceneObject) -> float:
    """Between the circle around a thing and the circle of its area: thin things may come closer than full ones."""
    return (thing.side / 2 + math.sqrt(thing.area / math.pi)) / 2


def _apart(a: SceneObject, b: SceneObject) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) >= _CLOSEST * (_radius(a) + _radius(b))


def _cover(layer: np.ndarray, window: Slices, laid: np.ndarray) -> None:
    """Lay premultiplied uint8 RGBa over a canvas of the same."""
    under = layer[window]
    rest = (255 - laid[..., 3:]).astype(np.uint16)
    layer[window] = np.minimum(laid + (under * rest + 127) // 255, 255)
