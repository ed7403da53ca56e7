"""Scenes of the built-in world: seeded, drawn at any size, with exact masks.

A scene is described in fractions of the image's side and drawn at the size asked for: what people look at at 384
pixels and what the model's processor shrinks to 128 are the same scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lens_adapter.data.vocabulary import SHAPES_WORLD, Vocabulary

# Seeds of the three splits never meet: seed = index * 3 + offset.
SPLITS = {"train": 0, "validation": 1, "test": 2}
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    Attributes:
        x, y: its center, in fractions of the image's side; so is `radius`.
        angle: in radians.
        rgb: its own color, 0 to 255, before light and texture.
    """

    shape: str
    color: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]

    def look(self, attribute: str) -> str:
        """Its value of an attribute of `Vocabulary.looks`."""
        return str(getattr(self, attribute))


@dataclass(frozen=True)
class Scene:
    """Objects from back to front over a background that `seed` determines."""

    objects: list[SceneObject]
    seed: int
    vocabulary: Vocabulary = SHAPES_WORLD

    def draw(self, size: int, resample: Image.Resampling = Image.Resampling.BOX) -> Image.Image:
        """The scene as an RGB picture of `size` x `size` pixels."""
        rng = np.random.default_rng([self.seed, 1])
        backdrop = _background(rng, size) * (1 - 0.55 * self._shadow(size)[..., None])
        canvas = backdrop.repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1)
        light = rng.uniform(0, 2 * math.pi)
        for thing in self.objects:
            self._paint(canvas, thing, light)
        picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize((size, size), resample)
        grain = rng.normal(0, rng.uniform(1, 6), (size, size, 1)).astype(np.float32)
        return Image.fromarray(np.clip(np.asarray(picture, np.float32) + grain, 0, 255).astype(np.uint8))

    def masks(self, size: int) -> np.ndarray:
        """bool (objects, size, size): the visible part of every object, at the size of `draw`.

        A pixel belongs to the object that covers at least half of it; shared half and half, to the one in front.
        """
        side = size * _SUPERSAMPLING
        owner = np.full((side, side), -1, np.int8)
        for index, thing in enumerate(self.objects):
            window, inside = self._coverage(thing, side)
            owner[window][inside] = index
        corners = [owner[i::_SUPERSAMPLING, j::_SUPERSAMPLING] for i, j in np.ndindex(_SUPERSAMPLING, _SUPERSAMPLING)]
        masks = np.zeros((len(self.objects), size, size), bool)
        taken = np.zeros((size, size), bool)
        for index in reversed(range(len(self.objects))):  # from front to back
            covered = sum((corner == index).astype(np.int8) for corner in corners)
            masks[index] = (covered >= len(corners) / 2) & ~taken
            taken |= masks[index]
        return masks

    def _coverage(self, thing: SceneObject, side: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """The window of a `side` x `side` canvas around `thing`, and where in it the thing is."""
        reach = thing.radius * 1.2 * side
        left, top = max(int(thing.x * side - reach), 0), max(int(thing.y * side - reach), 0)
        right, bottom = min(int(thing.x * side + reach) + 2, side), min(int(thing.y * side + reach) + 2, side)
        drawing = Image.new("1", (right - left, bottom - top))
        pen = ImageDraw.Draw(drawing)
        for hole, outline in enumerate(self._outlines(thing)):
            pen.polygon([(x * side - left, y * side - top) for x, y in outline], fill=0 if hole else 1)
        return (slice(top, bottom), slice(left, right)), np.asarray(drawing)

    def _outlines(self, thing: SceneObject) -> list[np.ndarray]:
        cos, sin = math.cos(thing.angle), math.sin(thing.angle)
        turn = np.array([[cos, sin], [-sin, cos]]) * thing.radius
        return [outline @ turn + (thing.x, thing.y) for outline in self.vocabulary.shapes[thing.shape]]

    def _shadow(self, side: int) -> np.ndarray:
        """float (side, side) in [0, 1]: soft shadows of everything, thrown to the lower right."""
        small = max(side // 2, 16)
        drawing = Image.new("L", (small, small))
        pen = ImageDraw.Draw(drawing)
        for thing in self.objects:
            for hole, outline in enumerate(self._outlines(thing)):
                pen.polygon([((x + 0.012) * small, (y + 0.02) * small) for x, y in outline], fill=0 if hole else 255)
        soft = drawing.filter(ImageFilter.GaussianBlur(0.014 * small)).resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(soft, np.float32) / 255

    def _paint(self, canvas: np.ndarray, thing: SceneObject, light: float) -> None:
        side = len(canvas)
        window, inside = self._coverage(thing, side)
        rows, columns = np.mgrid[window].astype(np.float32)
        x, y = (columns + 0.5) / side - thing.x, (rows + 0.5) / side - thing.y
        shade = 1 + 0.16 * (x * math.cos(light) + y * math.sin(light)) / thing.radius
        texture = self.vocabulary.textures[thing.texture]
        if texture is not None:
            cos, sin = math.cos(thing.angle + 0.5), math.sin(thing.angle + 0.5)
            shade *= texture(x * cos + y * sin, y * cos - x * sin)
        color = np.array(thing.rgb, np.float32) * shade[..., None]
        canvas[window][inside] = color[inside]


def sample_scene(
    index: int,
    split: str = "train",
    *,
    count: tuple[int, int] = (2, 8),
    vocabulary: Vocabulary = SHAPES_WORLD,
) -> Scene:
    """The `index`-th scene of a split: always the same one.

    Args:
        index: any non-negative integer.
        split: "train", "validation" or "test"; their scenes come from disjoint seeds.
        count: smallest and largest number of objects; an object that finds no room is left out.
        vocabulary: what objects can look like.

    No two objects of a scene look alike in every attribute; about a third share one with another on purpose, so that
    one word is seldom enough. Objects may overlap a little.
    """
    seed = index * len(SPLITS) + SPLITS[split]
    rng = np.random.default_rng([seed, 0])
    looks = vocabulary.looks()
    objects: list[SceneObject] = []
    for _ in range(int(rng.integers(count[0], count[1] + 1))):
        for _ in range(40):
            look = {attribute: str(rng.choice(values)) for attribute, values in looks.items()}
            if objects and rng.random() < 0.35:
                shared = "shape" if rng.random() < 0.5 else "color"
                look[shared] = objects[rng.integers(len(objects))].look(shared)
            if any(all(other.look(a) == look[a] for a in looks) for other in objects):
                continue
            radius = float(rng.uniform(*vocabulary.sizes[look["size"]]))
            x, y = rng.uniform(radius * 1.05, 1 - radius * 1.05, 2)
            if all(math.hypot(x - o.x, y - o.y) >= 0.85 * (radius + o.radius) for o in objects):
                rgb = np.clip(np.array(vocabulary.colors[look["color"]]) + rng.normal(0, 9, 3), 0, 255)
                angle = float(rng.uniform(-0.2, 0.2))
                objects.append(SceneObject(**look, x=float(x), y=float(y), radius=radius, angle=angle, rgb=tuple(rgb)))
                break
    return Scene(objects, seed, vocabulary)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """float32 (side, side, 3), 0 to 255: a muted backdrop; a blurred view, a rough surface or a woven one."""

    def noise(cells: int, channels: int = 1) -> np.ndarray:
        grid = rng.uniform(-1, 1, (cells, cells, channels)).astype(np.float32)
        planes = [Image.fromarray(grid[..., c]).resize((side, side), Image.Resampling.BICUBIC) for c in range(channels)]
        return np.stack([np.asarray(plane) for plane in planes], axis=-1)

    base = rng.uniform(45, 120) + rng.uniform(-22, 22, 3).astype(np.float32)
    kind = rng.integers(3)
    canvas = base + noise(3, 3) * rng.uniform(10, 28)
    if kind == 0:  # out of focus: large soft patches of light
        canvas = canvas + noise(6, 3) * rng.uniform(6, 18) + noise(9) * rng.uniform(4, 14)
    elif kind == 1:  # stone, grass: noise at several scales
        canvas = canvas + noise(16) * rng.uniform(4, 12) + noise(48) * rng.uniform(4, 12)
    else:  # wood, cloth: bent lines
        rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
        turn = rng.uniform(0, math.pi)
        phase = (columns * math.cos(turn) + rows * math.sin(turn)) * rng.uniform(40, 110) + noise(5)[..., 0] * 3
        canvas = canvas + np.sin(phase)[..., None] * rng.uniform(4, 12) + noise(24) * rng.uniform(2, 8)
    return np.clip(canvas, 8, 175).astype(np.float32)
