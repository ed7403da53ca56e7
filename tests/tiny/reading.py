"""An independent reader: what a text names in a scene, and what a question's answer is, from words and positions alone.

Shares no code with `lens_adapter.data.expressions`, which it is there to check.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf

from lens_adapter.data.scenes import Scene, SceneObject

_RELATIONS = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
_FROM_SIDE = {"left": lambda o: o.x, "right": lambda o: 1 - o.x, "top": lambda o: o.y, "bottom": lambda o: 1 - o.y}
_ORDINALS = ["first", "second", "third"]


def read(scene: Scene, text: str) -> tuple[list[SceneObject], float]:
    """The objects a text names, and the smallest step along an axis that this rests on (infinite: on none)."""
    for relation, gap in _RELATIONS.items():
        head, found, rest = text.partition(f" {relation} the ")
        if found:
            anchor = only(scene, rest)
            there = [(gap(thing, anchor), thing) for thing in fitting(scene, head) if thing is not anchor]
            return [thing for step, thing in there if step > 0], min((abs(step) for step, _ in there if step > 0))
    words = _bare(text)
    if words[0].endswith("most"):
        side, rank, noun = words[0].removesuffix("most"), 0, words[1:]
    elif words[-3:-1] == ["from", "the"]:
        side, rank, noun = words[-1], _ORDINALS.index(words[0]), words[1:-3]
    else:
        return fitting(scene, text), inf
    queue = sorted(fitting(scene, " ".join(noun)), key=_FROM_SIDE[side])
    steps = [_FROM_SIDE[side](b) - _FROM_SIDE[side](a) for a, b in pairwise(queue)]
    return [queue[rank]], steps[0] if words[0].endswith("most") else min(steps)


def fitting(scene: Scene, noun_phrase: str) -> list[SceneObject]:
    """All objects of which every word is true."""
    said = set(_bare(noun_phrase)) - {"object"}
    return [thing for thing in scene.objects if said <= {thing.size, thing.texture, thing.color, thing.shape}]


def only(scene: Scene, noun_phrase: str) -> SceneObject:
    """The one object that fits; more or none is an error."""
    (thing,) = fitting(scene, noun_phrase)
    return thing


def relation_step(scene: Scene, question: str) -> float:
    """How far the subject of "is the X left of the Y ?" lies to that side of Y."""
    for relation, gap in _RELATIONS.items():
        head, found, rest = _statement(question).partition(f" {relation} the ")
        if found:
            return gap(only(scene, head.removeprefix("is ")), only(scene, rest))
    raise ValueError(f"no relation in {question!r}")


def answer(scene: Scene, question: str) -> str:
    """The answer, worked out from the scene."""
    statement = _statement(question)
    if statement.startswith("how many "):
        singular = {plural: name for name, plural in scene.vocabulary.plurals.items()}
        words = [singular.get(word, word) for word in statement.removeprefix("how many ").split()]
        return str(len(fitting(scene, " ".join(words))))
    if statement.startswith("where is "):
        named, _ = read(scene, statement.removeprefix("where is "))
        return " and ".join(cell(scene, thing) for thing in sorted(named, key=lambda o: o.x)) or "nowhere"
    if statement.startswith("what is at "):
        place = statement.removeprefix("what is at ")
        there = [_described(thing) for thing in scene.objects if cell(scene, thing) == place]
        return " or ".join(there) or "nothing"
    if statement.startswith("is there a "):
        return "yes" if fitting(scene, statement.removeprefix("is there a ")) else "no"
    if statement.startswith("is the "):
        return "yes" if relation_step(scene, question) > 0 else "no"
    for start in ("what is ", "describe "):
        if statement.startswith(start):
            (thing,), _ = read(scene, statement.removeprefix(start))
            return _described(thing)
    _, attribute, _, *noun = statement.split()  # what color is the ...
    return getattr(only(scene, " ".join(noun)), attribute)


def cell(scene: Scene, thing: SceneObject) -> str:
    cells = scene.vocabulary.cells
    return f"x{int(thing.x * cells // 1)} y{int(thing.y * cells // 1)}"


def _described(thing: SceneObject) -> str:
    return " ".join([thing.size, thing.texture, thing.color, thing.shape])


def _statement(question: str) -> str:
    assert question.endswith(" ?")
    return question[:-2]


def _bare(text: str) -> list[str]:
    """Words without the article."""
    words = text.split()
    return words[1:] if words[0] in ("the", "every") else words
