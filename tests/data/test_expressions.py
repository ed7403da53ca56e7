"""Everything that is said about a scene is true, clear and made of known words; checked by an independent reader."""

from __future__ import annotations

from collections import Counter
from math import inf

import numpy as np
import pytest

from lens_adapter.data.expressions import (
    CLEAR_ORDER,
    CLEAR_STEP,
    EXPRESSION_KINDS,
    QUESTION_KINDS,
    Expression,
    Question,
    Speaker,
    words,
)
from lens_adapter.data.scenes import Scene, SceneObject, sample_scene
from lens_adapter.data.vocabulary import SHAPES_WORLD, Vocabulary
from tests.tiny import reading

SCENES = 240


def speak(scene: Scene, seed: int = 0) -> Speaker:
    return Speaker(scene, np.random.default_rng(seed))


def thing(shape: str, color: str, x: float, y: float, size: str = "small", texture: str = "plain") -> SceneObject:
    return SceneObject(shape, color, size, texture, x, y, radius=0.09, angle=0.0, rgb=(200.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def said() -> list[tuple[Scene, Expression]]:
    pairs = []
    for index in range(SCENES):
        scene = sample_scene(index, "validation")
        speaker = speak(scene, index)
        made = [speaker.expression(kind) for kind in EXPRESSION_KINDS for _ in range(4)]
        pairs += [(scene, expression) for expression in made if expression is not None]
    return pairs


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    pairs = []
    for index in range(SCENES):
        scene = sample_scene(index, "validation")
        speaker = speak(scene, index)
        made = [speaker.question(kind) for kind in QUESTION_KINDS for _ in range(3)]
        pairs += [(scene, question) for question in made if question is not None]
    return pairs


def test_every_kind_is_said_and_asked_often(said, asked):
    kinds = Counter(expression.kind for _, expression in said)
    assert set(kinds) == set(EXPRESSION_KINDS) and min(kinds.values()) > 100
    kinds = Counter(question.kind for _, question in asked)
    assert set(kinds) == set(QUESTION_KINDS) and min(kinds.values()) > 100


@pytest.mark.parametrize("kind", ["attribute", "spatial", "ordinal"])
def test_one_object_is_meant_and_no_other_could_be(said, kind):
    for scene, expression in said:
        if expression.kind == kind:
            named, _ = reading.read(scene, expression.text)
            assert named == [scene.objects[i] for i in expression.targets], expression
            assert len(named) == 1


def test_positions_differ_clearly_where_they_matter(said):
    margins = {"spatial": [], "ordinal": []}
    for scene, expression in said:
        if expression.kind in margins:
            _, margin = reading.read(scene, expression.text)
            relation = any(f" {word} the " in expression.text for word in ("left of", "right of", "above", "below"))
            assert margin >= (CLEAR_STEP if relation else CLEAR_ORDER) - 1e-9, expression
            margins[expression.kind].append(margin)
    assert max(margins["spatial"]) < inf


def test_a_place_is_named_only_where_the_name_alone_would_not_do(said):
    for scene, expression in said:
        if expression.kind == "spatial":
            name = expression.text
            for word in ("left of", "right of", "above", "below"):
                name = name.partition(f" {word} the ")[0]
            name = " ".join(word for word in name.split() if not word.endswith("most"))
            assert len(reading.fitting(scene, name)) > 1, expression


def test_several_are_all_that_fit(said):
    for scene, expression in said:
        if expression.kind == "several":
            assert expression.text.startswith("every ")
            assert [scene.objects[i] for i in expression.targets] == reading.fitting(scene, expression.text)
            assert 2 <= len(expression.targets) == len(set(expression.targets))


def test_absent_is_nowhere(said):
    for scene, expression in said:
        if expression.kind == "absent":
            assert expression.targets == () and not reading.fitting(scene, expression.text)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_right(asked, kind):
    for scene, question in asked:
        if question.kind == kind:
            assert question.answer == reading.answer(scene, question.text), question


@pytest.mark.parametrize("kind", ["existence", "relations"])
def test_yes_and_no_are_both_common(asked, kind):
    answers = Counter(question.answer for _, question in asked if question.kind == kind)
    assert set(answers) == {"yes", "no"} and min(answers.values()) > 0.3 * answers.total()


def test_relations_are_asked_about_clear_steps_only(asked):
    steps = [abs(reading.relation_step(s, q.text)) for s, q in asked if q.kind == "relations"]
    assert min(steps) >= CLEAR_STEP


def test_extremes_are_asked_about_only_where_they_are_clear(asked):
    for scene, question in asked:
        if question.kind == "superlatives":
            extreme = question.text.removeprefix("what is ").removesuffix(" ?")
            assert reading.read(scene, extreme)[1] >= CLEAR_ORDER, question


def test_nothing_is_said_to_be_at_a_place_only_if_no_object_reaches_its_middle(asked):
    empty = [(scene, question) for scene, question in asked if question.answer == "nothing"]
    assert len(empty) > 30
    for scene, question in empty:
        column, row = (int(word[1:]) for word in question.text.split()[3:5])
        x, y = ((k + 0.5) / scene.vocabulary.cells for k in (column, row))
        assert all(abs(x - o.x) > o.radius / 2 or abs(y - o.y) > o.radius / 2 for o in scene.objects)


def test_every_word_is_known_and_none_is_listed_twice(said, asked):
    known = words(SHAPES_WORLD)
    assert len(known) == len(set(known))
    spoken = {word for _, expression in said for word in expression.text.split()}
    spoken |= {word for _, question in asked for word in f"{question.text} {question.answer}".split()}
    assert spoken <= set(known)


def test_one_seed_says_the_same_again():
    scene = sample_scene(3)
    first, second = speak(scene, 5), speak(scene, 5)
    for kind in (*EXPRESSION_KINDS, *EXPRESSION_KINDS):
        assert first.expression(kind) == second.expression(kind)
    other = [speak(scene, seed).expression("attribute") for seed in range(20)]
    assert len(set(other)) > 1


def test_names_of_two_objects_by_hand():
    scene = Scene([thing("circle", "red", 0.3, 0.5), thing("square", "red", 0.7, 0.51)], seed=0)
    speaker = speak(scene)
    texts = {speaker.expression("attribute").text for _ in range(300)}
    singles = {"the circle", "the square"}
    before = ("small", "plain", "red", "small plain", "small red", "plain red", "small plain red")
    assert texts == singles | {f"the {words} {shape}" for words in before for shape in ("circle", "square")}


def test_what_is_nearly_a_tie_is_not_said():
    scene = Scene([thing("circle", "red", 0.3, 0.5), thing("square", "red", 0.7, 0.51)], seed=0)
    speaker = speak(scene)
    texts = {made.text for _ in range(300) if (made := speaker.expression("spatial")) is not None}
    assert texts == {
        f"the {side}most {noun} object".replace("  ", " ")
        for side in ("left", "right")
        for noun in ("red", "plain", "")
    }
    assert not any(speaker.expression("ordinal") for _ in range(100))


def test_the_order_of_three_by_hand():
    things = [thing("star", "red", 0.8, 0.2), thing("star", "blue", 0.2, 0.2), thing("star", "cyan", 0.5, 0.2)]
    speaker = speak(Scene(things, seed=0))
    made = {one.text: one.targets for _ in range(400) if (one := speaker.expression("ordinal")) is not None}
    assert made["the first star from the left"] == made["the third star from the right"] == (1,)
    assert made["the second plain object from the left"] == (2,)
    assert not any("top" in text or "bottom" in text for text in made)


def test_another_world_is_another_vocabulary():
    square = np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    world = Vocabulary(
        shapes={"box": [square], "bar": [square * (1.0, 0.4)]},
        plurals={"box": "boxes", "bar": "bars", "object": "objects"},
        colors={"pink": (250, 120, 160), "teal": (0, 128, 128)},
        sizes={"tiny": (0.08, 0.09), "huge": (0.15, 0.16)},
        textures={"flat": None},
        cells=4,
    )
    known = set(words(world))
    assert {"boxes", "teal", "huge", "x3"} <= known and not {"circle", "x4", "striped"} & known
    for index in range(40):
        scene = sample_scene(index, vocabulary=world)
        speaker = speak(scene, index)
        for kind in QUESTION_KINDS:
            question = speaker.question(kind)
            if question is not None:
                assert question.answer == reading.answer(scene, question.text), question
                assert set(f"{question.text} {question.answer}".split()) <= known
