"""What the built-in models are asked about a scene, with the truth; the same each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from lens_adapter.data.expressions import Expression, Question, Speaker
from lens_adapter.data.scenes import sample_scene

PICTURE_SIZE = 384  # pixels at which scenes are drawn and masks are compared
QUESTIONS = ("attributes", "existence", "superlatives", "counting", "relations", "where")  # one of each per scene
EXPRESSIONS = {"attribute": 2, "spatial": 2, "ordinal": 1, "several": 1, "absent": 1}  # how many per scene
_ATTEMPTS = 8  # per text wanted: a scene may have few clear ones of a kind, or none

Text = TypeVar("Text", Expression, Question)


@dataclass(frozen=True)
class Case:
    """One expression and the pixels it names: bool (H, W), all False where it names nothing."""

    expression: Expression
    truth: np.ndarray

    @property
    def has_target(self) -> bool:
        return bool(self.expression.targets)


@dataclass(frozen=True)
class Exam:
    """One scene and what is asked about it.

    Attributes:
        seed: of the scene, for whoever has to throw dice about it.
        picture: RGB, `PICTURE_SIZE` x `PICTURE_SIZE`.
        objects: bool (objects, H, W), the visible part of each.
        cases: at least one.
        questions: with their answers.
    """

    seed: int
    picture: Image
    objects: np.ndarray
    cases: list[Case]
    questions: list[Question]

    @property
    def prompts(self) -> list[str]:
        return [case.expression.text for case in self.cases]


def make_exam(index: int, split: str) -> Exam:
    """The exam about the `index`-th scene of a split."""
    scene = sample_scene(index, split)
    objects = scene.masks(PICTURE_SIZE)
    speaker = Speaker(scene, np.random.default_rng([scene.seed, 7]))
    said = [made for kind, count in EXPRESSIONS.items() for made in _different(speaker.expression, kind, count)]
    unlike = {expression.text: expression for expression in said}
    speaker = Speaker(scene, np.random.default_rng([scene.seed, 8]))
    return Exam(
        seed=scene.seed,
        picture=scene.draw(PICTURE_SIZE),
        objects=objects,
        cases=[Case(made, np.logical_or.reduce(objects[list(made.targets)])) for made in unlike.values()],
        questions=[made for kind in QUESTIONS for made in _different(speaker.question, kind, 1)],
    )


def _different(make: Callable[[str], Text | None], kind: str, count: int) -> list[Text]:
    """Up to `count` different texts of a kind."""
    made = [text for _ in range(_ATTEMPTS * count) if (text := make(kind)) is not None]
    return list({one.text: one for one in made}.values())[:count]
