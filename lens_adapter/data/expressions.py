"""Referring expressions and questions about scenes, each with its truth.

An expression names objects of a scene ("the small striped circle left of the red heart"); a question has an answer in
words. Both are unambiguous by construction: what is nearly a tie is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

import numpy as np

from lens_adapter.data.scenes import Scene, SceneObject
from lens_adapter.data.vocabulary import Vocabulary

Look = dict[str, str]  # some attributes and their values, e.g. {"color": "red", "shape": "circle"}
Option = TypeVar("Option")

# Differences along an axis (fractions of the image's side) that count as "left of", and that decide an order.
CLEAR_STEP = 0.08
CLEAR_ORDER = 0.04
ORDINALS = ("first", "second", "third")
NOWHERE = "nowhere"
DIRECTIONS = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
EXTREMES = {"leftmost": ("x", -1), "rightmost": ("x", 1), "topmost": ("y", -1), "bottommost": ("y", 1)}
SIDES = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}
FUNCTION_WORDS = (
    *("what", "color", "shape", "size", "texture", "where", "is", "there", "the", "a", "at", "how", "many", "which"),
    *("describe", "every", "from", "and", "?", "yes", "no", "nothing", "of"),
    *("object", "objects", "left", "right", "above", "below"),
    *ORDINALS,
    *EXTREMES,
    *("top", "bottom"),
    NOWHERE,
)


@dataclass(frozen=True)
class Expression:
    """A text and the objects it names.

    Attributes:
        kind: "attribute", "spatial", "ordinal", "several" or "absent".
        text: e.g. "the leftmost red object".
        targets: indices into `scene.objects`; empty for "absent".
    """

    kind: str
    text: str
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A question and its only right answer, both in lower-case words separated by single spaces."""

    kind: str
    text: str
    answer: str


def words(vocabulary: Vocabulary) -> list[str]:
    """Every word that expressions, questions and answers about scenes of this vocabulary can hold."""
    looks = [value for values in vocabulary.looks().values() for value in values]
    numbers = [str(n) for n in range(10)]
    places = [f"{axis}{k}" for axis in "xy" for k in range(vocabulary.cells)]
    return list(dict.fromkeys([*FUNCTION_WORDS, *looks, *vocabulary.plurals.values(), *numbers, *places]))


def place(scene: Scene, thing: SceneObject) -> str:
    """The grid cell of an object's center, column then row: "x3 y5"."""
    cells = scene.vocabulary.cells
    return f"x{min(int(thing.x * cells), cells - 1)} y{min(int(thing.y * cells), cells - 1)}"


def full_name(thing: SceneObject) -> str:
    """Every attribute: "large striped red circle"."""
    return f"{thing.size} {thing.texture} {thing.color} {thing.shape}"


def noun_phrase(look: Look) -> str:
    """Some attributes as a noun phrase without article: {"color": "red"} -> "red object"."""
    return " ".join([*(look[a] for a in ("size", "texture", "color") if a in look), look.get("shape", "object")])


def matching(scene: Scene, look: Look) -> list[int]:
    """Indices of the objects that have every attribute of `look`."""
    return [i for i, o in enumerate(scene.objects) if all(o.look(a) == value for a, value in look.items())]


