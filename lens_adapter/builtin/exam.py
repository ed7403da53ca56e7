"""What the built-in models are asked about a scene, with the truth; the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from lens_adapter.builtin.world import (
    EXPRESSION_KINDS,
    REQUEST_KINDS,
    Expression,
    Question,
    Scene,
    Speaker,
    sample_scene,
)
from lens_adapter.data.examples import Example

PICTURE_SIZE = 384  # pixels at which scenes are drawn and masks are compared
# One of each per scene.
QUESTIONS = (
    *("names", "categories", "colors", "sizes", "existence", "superlatives", "counting", "relations", "facts"),
    "where",
)
EXPRESSIONS = {"attribute": 2, "spatial": 2, "ordinal": 1, "several": 1, "reasoning": 2, "absent": 1}  # per scene
# One per scene of what no mask in training was named by, of a random one of these kinds.
HELD_OUT = {
    "held_out_fact": ("reasoning",),
    "held_out_phrasing": ("reasoning",),
    "held_out_template": ("attribute", "spatial", "ordinal", "several", "reasoning"),
}
# The model's own answer to where something is, by kind: what it does not know, no head can find. One of each per scene.
LIMITS = ("where_spatial", "where_ordinal", "where_several", "where_reasoning", "where_absent", "where_joined")
# Group -> how somebody talks, kinds to choose from, and how many expressions per scene: the model is spoken to.
SPOKEN = {
    "joined": ("usual", ("joined",), 1),
    "everyday": ("everyday", EXPRESSION_KINDS, 2),
    "held_out_wording": ("held_out", EXPRESSION_KINDS, 2),
}
REQUEST_SUBSETS = ("seen", "held_out_template")  # of how a mask is asked for
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

    @property
    def group(self) -> str:
        """What its figures are counted under: a key of `EXPRESSIONS`, of `HELD_OUT`, or of `SPOKEN`."""
        expression = self.expression
        return expression.kind if expression.subset == "seen" else expression.subset


@dataclass(frozen=True)
class Utterance:
    """What somebody might say about a scene.

    Attributes:
        kind: one of `REQUEST_KINDS`; all but "dialogue" want a mask.
        subset: one of `REQUEST_SUBSETS`; a dialogue is always "seen".
    """

    kind: str
    subset: str
    text: str

    @property
    def wants_mask(self) -> bool:
        return self.kind != "dialogue"


@dataclass(frozen=True)
class Exam:
    """One scene and what is asked about it.

    Attributes:
        seed: of the scene, for whoever has to throw dice about it.
        picture: RGB, `PICTURE_SIZE` x `PICTURE_SIZE`.
        objects: bool (objects, H, W), the visible part of each.
        cases: at least one.
        spoken: more of them, as `SPOKEN` says.
        questions: with their answers; of `QUESTIONS`, then of `LIMITS`.
        utterances: some of which want a mask.
    """

    seed: int
    picture: Image
    objects: np.ndarray
    cases: list[Case]
    spoken: list[Case]
    questions: list[Question]
    utterances: list[Utterance]

    @property
    def prompts(self) -> list[str]:
        return [case.expression.text for case in self.cases]


def make_exam(index: int, split: str) -> Exam:
    """The exam about the `index`-th scene of a split."""
    scene = sample_scene(index, split)
    objects = scene.masks(PICTURE_SIZE)
    naming, asking, telling, finding = (
        Speaker(scene, np.random.default_rng([scene.seed, salt])) for salt in (7, 8, 10, 14)
    )
    questions = [(asking, kind) for kind in QUESTIONS] + [(finding, kind) for kind in LIMITS]
    said: dict[str, Expression] = {}  # what two kinds say alike is the first one's
    for expression in _expressions(naming):
        said.setdefault(expression.text, expression)

    def case(expression: Expression) -> Case:
        return Case(expression, np.logical_or.reduce(objects[list(expression.targets)]))

    return Exam(
        seed=scene.seed,
        picture=scene.draw(PICTURE_SIZE),
        objects=objects,
        cases=[case(made) for made in said.values()],
        spoken=[case(made) for made in _spoken(scene) if made.text not in said],
        questions=[question for by, kind in questions for question in _different(partial(by.question, kind), 1)],
        utterances=list(_utterances(telling)),
    )


def labelled_cases(count: int) -> Iterator[Example]:
    """What is named in the first validation scenes, with its masks."""
    for index in range(count):
        exam = make_exam(index, "validation")
        for case in exam.cases:
            if case.has_target:
                yield Example(exam.picture, case.expression.text, case.truth)


def _expressions(speaker: Speaker) -> Iterator[Expression]:
    for kind, count in EXPRESSIONS.items():
        yield from _different(partial(speaker.expression, kind), count)
    for subset, kinds in HELD_OUT.items():
        yield from _different(partial(speaker.expression, str(speaker.rng.choice(kinds)), subset), 1)


def _spoken(scene: Scene) -> list[Expression]:
    """What `SPOKEN` says; each text once. It has dice of its own, so what else is asked does not depend on it."""
    said: dict[str, Expression] = {}
    for salt, (wording, kinds, count) in enumerate(SPOKEN.values(), start=15):
        speaker = Speaker(scene, np.random.default_rng([scene.seed, salt]), wording)
        for expression in _different(partial(_any_expression, speaker, kinds), count):
            said.setdefault(expression.text, expression)
    return list(said.values())


def _any_expression(speaker: Speaker, kinds: Sequence[str]) -> Expression | None:
    return speaker.expression(str(speaker.rng.choice(kinds)))


def _utterances(speaker: Speaker) -> Iterator[Utterance]:
    for subset in REQUEST_SUBSETS:
        for kind in REQUEST_KINDS:
            if kind == "dialogue" and subset != "seen":
                continue  # it asks for no mask, in no way
            text = next(filter(None, (speaker.request(kind, subset) for _ in range(_ATTEMPTS))), None)
            if text is not None:
                yield Utterance(kind, subset, text)


def _different(make: Callable[[], Text | None], count: int) -> list[Text]:
    """Up to `count` different texts."""
    found: dict[str, Text] = {}
    for _ in range(_ATTEMPTS * count):
        if len(found) < count and (one := make()) is not None:
            found.setdefault(one.text, one)
    return list(found.values())
