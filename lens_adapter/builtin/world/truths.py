"""What is true of a scene, what is not, and what people would disagree about."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lens_adapter.builtin.world.catalog import CATEGORIES, COLORFUL, THINGS, is_a
from lens_adapter.builtin.world.facts import FACTS
from lens_adapter.builtin.world.scenes import CELLS, Scene, SceneObject
from lens_adapter.builtin.world.wording import DIRECTIONS, EXTREMES, SIZE_EXTREMES, Look

# Differences along an axis (fractions of the image's side) that count as "left of", that decide an order, and by which
# all others must lie the other way.
CLEAR_STEP = 0.08
CLEAR_ORDER = 0.04
CLEAR_OTHER_WAY = 0.02
CLEAR_NEARER = 0.06  # difference of two distances
CLEAR_SIZE = 1.15  # ratio of two lengths, and of two areas

_MEMBERS = {category: is_a(category) for category in CATEGORIES}


def place(thing: SceneObject) -> str:
    """The grid cell of an object's middle, column then row: "x3 y5"."""
    return f"x{min(int(thing.x * CELLS), CELLS - 1)} y{min(int(thing.y * CELLS), CELLS - 1)}"


def holds(thing: SceneObject, attribute: str, value: str) -> bool | None:
    """Is a thing what is said of it? None: people would disagree."""
    if attribute == "name":
        return thing.name == value
    if attribute == "category":
        return _MEMBERS[value].holds(thing.name)
    if attribute == "fact":
        return FACTS[value].members.holds(thing.name)
    if attribute == "color":
        return True if thing.color == value else None if value in THINGS[thing.name].also else False
    return True if thing.size == value else None if "medium" in (thing.size, value) else False


class Truths:
    """Answers about one scene."""

    def __init__(self, scene: Scene):
        self.objects = scene.objects
        self._answers: dict[tuple[str, str], list[bool | None]] = {}
        self._unique: dict[int, list[Look]] = {}

    def answers(self, attribute: str, value: str) -> list[bool | None]:
        """`holds` for every object."""
        key = (attribute, value)
        if key not in self._answers:
            self._answers[key] = [holds(thing, attribute, value) for thing in self.objects]
        return self._answers[key]

    def matching(self, look: Look) -> list[int] | None:
        """Indices of the objects that are all that a look says; None where people would disagree about one."""
        said = [self.answers(*item) for item in look.items()]
        found = []
        for i in range(len(self.objects)):
            answers = [answer[i] for answer in said]
            if all(answers):
                found.append(i)
            elif False not in answers:
                return None
        return found

    def unique_looks(self, target: int) -> list[Look]:
        """The looks that a target has and nothing else in the scene could have; short ones first."""
        if target not in self._unique:
            thing = self.objects[target]
            heads: list[Look] = [{"name": thing.name}, {"category": thing.category}, {}]
            colors: list[Look] = [{}] if thing.color == COLORFUL else [{}, {"color": thing.color}]
            sizes: list[Look] = [{}] if thing.size == "medium" else [{}, {"size": thing.size}]
            looks = [size | color | head for size in sizes for color in colors for head in heads]
            self._unique[target] = sorted((look for look in looks if self.matching(look) == [target]), key=len)
        return self._unique[target]

    def order(self, members: Sequence[int], axis: str, sign: int) -> list[int] | None:
        """`members` sorted along an axis, or None when two of them are too close to tell."""
        position = {i: sign * getattr(self.objects[i], axis) for i in members}
        ordered = sorted(members, key=position.__getitem__)
        steps = [position[b] - position[a] for a, b in pairwise(ordered)]
        return ordered if all(step >= CLEAR_ORDER for step in steps) else None

    def first_along(self, members: Sequence[int], extreme: str) -> int | None:
        """The leftmost, or highest, or ... of two or more; None when there is no clear one."""
        axis, sign = EXTREMES[extreme]
        position = sorted((-sign * getattr(self.objects[i], axis), i) for i in members)
        clear = len(position) > 1 and position[1][0] - position[0][0] >= CLEAR_ORDER
        return position[0][1] if clear else None

    def first_in_size(self, members: Sequence[int], extreme: str) -> int | None:
        """The largest or smallest of two or more, in length and in area; None when there is no clear one."""
        sign = SIZE_EXTREMES[extreme]
        ordered = sorted(members, key=lambda i: -sign * self.objects[i].side)
        if len(ordered) < 2:
            return None
        best, *others = (self.objects[i] for i in ordered)
        ratios = [r**sign for o in others for r in (best.side / o.side, best.area / o.area)]
        return ordered[0] if min(ratios) >= CLEAR_SIZE else None

    def step(self, target: int, anchor: int, direction: str) -> float:
        """How far `target` lies from `anchor` in this direction; negative: the other way."""
        axis, sign = DIRECTIONS[direction]
        return sign * (getattr(self.objects[target], axis) - getattr(self.objects[anchor], axis))

    def distance(self, first: int, second: int) -> float:
        """Between two middles."""
        a, b = self.objects[first], self.objects[second]
        return float(np.hypot(a.x - b.x, a.y - b.y))

    def lies_between(self, target: int, first: int, second: int) -> bool | None:
        """Is `target` about in the middle of two others? None: hard to say."""
        t, a, b = (np.array([self.objects[i].x, self.objects[i].y]) for i in (target, first, second))
        way = b - a
        length = float(np.hypot(*way))
        along = float((t - a) @ way) / length**2
        aside = abs(float(way[0] * (t - a)[1] - way[1] * (t - a)[0])) / length**2
        if length >= 0.3 and 0.25 <= along <= 0.75 and aside <= 0.18:
            return True
        return False if along < 0.05 or along > 0.95 or aside > 0.4 else None