class Speaker:
    """Says things about one scene, choosing at random with `rng`."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene = scene
        self.objects = scene.objects
        self.rng = rng
        self.looks = scene.vocabulary.looks()
        self._unique_looks = [self._find_unique_looks(thing) for thing in self.objects]

    def expression(self, kind: str) -> Expression | None:
        """A random expression of this kind, or None where the scene has no clear one."""
        spatial = self._extreme if self.rng.random() < 0.5 else self._relation
        makers: dict[str, Callable[[], tuple[str, Sequence[int]] | None]] = {
            "attribute": self._attribute,
            "spatial": spatial,
            "ordinal": self._ordinal,
            "several": self._several,
            "absent": self._absent,
        }
        made = makers[kind]()
        return None if made is None else Expression(kind, made[0], tuple(made[1]))

    def question(self, kind: str) -> Question | None:
        """A random question of this kind (see `QUESTION_KINDS`), or None where the scene has no clear one."""
        made = QUESTION_KINDS[kind](self)
        return None if made is None else Question(kind, *made)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _pick(self, options: Sequence[Option]) -> Option:
        return options[int(self.rng.integers(len(options)))]

    def _find_unique_looks(self, thing: SceneObject) -> list[Look]:
        """Every combination of attributes that `thing` has and nothing else in the scene."""
        shared = [{a for a in self.looks if o.look(a) == thing.look(a)} for o in self.objects if o is not thing]
        chosen = [set(c) for count in range(1, len(self.looks) + 1) for c in combinations(self.looks, count)]
        return [{a: thing.look(a) for a in c} for c in chosen if not any(c <= same for same in shared)]

    def _unique_name(self, target: int, without: str | None = None) -> str | None:
        """A shortest-to-full name that only `target` has; never uses the attribute `without`."""
        good = [look for look in self._unique_looks[target] if without not in look]
        if not good:
            return None
        # Short names are what people say; longer ones come now and then.
        shortest = min(map(len, good))
        short = [look for look in good if len(look) == shortest]
        return noun_phrase(self._pick(short if self.rng.random() < 0.6 else good))

    def _group(self, target: int) -> tuple[Look, list[int]]:
        """A vague name ("red object", "circle", "object") of `target` and everything it fits."""
        thing = self.objects[target]
        choices: list[tuple[str, ...]] = [("shape",), ("color",), ("texture",), ("color", "shape"), ()]
        chosen = self._pick(choices)
        look = {a: thing.look(a) for a in chosen}
        return look, matching(self.scene, look)

    def _order(self, members: Sequence[int], axis: str, sign: int) -> list[int] | None:
        """`members` sorted along an axis, or None when two of them are too close to tell."""
        position = {i: sign * getattr(self.objects[i], axis) for i in members}
        ordered = sorted(members, key=position.__getitem__)
        steps = [position[b] - position[a] for a, b in pairwise(ordered)]
        return ordered if all(step >= CLEAR_ORDER for step in steps) else None

    def _step(self, target: int, anchor: int, direction: str) -> float:
        """How far `target` lies from `anchor` in this direction; negative: the other way."""
        axis, sign = DIRECTIONS[direction]
        step: float = sign * (getattr(self.objects[target], axis) - getattr(self.objects[anchor], axis))
        return step

    def _any(self) -> int:
        return int(self.rng.integers(len(self.objects)))

    # -- expressions --------------------------------------------------------------------------------------------------

    def _attribute(self) -> tuple[str, list[int]] | None:
        target = self._any()
        unique = self._unique_name(target)
        return None if unique is None else (f"the {unique}", [target])

    def _extreme(self) -> tuple[str, list[int]] | None:
        look, members = self._group(self._any())
        extreme = self._pick(list(EXTREMES))
        axis, sign = EXTREMES[extreme]
        if len(members) < 2:
            return None  # the name alone would do
        position = sorted((-sign * getattr(self.objects[i], axis), i) for i in members)
        if position[1][0] - position[0][0] < CLEAR_ORDER:
            return None
        return f"the {extreme} {noun_phrase(look)}", [position[0][1]]

    def _relation(self) -> tuple[str, list[int]] | None:
        target, anchor = self._any(), self._any()
        if target == anchor:
            return None
        direction = self._pick(list(DIRECTIONS))
        look, members = self._group(target)
        steps = {i: self._step(i, anchor, direction) for i in members if i != anchor}
        others = [step for i, step in steps.items() if i != target]
        # Needed (the name alone fits several) and clear (every other one lies the other way).
        if not others or steps[target] < CLEAR_STEP or max(others) > 0:
            return None
        unique = self._unique_name(anchor)
        return None if unique is None else (f"the {noun_phrase(look)} {direction} the {unique}", [target])

    def _ordinal(self) -> tuple[str, list[int]] | None:
        look, members = self._group(self._any())
        side = self._pick(list(SIDES))
        ordered = self._order(members, *SIDES[side])
        if ordered is None or len(ordered) < 3:
            return None
        rank = int(self.rng.integers(min(len(ordered), len(ORDINALS))))
        return f"the {ORDINALS[rank]} {noun_phrase(look)} from the {side}", [ordered[rank]]

    def _several(self) -> tuple[str, list[int]] | None:
        look, members = self._group(self._any())
        return None if len(members) < 2 or not look else (f"every {noun_phrase(look)}", members)

    def _absent(self, textures: float = 0.3) -> tuple[str, list[int]] | None:
        """Mostly looks that are there, recombined: hard to tell from them. `textures`: how often one is named."""
        first, second = self.objects[self._any()], self.objects[self._any()]
        shape = second.shape if self.rng.random() < 0.7 else self._pick(self.looks["shape"])
        look = {"color": first.color, "shape": shape}
        if self.rng.random() < textures:
            look["texture"] = self._pick(self.looks["texture"])
        return None if matching(self.scene, look) else (f"the {noun_phrase(look)}", [])

    # -- questions ----------------------------------------------------------------------------------------------------

    def _ask_attribute(self) -> tuple[str, str] | None:
        target, attribute = self._any(), self._pick(list(self.looks))
        unique = self._unique_name(target, without=attribute)
        return None if unique is None else (f"what {attribute} is the {unique} ?", self.objects[target].look(attribute))

    def _ask_where(self, kind: str) -> tuple[str, str] | None:
        made = self.expression(kind)
        if made is None:
            return None
        left_to_right = sorted(made.targets, key=lambda i: (self.objects[i].x, self.objects[i].y))
        places = " and ".join(place(self.scene, self.objects[i]) for i in left_to_right)
        text = made.text.removeprefix("the ") if self.rng.random() < 0.25 else made.text
        return f"where is {text} ?", places or NOWHERE

    def _ask_what_is_at(self) -> tuple[str, str] | None:
        cells = self.scene.vocabulary.cells
        if self.rng.random() < 0.85:
            thing = self.objects[self._any()]
            here = place(self.scene, thing)
            sharing = [o for o in self.objects if place(self.scene, o) == here]
            return (f"what is at {here} ?", full_name(thing)) if len(sharing) == 1 else None
        column, row = (int(k) for k in self.rng.integers(cells, size=2))
        x, y = (column + 0.5) / cells, (row + 0.5) / cells
        free = all((x - o.x) ** 2 + (y - o.y) ** 2 > (o.radius + 0.06) ** 2 for o in self.objects)
        return (f"what is at x{column} y{row} ?", "nothing") if free else None

    def _ask_existence(self) -> tuple[str, str] | None:
        if self.rng.random() < 0.5:
            thing = self.objects[self._any()]
            return f"is there a {thing.color} {thing.shape} ?", "yes"
        # Named like what is there, by color and shape: the wording must not give the answer away.
        absent = next((made for _ in range(4) if (made := self._absent(textures=0.0))), None)
        return None if absent is None else (f"is there a {absent[0].removeprefix('the ')} ?", "no")

    def _ask_count(self) -> tuple[str, str] | None:
        thing = self.objects[self._any()]
        attribute = self._pick([None, "shape", "shape", "color", "color", "texture", "size"])
        if attribute is None:
            return "how many objects ?", str(len(self.objects))
        value = thing.look(attribute) if self.rng.random() < 0.85 else self._pick(self.looks[attribute])
        plurals = self.scene.vocabulary.plurals
        noun = plurals[value] if attribute == "shape" else f"{value} {plurals['object']}"
        return f"how many {noun} ?", str(len(matching(self.scene, {attribute: value})))

    def _ask_relation(self) -> tuple[str, str] | None:
        target, anchor = self._any(), self._any()
        direction = self._pick(list(DIRECTIONS))
        step = self._step(target, anchor, direction)
        subject, landmark = self._unique_name(target), self._unique_name(anchor)
        if abs(step) < CLEAR_STEP or subject is None or landmark is None:
            return None
        return f"is the {subject} {direction} the {landmark} ?", "yes" if step > 0 else "no"

    def _ask_superlative(self) -> tuple[str, str] | None:
        extreme = self._pick(list(EXTREMES))
        axis, sign = EXTREMES[extreme]
        position = sorted((-sign * getattr(o, axis), i) for i, o in enumerate(self.objects))
        if len(position) < 2 or position[1][0] - position[0][0] < CLEAR_ORDER:
            return None
        return f"what is the {extreme} object ?", full_name(self.objects[position[0][1]])

    def _ask_description(self) -> tuple[str, str] | None:
        made = self.expression(self._pick(["spatial", "spatial", "ordinal"]))
        return None if made is None else (f"describe {made.text} ?", full_name(self.objects[made.targets[0]]))


QUESTION_KINDS: dict[str, Callable[[Speaker], tuple[str, str] | None]] = {
    "attributes": Speaker._ask_attribute,
    "existence": Speaker._ask_existence,
    "superlatives": Speaker._ask_superlative,
    "counting": Speaker._ask_count,
    "relations": Speaker._ask_relation,
    "where": lambda speaker: speaker._ask_where("attribute"),
    "where_spatial": lambda speaker: speaker._ask_where("spatial"),
    "where_ordinal": lambda speaker: speaker._ask_where("ordinal"),
    "where_several": lambda speaker: speaker._ask_where("several"),
    "where_absent": lambda speaker: speaker._ask_where("absent"),
    "what_is_at": Speaker._ask_what_is_at,
    "description": Speaker._ask_description,
}
EXPRESSION_KINDS = ("attribute", "spatial", "ordinal", "several", "absent")
