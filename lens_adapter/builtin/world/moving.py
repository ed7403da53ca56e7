"""Scenes whose things move: a video with exact masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lens_adapter.builtin.world.scenes import Scene, SceneObject, reach, sample_scene


def moving_scene(
    index: int, split: str = "test", *, frames: int = 12, step: float = 0.02, count: tuple[int, int] = (2, 4)
) -> list[Scene]:
    """The frames of the `index`-th moving scene of a split: always the same ones.

    The first is `sample_scene` of the same arguments. From there every thing goes straight on, in a direction of its
    own, and turns back at the edges of the picture. What stands in front stays in front: things may hide each other.
    Light and background stay as they are.

    Args:
        index, split, count: as for `sample_scene`.
        frames: how many, at least one.
        step: how far a thing goes from frame to frame, in fractions of the image's side.
    """
    scene = sample_scene(index, split, count=count)
    rng = np.random.default_rng([scene.seed, 21])
    directions = rng.uniform(0, 2 * np.pi, len(scene.objects))
    return [
        Scene(
            [
                _moved(thing, frame * step * np.cos(angle), frame * step * np.sin(angle))
                for thing, angle in zip(scene.objects, directions, strict=True)
            ],
            scene.seed,
        )
        for frame in range(frames)
    ]


def _moved(thing: SceneObject, right: float, down: float) -> SceneObject:
    half_x, half_y = reach(thing.name, thing.side, thing.angle)
    return replace(thing, x=_between(thing.x + right, half_x), y=_between(thing.y + down, half_y))


def _between(place: float, half: float) -> float:
    """A place on a way that turns back `half` before either edge."""
    room = 1 - 2 * half
    there = (place - half) % (2 * room)
    return float(half + min(there, 2 * room - there))
