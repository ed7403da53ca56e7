"""Everything that is said about scenes of things is true, clear and made of known words, and what is held out stays
out of training; checked by an independent reader."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from math import inf
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lens_adapter.builtin.world import (
    EXPRESSION_KINDS,
    QUESTION_KINDS,
    REQUEST_KINDS,
    SUBSETS,
    Expression,
    Question,
    Scene,
    SceneObject,
    Speaker,
    sample_scene,
    words,
)
from lens_adapter.builtin.world.catalog import ALSO_CALLED, CATEGORIES, OBJECT, THINGS, Noun
from lens_adapter.builtin.world.facts import FACTS, HELD_OUT_PAIRS
from lens_adapter.builtin.world.truths import CLEAR_NEARER, CLEAR_ORDER, CLEAR_STEP
from lens_adapter.builtin.world.wording import (
    ASKING_FRAMES,
    BOTH,
    EVERYDAY,
    EXPRESSIONS,
    FRAMES,
    HELD_OUT_WORDS,
    REQUESTS,
)
from tests.tiny import things_reading as reading

SCENES = 150


def speak(scene: Scene, seed: int = 0) -> Speaker:
    return Speaker(scene, np.random.default_rng(seed))


def thing(name: str, x: float, y: float, color: str = "", size: str = "medium", side: float = 0.27) -> SceneObject:
    return SceneObject(name, color or THINGS[name].color, size, x, y, side, angle=0.0, mirrored=False)


def texts(scene: Scene, kind: str, subset: str = "seen", tries: int = 300) -> dict[str, tuple[int, ...]]:
    speaker = speak(scene)
    made = [speaker.expression(kind, subset) for _ in range(tries)]
    return {one.text: one.targets for one in made if one is not None}


@pytest.fixture(scope="module")
def said() -> list[tuple[Scene, Expression]]:
    pairs = []
    for index in range(SCENES):
        scene = sample_scene(index, "train")
        speaker = speak(scene, index)
        for kind in EXPRESSION_KINDS:
            for subset in SUBSETS if kind == "reasoning" else SUBSETS[:2]:
                made = [speaker.expression(kind, subset) for _ in range(3)]
                pairs += [(scene, expression) for expression in made if expression is not None]
    return pairs


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    pairs = []
    for index in range(SCENES):
        scene = sample_scene(index, "words")
        speaker = speak(scene, index)
        made = [speaker.question(kind) for kind in QUESTION_KINDS for _ in range(3)]
        pairs += [(scene, question) for question in made if question is not None]
    return pairs


def test_every_kind_and_subset_is_said_and_asked_often(said, asked):
    kinds = Counter((e.kind, e.subset) for _, e in said)
    assert {kind for kind, _ in kinds} == set(EXPRESSION_KINDS) and len(kinds) == 16 and min(kinds.values()) > 60
    kinds = Counter(question.kind for _, question in asked)
    assert set(kinds) == set(QUESTION_KINDS) and min(kinds.values()) > 60


def test_every_way_to_say_it_is_used(said):
    used = {e.text for _, e in said}
    forms = [BOTH, *(way for ways in EXPRESSIONS.values() for way in (*ways.seen, *ways.held_out))]
    for form in forms:
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(form))
        assert any(re.fullmatch(pattern, text) for text in used), form


@pytest.mark.parametrize("kind", EXPRESSION_KINDS)
def test_targets_are_what_an_independent_reader_finds(said, kind):
    for scene, expression in said:
        if expression.kind == kind:
            named, _ = reading.read(scene, expression.text)  # raises where people would disagree
            assert sorted(named) == sorted(expression.targets), (expression, [o.name for o in scene.objects])


def test_numbers_of_targets(said):
    for _, expression in said:
        count = len(set(expression.targets))
        assert count == len(expression.targets)
        if expression.kind in ("attribute", "spatial", "ordinal"):
            assert count == 1
        elif expression.kind == "joined":
            assert count >= 2
        elif expression.kind == "several":
            assert count >= 2
            number = [n for n, word in enumerate(reading.NUMBERS) if expression.text.startswith(f"the {word} ")]
            assert number in ([], [count])
            assert count == 2 or not expression.text.startswith("both ")
        else:
            assert (count == 0) == (expression.kind == "absent")


def test_positions_differ_clearly_where_they_matter(said):
    margins = defaultdict(list)
    for scene, expression in said:
        _, margin = reading.read(scene, expression.text) if expression.targets else ([], inf)
        between = " between " in expression.text
        near = re.search("(nearest|closest) to", expression.text)
        relation = any(f" {word} the " in expression.text for word in reading.RELATIONS)
        least = 0.02 if between else CLEAR_NEARER if near else CLEAR_STEP if relation else CLEAR_ORDER
        if re.search(reading.SIZE_WORDS, expression.text):
            least = 0.02
        assert margin >= least - 1e-9, expression
        margins[expression.kind].append(margin)
    assert min(margins["spatial"]) < inf and min(margins["reasoning"]) < inf


def test_a_place_is_named_only_where_the_name_alone_would_not_do(said):
    for scene, expression in said:
        relations = "|".join(reading.RELATIONS)  # the longer ones come first
        found = re.fullmatch(rf"the (.+?) (that (is|you see) )?({relations}) the .+", expression.text)
        if found and expression.kind == "spatial":
            assert len(reading.fitting(scene, found[1])) > 1, expression


# -- what is held out -------------------------------------------------------------------------------------------------


def clause_of(expression: Expression) -> str:
    """The longest clause that the text holds, in either form."""
    fact = FACTS[expression.fact]
    held = [c for c in fact.all_clauses if c in expression.text or f"what {c.removeprefix('that ')}" == expression.text]
    return max(held, key=len)


def test_what_is_held_out_never_names_a_mask_in_training(said):
    held_out_templates = {
        re.sub(r"\\\{\w+\\\}", ".+", re.escape(way)) for ways in EXPRESSIONS.values() for way in ways.held_out
    }
    for scene, expression in said:
        if expression.subset != "seen":
            continue
        assert not any(re.fullmatch(pattern, expression.text) for pattern in held_out_templates), expression
        if expression.fact:
            pairs = {(scene.objects[i].name, expression.fact) for i in expression.targets}
            assert not pairs & HELD_OUT_PAIRS, expression
            assert clause_of(expression) != FACTS[expression.fact].held_out_clause
            assert any((name, expression.fact) not in HELD_OUT_PAIRS for name in FACTS[expression.fact].members.sure)


def test_every_held_out_subset_holds_one_thing_that_is_held_out(said):
    templates = {re.sub(r"\\\{\w+\\\}", ".+", re.escape(w)) for ways in EXPRESSIONS.values() for w in ways.held_out}
    for scene, expression in said:
        if expression.kind != "reasoning" or expression.subset == "seen":
            continue
        pairs = {(scene.objects[i].name, expression.fact) for i in expression.targets}
        new = {
            "held_out_fact": bool(pairs & HELD_OUT_PAIRS),
            "held_out_phrasing": clause_of(expression) == FACTS[expression.fact].held_out_clause,
            "held_out_template": any(re.fullmatch(pattern, expression.text) for pattern in templates),
        }
        assert [name for name, is_new in new.items() if is_new] == [expression.subset], expression


def test_held_out_pairs_are_facts_and_leave_most_to_learn_from():
    known = {(name, fact.name) for fact in FACTS.values() for name in fact.members.sure}
    assert known >= HELD_OUT_PAIRS
    assert 0.1 < len(HELD_OUT_PAIRS) / len(known) < 0.25
    whole = {f for f in FACTS if {(n, f) for n in FACTS[f].members.sure} <= HELD_OUT_PAIRS}
    assert whole == {"milk", "cut_paper", "rain", "time"}  # facts that name no mask at all in training


def test_what_is_held_out_is_taught_in_words(asked):
    speakers = [speak(sample_scene(index, "words"), index) for index in range(300)]
    kinds = ("facts", "fact_names", "where_reasoning") * 4
    about_facts = [q.text for speaker in speakers for kind in kinds if (q := speaker.question(kind)) is not None]
    text = " | ".join(about_facts)
    for fact in FACTS.values():
        assert not fact.held_out_clause or fact.held_out_clause.removeprefix("that ") in text, fact.name
    templates = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(w)) for ways in EXPRESSIONS.values() for w in ways.held_out]
    named = {re.sub(r"^(where is|describe) (.+) \?$", r"\2", q.text) for _, q in asked}
    assert not [text for text in named for pattern in templates if re.fullmatch(pattern, text)]
    seen = {word for _, q in asked for word in f"{q.text} {q.answer}".split()}
    assert {word for way in templates for word in way.replace(".+", " ").replace("\\", "").split()} <= seen


def test_unknown_subsets_are_refused():
    with pytest.raises(ValueError, match="held_out_fact"):
        speak(sample_scene(0)).expression("spatial", "held_out_fact")


# -- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_right(asked, kind):
    for scene, question in asked:
        if question.kind == kind:
            truth = reading.answer(scene, question.text)
            assert question.answer == truth, (question, [(o.name, o.color) for o in scene.objects])


@pytest.mark.parametrize("kind", ["existence", "relations", "facts", "routing"])
def test_yes_and_no_are_both_common(asked, kind):
    answers = Counter(question.answer for _, question in asked if question.kind == kind)
    assert set(answers) == {"yes", "no"} and min(answers.values()) > 0.3 * answers.total()


def test_nothing_is_said_to_be_at_a_place_only_if_no_object_reaches_it(asked):
    empty = [(scene, q) for scene, q in asked if q.kind == "names" and q.answer == "nothing"]
    assert len(empty) > 20
    for scene, question in empty:
        column, row = (int(k) for k in re.search(r"x(\d) y(\d)", question.text).groups())
        masks = scene.masks(64)
        assert not masks[:, 8 * row + 3 : 8 * row + 5, 8 * column + 3 : 8 * column + 5].any()


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", SUBSETS[:2])
@pytest.mark.parametrize("kind", REQUEST_KINDS)
def test_requests_want_what_their_kind_says(kind, subset):
    forms = REQUESTS.held_out if subset == "held_out_template" else REQUESTS.seen
    used = set()
    for index in range(SCENES):
        scene = sample_scene(index, "validation")
        if (text := speak(scene, index).request(kind, subset)) is None:
            continue
        assert reading.wants_mask(scene, text) == (kind != "dialogue"), text
        assert (" ? " in text) == (kind == "mixed"), text
        if kind != "dialogue":
            *_, last = text.split(" ? ")
            used |= {form for form in forms if re.fullmatch(re.escape(form).replace(r"\{e\}", ".+"), last)}
            if kind != "mixed":
                about_facts = any(clause.removeprefix("that ") in text for clause in reading.CLAUSES)
                assert about_facts or kind != "reasoning", text
    assert used == ({*forms} if kind != "dialogue" else set())


def test_how_a_mask_is_asked_for_in_evaluation_is_never_taught(asked):
    taught = [q.text.removeprefix(reading.ROUTING) for _, q in asked if q.kind == "routing"]
    assert len(taught) > 100
    for form in REQUESTS.held_out:
        start = form.partition("{e}")[0]
        assert not [text for text in taught if start in text]
    words_of_held_out = {word for form in REQUESTS.held_out for word in form.replace("{e}", "").split()}
    assert words_of_held_out - {"please", "find", "?"} <= {word for text in taught for word in text.split()}


# -- everyday words ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talked() -> list[tuple[Scene, Expression | Question]]:
    """As trainings draw it: in everyday words."""
    pairs = []
    for index in range(SCENES):
        scene = sample_scene(index, "words")
        speaker = Speaker(scene, np.random.default_rng(index), "everyday")
        made = [make(kind) for kind in EXPRESSION_KINDS for make in [speaker.expression] * 3]
        made += [speaker.question(kind) for kind in QUESTION_KINDS for _ in range(2)]
        pairs += [(scene, one) for one in made if one is not None]
    return pairs


def test_everyday_words_mean_the_same(talked):
    for scene, one in talked:
        if isinstance(one, Expression):
            assert sorted(reading.read(scene, reading.plainly(one.text))[0]) == sorted(one.targets), one
            assert one.subset == "everyday"
        elif one.kind != "routing":
            assert one.answer == reading.answer_everyday(scene, one.text), one


def test_most_of_what_is_said_in_everyday_words_is_usual(talked):
    """And most words, and every frame and template, are used."""
    usual = set(words()[: words().index("y7") + 1])
    said = [one.text.split() for _, one in talked]
    assert 0.3 < np.mean([set(text) <= usual for text in said]) < 0.7
    new = set(words()) - usual
    assert len(new) > 150 and len(new - {word for text in said for word in text}) < 0.2 * len(new)
    texts = {one.text for _, one in talked if isinstance(one, Expression)}
    for form in (*FRAMES.seen, *ASKING_FRAMES, *(way for ways in EXPRESSIONS.values() for way in ways.everyday)):
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(form))
        assert any(re.search(pattern, text) for text in texts), form


def test_wordings_that_are_held_out_are_in_no_training(talked, said, asked):
    frames = [re.escape(frame).replace(r"\{e\}", ".+") for frame in FRAMES.held_out]
    trained = [one.text for _, one in (*talked, *said, *asked)]
    for text in trained:
        assert not any(pair <= set(text.split()) for pair in HELD_OUT_WORDS), text
        assert not any(re.search(frame, text) for frame in frames), text
    known = {word for text in trained for word in text.split()}
    assert {word for frame in FRAMES.held_out for word in frame.replace("{e}", "").split()} <= known
    assert {word for pair in HELD_OUT_WORDS for word in pair} - {"3"} <= known


def test_held_out_wordings_are_said_where_they_are_asked_for():
    pairs, frames = set(), set()
    for index in range(300):
        scene = sample_scene(index, "test")
        speaker = Speaker(scene, np.random.default_rng(index), "held_out")
        for made in filter(None, (speaker.expression(kind) for kind in EXPRESSION_KINDS)):
            assert made.subset == "held_out_wording"
            assert sorted(reading.read(scene, reading.plainly(made.text))[0]) == sorted(made.targets), made
            fits = [f for f in FRAMES.held_out if re.fullmatch(re.escape(f).replace(r"\{e\}", ".+"), made.text)]
            assert fits, made
            frames |= {*fits}
            pairs |= {pair for pair in HELD_OUT_WORDS if pair <= set(made.text.split())}
    assert frames == {*FRAMES.held_out} and pairs


def test_no_everyday_word_means_two_things():
    """Nor is one a usual word for something else."""
    usual = {noun.one: name for name, noun in named().items()} | {noun.many: name for name, noun in named().items()}
    means = {}
    for name, others in ALSO_CALLED.items():
        assert name in named()
        for form in {form for noun in others for form in (noun.one, noun.many)}:
            assert means.setdefault(form, name) == name and usual.get(form, name) == name
        assert not named()[name].loose or all(noun.loose for noun in others) or name == "clothing"
    clauses = {word for fact in FACTS.values() for clause in fact.all_clauses for word in clause.split()}
    assert not clauses & (means.keys() | {other for others in EVERYDAY.values() for other in others})


def named() -> dict[str, Noun]:
    return {name: thing.noun for name, thing in THINGS.items()} | CATEGORIES | {"object": OBJECT}


def test_a_dialogue_is_no_request_whatever_its_words():
    for index in range(SCENES):
        speaker = Speaker(sample_scene(index, "words"), np.random.default_rng(index), "everyday")
        text = speaker.request("dialogue")
        assert text is None or not re.match(r"(where (is|are) )?(please|find|select|mark|segment) ", text), text


def test_unknown_wordings_are_refused():
    with pytest.raises(ValueError, match="everyday"):
        Speaker(sample_scene(0), np.random.default_rng(0), "polite")


def test_two_things_joined_by_hand():
    scene = Scene([thing("pizza", 0.2, 0.5), thing("sheep", 0.8, 0.5), thing("sheep", 0.5, 0.2)], seed=0)
    made = texts(scene, "joined", tries=1000)
    assert made["the pizza and the sheep"] == (0, 1, 2) and made["a pizza and the two sheep"] == (0, 1, 2)
    speaker, answers = speak(scene), {}
    for _ in range(1000):
        if (asked := speaker.question("where_joined")) is not None:
            answers[asked.text] = asked.answer
    assert answers["where is the pizza and the sheep ?"] == "x1 y4 and x4 y1 and x6 y4"


# -- words ------------------------------------------------------------------------------------------------------------


def test_every_word_is_known_and_none_is_listed_twice(said, asked):
    known = words()
    assert len(known) == len(set(known)) and 500 < len(known) < 600
    assert all(re.fullmatch(r"[a-z]+|[xy]\d|\d|1st|2nd|3rd|[?:]", word) for word in known)
    spoken = {word for _, e in said for word in e.text.split()}
    spoken |= {word for _, q in asked for word in f"{q.text} {q.answer}".split()}
    assert spoken <= set(known)
    assert set(THINGS) <= spoken  # every thing is talked about


def test_a_clause_belongs_to_one_fact():
    clauses = Counter(clause for fact in FACTS.values() for clause in fact.all_clauses)
    assert max(clauses.values()) == 1
    assert {clause.split()[0] for clause in clauses} == {"you", "that", "with"}


@pytest.mark.parametrize(
    ("fact", "name", "truth"),
    [
        ("eat", "pizza", True),
        ("eat", "hammer", False),
        ("eat", "fish", None),
        ("milk", "cow", True),
        ("milk", "bee", False),
        ("wheels", "skateboard", True),
        ("wheels", "boat", False),
        ("cut_paper", "scissors", True),
        ("fly", "butterfly", True),
        ("alive", "teddy", False),
        ("four_legs", "chair", True),
        ("head", "hat", True),
        ("head", "shoe", False),
    ],
)
def test_facts_of_the_world(fact, name, truth):
    assert FACTS[fact].members.holds(name) is truth


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_one_seed_says_the_same_again():
    scene = sample_scene(3)
    first, second = speak(scene, 5), speak(scene, 5)
    for kind in (*EXPRESSION_KINDS, *EXPRESSION_KINDS):
        assert first.expression(kind) == second.expression(kind)


def test_names_of_two_cars_by_hand():
    scene = Scene([thing("car", 0.3, 0.5, "red"), thing("car", 0.7, 0.51, "blue")], seed=0)
    made = texts(scene, "attribute")
    assert made["the red car"] == made["red vehicle"] == (0,) and made["the blue object"] == (1,)
    assert "the car" not in made
    several = texts(scene, "several")
    assert several["both cars"] == several["the two vehicles"] == several["all cars"] == (0, 1)


def test_what_is_nearly_a_tie_is_not_said():
    scene = Scene([thing("apple", 0.3, 0.5), thing("lemon", 0.7, 0.51)], seed=0)
    made = texts(scene, "spatial")
    assert made["the leftmost fruit"] == (0,) and made["the rightmost object"] == (1,)
    assert not [text for text in made if re.search("topmost|highest|bottommost|lowest|largest|smallest", text)]


def test_what_people_would_disagree_about_is_not_said():
    scene = Scene([thing("teddy", 0.3, 0.3), thing("dog", 0.7, 0.7), thing("dog", 0.3, 0.7)], seed=0)
    assert not [text for text in texts(scene, "several") if "animal" in text]  # is a teddy an animal?
    made = texts(scene, "reasoning")
    assert made["everything that barks"] == (1, 2) and not [text for text in made if "four legs" in text]


def test_a_fact_by_hand():
    scene = Scene([thing("dog", 0.2, 0.5), thing("pizza", 0.5, 0.5), thing("saw", 0.8, 0.5)], seed=0)
    made = texts(scene, "reasoning")
    assert made["something you can eat"] == made["what people eat"] == (1,)
    assert made["what you would use to cut wood"] == made["the tool you would use to cut wood"] == (2,)
    absent = texts(scene, "absent", tries=2000)
    assert absent["something you can drink from"] == () and "something that has wheels" in absent
    assert texts(scene, "reasoning", "held_out_phrasing")["the piece of food you eat when you are hungry"] == (1,)
    assert not texts(scene, "reasoning", "held_out_fact")


def test_the_one_in_the_middle_by_hand():
    row = [thing("dog", 0.15, 0.5), thing("cup", 0.5, 0.52), thing("cat", 0.85, 0.5), thing("cup", 0.5, 0.05)]
    made = texts(Scene(row, seed=0), "spatial", tries=1500)
    assert made["the cup between the dog and the cat"] == (1,)
    assert not [text for text in made if re.match("the cup (to the )?(left|right) of the (dog|cat)", text)]  # both are


def test_the_page_of_examples_shows_the_truth(monkeypatch, tmp_path):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "examples" / "builtin"))
    import show_things

    monkeypatch.setattr("sys.argv", ["show_things.py", "--output", str(tmp_path / "things.png")])
    show_things.main()
    with Image.open(tmp_path / "things.png") as drawn, Image.open(root / "docs" / "things.png") as shown:
        assert drawn.size == shown.size

    for index, text, targets in show_things.SHOWN:
        assert sorted(reading.read(sample_scene(index, "test"), text)[0]) == list(targets), text
