"""An independent reader of what is said about scenes of things, from words and positions alone.

Shares the catalog, the facts and the tables of everyday words with the package, and none of the code that says or asks
anything.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import dist, hypot, inf

from lens_adapter.builtin.world.catalog import ALSO_CALLED, CATEGORIES, COLORS, OBJECT, THINGS, is_a
from lens_adapter.builtin.world.facts import FACTS
from lens_adapter.builtin.world.scenes import Scene, SceneObject
from lens_adapter.builtin.world.sprites import proportions
from lens_adapter.builtin.world.wording import ASKING_FRAMES, EVERYDAY, FRAMES

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
RANKS = ["first", "second", "third"]
WIDER = {"fruit": "food", "vegetable": "food", "flower": "plant"}
SIZE_WORDS = "largest|biggest|smallest"
EXTREMES = f"leftmost|rightmost|topmost|highest|bottommost|lowest|{SIZE_WORDS}"
RELATIONS = {
    "to the left of": lambda a, b: b.x - a.x,
    "to the right of": lambda a, b: a.x - b.x,
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
    "under": lambda a, b: a.y - b.y,
}
EXTREME_KEYS = {
    "leftmost": lambda o: o.x,
    "rightmost": lambda o: -o.x,
    "topmost": lambda o: o.y,
    "highest": lambda o: o.y,
    "bottommost": lambda o: -o.y,
    "lowest": lambda o: -o.y,
}
SIDE_KEYS = {"left": lambda o: o.x, "right": lambda o: -o.x, "top": lambda o: o.y, "bottom": lambda o: -o.y}
CLAUSES = {clause: fact for fact in FACTS.values() for clause in fact.all_clauses}
CLAUSE = "(?P<c>(?:you|that|with) .+)"
ROUTING = "is a mask wanted : "
ASKED_FOR = r"^(?:(?:please )?segment|can you outline|outline|mark|show me a mask of|show me|find the mask of) "


class Unclear(Exception):
    """People would disagree, or it is too close to call."""


def heads() -> dict[str, tuple[str, str]]:
    """Every form of every noun -> what it looks at, and the value that it asks for."""
    found = {}
    for category, noun in CATEGORIES.items():
        found |= dict.fromkeys((noun.one, noun.many, noun.loose), ("category", category))
    for name, thing in THINGS.items():
        found |= dict.fromkeys((thing.noun.one, thing.noun.many, thing.noun.loose), ("name", name))
    found |= dict.fromkeys((OBJECT.one, OBJECT.many), ("", ""))
    found.pop("")
    return found


HEADS = heads()


_ANY_HEAD = "|".join(sorted(HEADS, key=len, reverse=True))
PART = (
    rf"(?:(?:the|an?|all) )?(?:(?:{'|'.join(NUMBERS)}) )?"
    rf"(?:(?:small|large) )?(?:(?:{'|'.join(COLORS)}) )?(?:{_ANY_HEAD})"
)
AND = " (?:(?:and also|together with|with|plus|and) )?"
JOINED = rf"(?:both )?({PART}){AND}({PART})(?:{AND}({PART}))?(?: that you see in the picture)?"


def is_noun_phrase(text: str) -> bool:
    return re.sub(rf"^((small|large) )?(({'|'.join(COLORS)}) )?", "", text) in HEADS


def fitting(scene: Scene, noun_phrase: str, clause: str = "", doubts_matter: bool = True) -> list[int]:
    """All objects of which every word is surely true; raises where one is in doubt and doubts matter."""
    size, color, head = re.fullmatch(rf"(?:(small|large) )?(?:({'|'.join(COLORS)}) )?(.+)", noun_phrase).groups()
    kind, value = HEADS[head]
    found = []
    for index, thing in enumerate(scene.objects):
        doubts = []
        if kind == "name" and thing.name != value:
            continue
        if kind == "category" and value not in (thing.category, WIDER.get(thing.category)):
            if not disputed(value, thing.name):
                continue
            doubts.append(value)
        if size and thing.size != size:
            if thing.size != "medium":
                continue
            doubts.append(size)
        if color and thing.color != color:
            if color not in THINGS[thing.name].also:
                continue
            doubts.append(color)
        if clause and thing.name not in CLAUSES[clause].members.sure:
            if thing.name not in CLAUSES[clause].members.unclear:
                continue
            doubts.append(clause)
        if doubts and doubts_matter:
            raise Unclear(f"{thing.name}: {doubts}")
        if not doubts:
            found.append(index)
    return found


def disputed(category: str, name: str) -> bool:
    return name in is_a(category).unclear


def only(scene: Scene, noun_phrase: str) -> SceneObject:
    (index,) = fitting(scene, noun_phrase)
    return scene.objects[index]


def read(scene: Scene, text: str) -> tuple[list[int], float]:
    """The objects a text names, and the smallest difference in place or size that this rests on (infinite: none)."""
    objects = scene.objects
    if is_noun_phrase(text):
        return fitting(scene, text), inf
    if found := re.fullmatch(JOINED, text):
        parts = [read(scene, re.sub(r"^an? ", "", part))[0] for part in found.groups() if part]
        named = [index for part in parts for index in part]
        if len(named) > len(set(named)):
            raise Unclear("something is named twice")
        return named, inf
    if found := re.fullmatch(r"from the (?P<side>\w+) the (?P<rank>\w+) (?P<n>.+)", text) or re.fullmatch(
        rf"the (?P<rank>{'|'.join(RANKS)}) (?P<n>.+?) (?:counting )?from the (?P<side>\w+)", text
    ):
        key = SIDE_KEYS[found["side"]]
        queue = sorted(fitting(scene, found["n"]), key=lambda i: key(objects[i]))
        gaps = [key(objects[b]) - key(objects[a]) for a, b in pairwise(queue)]
        return [queue[RANKS.index(found["rank"])]], min(gaps)
    if found := re.fullmatch(r"the (?P<n>.+?) (?:that is )?(?:nearest|closest) to the (?P<a>.+)", text):
        anchor = only(scene, found["a"])
        away = sorted(
            (dist((objects[i].x, objects[i].y), (anchor.x, anchor.y)), i)
            for i in fitting(scene, found["n"])
            if objects[i] is not anchor
        )
        return [away[0][1]], away[1][0] - away[0][0]
    if found := re.fullmatch(r"the (?P<n>.+?) (?:that (?:is|you see) )?between the (?P<a>.+) and the (?P<b>.+)", text):
        a, b = only(scene, found["a"]), only(scene, found["b"])
        detours = {}
        for i in fitting(scene, found["n"]):
            o = objects[i]
            if o is not a and o is not b:
                detours[i] = hypot(o.x - a.x, o.y - a.y) + hypot(o.x - b.x, o.y - b.y) - hypot(a.x - b.x, a.y - b.y)
        best, *others = sorted(detours, key=detours.__getitem__)
        return [best], detours[others[0]] - detours[best] if others else inf
    for relation, gap in RELATIONS.items():
        if found := re.fullmatch(rf"the (?P<n>.+?) (?:that (?:is|you see) )?{relation} the (?P<a>.+)", text):
            anchor = only(scene, found["a"])
            steps = {i: gap(objects[i], anchor) for i in fitting(scene, found["n"]) if objects[i] is not anchor}
            named = [i for i, step in steps.items() if step > 0]
            return named, min(steps[i] for i in named)
    for pattern in (
        rf"the (?P<e>{EXTREMES}) of all (?P<n>.+)",
        rf"the (?P<e>{EXTREMES}) (?P<n>.+?) {CLAUSE}",
        rf"the (?P<n>.+?) {CLAUSE} that is the (?P<e>{EXTREMES})",
        rf"the (?P<e>{EXTREMES}) (?P<n>.+)",
        rf"the (?P<n>.+) that is the (?P<e>{EXTREMES})",
    ):
        found = re.fullmatch(pattern, text)
        if found and is_noun_phrase(found["n"]):
            return extreme(scene, fitting(scene, found["n"], found.groupdict().get("c", "")), found["e"])
    text = re.sub(r"^(.+?)(?: that you see)? in the picture$", r"\1", text)
    for pattern in (
        rf"(?:the|every)(?: one)?(?: of the)? (?P<n>.+?) {CLAUSE}",
        rf"(?:something|everything)(?P<n>) {CLAUSE}",
        r"(?:all of the|all the|every one of the|all|every|both|the) (?P<n>.+)",
        r"(?P<n>.+)",
    ):
        found = re.fullmatch(pattern, text)
        if found and is_noun_phrase(found["n"] or "object") and found.groupdict().get("c", "") in (*CLAUSES, ""):
            return fitting(scene, found["n"] or "object", found.groupdict().get("c", "")), inf
    if found := re.fullmatch(rf"the (?P<count>{'|'.join(NUMBERS)}) (?P<n>.+)", text):
        return fitting(scene, found["n"]), inf
    said = text.removeprefix("what ")
    return fitting(scene, "object", said if said in CLAUSES else f"that {said}"), inf


def extreme(scene: Scene, members: list[int], word: str) -> tuple[list[int], float]:
    if word in EXTREME_KEYS:
        key = EXTREME_KEYS[word]
        queue = sorted(members, key=lambda i: key(scene.objects[i]))
        return [queue[0]], key(scene.objects[queue[1]]) - key(scene.objects[queue[0]])
    by_length = sorted(members, key=lambda i: scene.objects[i].side, reverse=word != "smallest")
    by_area = sorted(members, key=lambda i: area(scene.objects[i]), reverse=word != "smallest")
    if by_length[0] != by_area[0]:
        raise Unclear(f"longest and largest differ: {word}")
    best, second = (scene.objects[i].side for i in by_length[:2])
    return [by_length[0]], abs(best - second)


def area(thing: SceneObject) -> float:
    return proportions(thing.name)[2] * thing.side**2


# Everyday words -> the usual ones.
USUAL = {other: usual for usual, others in EVERYDAY.items() for other in others}
for _name, _others in ALSO_CALLED.items():
    _noun = OBJECT if _name == "object" else (THINGS.get(_name) and THINGS[_name].noun) or CATEGORIES[_name]
    for _other in _others:
        USUAL |= {_other.many: _noun.many, _other.one: _noun.one}
        USUAL |= {_other.loose: _noun.loose} if _other.loose else {}
_ANY_OTHER = re.compile(rf"\b(?:{'|'.join(sorted(USUAL, key=len, reverse=True))})\b")
_FRAMES = sorted((*FRAMES.seen, *FRAMES.held_out, *ASKING_FRAMES), key=len, reverse=True)
SIDE_EXTREME = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
_SIDE = "(left|right|top|bottom)"
# What is said in everyday templates -> in usual ones.
PLAINLY = (
    (r"^(?:my|this|that|just the|an?) ", "the "),
    (r"^the only ", "the "),
    (r" (?:here|in this photo)$", ""),
    (rf"^the {_SIDE} ", lambda m: f"the {SIDE_EXTREME[m[1]]} "),
    (
        rf"^the (.+?) (?:furthest to the|on the far|on the|at the) {_SIDE}(?: side)?$",
        lambda m: f"the {SIDE_EXTREME[m[2]]} {m[1]}",
    ),
    (rf"^({EXTREMES}) ", r"the \1 "),
    (rf"^the ({SIZE_WORDS}) (?:object )?of the ", r"the \1 of all "),
    (" which is ", " that is "),
    (" in between ", " between "),
    (r" (?:next to|near|close to|beside|by) (?:the )?", " nearest to the "),
    (r"^(?:the )?(.+?) nearest to ", r"the \1 nearest to "),
    (r"^(?:the )?(.+?) between (?:the )?(.+) and (?:the )?(.+)$", r"the \1 between the \2 and the \3"),
    (rf"^(?:the )?(.+?) ({'|'.join(RELATIONS)}) (?:the )?(.+)$", r"the \1 \2 the \3"),
    (
        rf"^(?:the )?({'|'.join(RANKS)}) (.+?) (?:starting |counting )?from (?:the )?{_SIDE}(?: to \w+)?$",
        r"the \1 \2 from the \3",
    ),
    (r"^(?:each of the|each) ", "all "),
    (rf"^(?:all )?(?:{'|'.join(NUMBERS)}) ", "all "),
    (r"^all (?:the )?(.+ (?:you|that|with) .+)$", r"every \1"),
)


def plainly(text: str) -> str:
    """Everyday words in usual ones, with nothing around them."""
    for frame in _FRAMES:
        if found := re.fullmatch(re.escape(frame).replace(r"\{e\}", "(.+)"), text):
            text = found[1]
            break
    text = in_usual_words(text)
    if re.fullmatch(JOINED, text) and not re.fullmatch(PART, text):
        return text
    for pattern, plain in PLAINLY:
        text = re.sub(pattern, plain, text)
    return text


def in_usual_words(text: str) -> str:
    return _ANY_OTHER.sub(lambda match: USUAL[match[0]], text)


def answer_everyday(scene: Scene, question: str) -> str:
    """The answer to a question in everyday words."""
    if found := re.fullmatch(r"(?:where (?:is|are)|show me where) (.+?)(?: is)?(?: \?)?", question):
        # What is asked usually ends in "?", one more may be of what is asked about.
        named, _ = read(
            scene,
            plainly(question.removeprefix("where is ").removesuffix(" ?"))
            if question.startswith("where is ")
            else plainly(found[1]),
        )
        return " and ".join(map(cell, sorted((scene.objects[i] for i in named), key=lambda o: o.x))) or "nowhere"
    text = in_usual_words(question)
    for pattern, usual in (
        (r"^what is (?:there|the object) at (x\d y\d)", r"what is at \1"),
        (r"^what colour (.+)$", r"what color \1"),
        (r"^what color does the (.+) have", r"what color is the \1"),
        (r"^(?:can you see|is there) (an? .+?)(?: here)? \?$", r"is there \1 ?"),
        (r"^is (an? .+) in this picture \?$", r"is there \1 ?"),
        (r"^count the (.+)$", r"how many \1 ?"),
        (r"^how many (.+) can you see \?$", r"how many \1 ?"),
        (r"^what is the number of (.+) \?$", r"how many \1 ?"),
    ):
        text = re.sub(pattern, usual, text)
    if text.startswith("describe "):
        text = f"describe {plainly(text.removeprefix('describe ').removesuffix(' ?'))} ?"
    return answer(scene, text)


def cell(thing: SceneObject) -> str:
    return f"x{int(8 * thing.x)} y{int(8 * thing.y)}"


def full_name(thing: SceneObject) -> str:
    words = [thing.size, thing.color if len(THINGS[thing.name].paints) > 1 else "", thing.name]
    return " ".join(word for word in words if word)


def answer(scene: Scene, question: str) -> str:
    """The answer, worked out from the scene."""
    objects = scene.objects
    if question.startswith(ROUTING):
        return "yes" if wants_mask(scene, question.removeprefix(ROUTING)) else "no"
    text = question.removesuffix(" ?")
    if found := re.fullmatch(r"(what kind of object|what|which object) (?:is|do you see) at (x\d y\d)", text):
        there = [o for o in objects if cell(o) == found[2]]
        return " or ".join(o.category if "kind" in found[1] else o.name for o in there) or "nothing"
    if found := re.fullmatch(r"(?:what|which) kind of object is the (.+)", text):
        return only(scene, found[1]).category
    if found := re.fullmatch(r"what color is the (.+)", text) or re.fullmatch(r"which color does the (.+) have", text):
        return only(scene, found[1]).color
    if found := re.fullmatch(r"(?:what size is|how large is) the (.+)", text):
        return only(scene, found[1]).size
    if found := re.fullmatch(r"(?:is there|do you see) an? (.+?)(?: in the picture)?", text):
        surely = fitting(scene, found[1], doubts_matter=False)
        return "yes" if surely or fitting(scene, found[1]) else "no"
    if found := re.fullmatch(r"how many (.+?)(?: are there| do you see)?", text):
        return NUMBERS[len(fitting(scene, found[1]))]
    if found := re.fullmatch(rf"(?:what|which object) is the ({EXTREMES})(?: object)?", text):
        return full_name(objects[extreme(scene, list(range(len(objects))), found[1])[0][0]])
    if found := re.fullmatch(r"where is (.+)", text):
        named = sorted((objects[i] for i in read(scene, found[1])[0]), key=lambda o: o.x)
        return " and ".join(map(cell, named)) or "nowhere"
    if found := re.fullmatch(r"describe (.+)", text):
        ((index,), _) = read(scene, found[1])
        return full_name(objects[index])
    for relation, gap in RELATIONS.items():
        found = re.fullmatch(rf"is the (.+?) {relation} the (.+)", text)
        if found and is_noun_phrase(found[1]) and is_noun_phrase(found[2]):
            return "yes" if gap(only(scene, found[1]), only(scene, found[2])) > 0 else "no"
    if found := re.fullmatch(r"is the (.+?) something (.+)", text):
        return yes_or_no(only(scene, found[1]), CLAUSES[found[2]])
    for fact in FACTS.values():
        found = re.fullmatch(re.escape(fact.ask.removesuffix(" ?")).replace(r"\{it\}", "the (.+)"), text)
        if found:
            return yes_or_no(only(scene, found[1]), fact)
    said = re.sub(r"^what (can|would) you ", r"you \1 ", text)
    said = re.sub(r"^name everything |^what do ", "", said)
    said = re.sub(r"^what ", "that ", said)
    named = sorted((objects[i] for i in fitting(scene, "object", said)), key=lambda o: o.x)
    return " and ".join(o.name for o in named) or "nothing"


def wants_mask(scene: Scene, request: str) -> bool:
    """Does what is said, sentence by sentence, end in a name of things, with or without a verb that asks for a mask?
    Anything else has to be a question with an answer."""
    *before, last = re.split(r"(?<= \?) ", request)
    if last.endswith(" ?") and not re.match(ASKED_FOR, last):
        before.append(last)
    else:
        read(scene, re.sub(ASKED_FOR, "", last).removesuffix(" ?"))
    for question in before:
        answer(scene, question)
    return last not in before


def yes_or_no(thing: SceneObject, fact) -> str:
    if thing.name in fact.members.unclear:
        raise Unclear(f"{fact.name}: {thing.name}")
    return "yes" if thing.name in fact.members.sure else "no"
