"""Prompts about drawn scenes, each with its exact mask: examples that cost nobody any labelling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count as counted

import numpy as np
from PIL.Image import Image

from lens_adapter.builtin.world.expressions import Expression
from lens_adapter.builtin.world.questions import Speaker
from lens_adapter.builtin.world.scenes import sample_scene

KINDS = ("attribute", "spatial", "ordinal", "several", "reasoning")  # in turn
SIDE = 384  # pixels
_ATTEMPTS = 8


@dataclass(frozen=True, eq=False)
class LabelledScene:
    """One prompt about a scene.

    Attributes:
        image: RGB, square.
        prompt: what is asked.
        mask: bool (H, W), exact; all False where it names nothing.
        kind: of `KINDS`, or "absent".
        image_id: names the scene.
    """

    image: Image
    prompt: str
    mask: np.ndarray
    kind: str
    image_id: str


def labelled_scenes(count: int, *, split: str = "validation", start: int = 0) -> Iterator[LabelledScene]:
    """`count` prompts with a target, of every kind in turn, each about a scene of its own.

    Behind each comes a prompt that names nothing in that scene.

    Args:
        count: prompts with a target.
        split: of the scenes.
        start: number of the first scene.
    """
    made = 0
    for index in counted(start):
        if made == count:
            return
        scene = sample_scene(index, split)
        speaker = Speaker(scene, np.random.default_rng([scene.seed, 12]))
        said = _say(speaker, KINDS[made % len(KINDS)])
        if said is None:  # the scene has none of this kind
            continue
        image, masks, made = scene.draw(SIDE), scene.masks(SIDE), made + 1
        for expression in filter(None, (said, _say(speaker, "absent"))):
            mask = (
                np.logical_or.reduce(masks[list(expression.targets)]) if expression.targets else np.zeros_like(masks[0])
            )
            yield LabelledScene(image, expression.text, mask, expression.kind, f"{split}-{index}")


def _say(speaker: Speaker, kind: str) -> Expression | None:
    return next(filter(None, (speaker.expression(kind) for _ in range(_ATTEMPTS))), None)
