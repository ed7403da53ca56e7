"""Questions about scenes of things, each with its only right answer in words.

What is nearly a tie, or what people would disagree about, is not asked. All facts and all their phrasings are asked
about, also those that no mask in training is named by: this is where they are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lens_adapter.builtin.world.catalog import COLORFUL, THINGS
from lens_adapter.builtin.world.expressions import EXPRESSION_KINDS, Describer
from lens_adapter.builtin.world.facts import FACTS
from lens_adapter.builtin.world.scenes import CELLS, SceneObject
from lens_adapter.builtin.world.truths import CLEAR_STEP, place
from lens_adapter.builtin.world.wording import (
    DIRECTIONS,
    EVERYDAY_QUESTIONS,
    EVERYDAY_TEMPLATE,
    EXTREMES,
    FRAMED,
    FRAMES,
    NOTHING,
    NOWHERE,
    NUMBERS,
    QUESTIONS,
    REQUESTS,
    ROUTING_QUESTION,
    SIZE_EXTREMES,
    as_question,
    with_article,
)

_CLEARANCE = 0.06  # from the edge of the nearest object to a place where "nothing" is
_MOST_NAMES = 4  # in one answer

Made = tuple[str, str] | None  # question and answer


@dataclass(frozen=True)
class Question:
    """A question and its only right answer, both in lower-case words separated by single spaces."""

    kind: str
    text: str
    answer: str


def full_name(thing: SceneObject) -> str:
    """Size, color where the class comes in several, and name: "large red car"."""
    color = [thing.color] if THINGS[thing.name].is_painted else []
    return " ".join([thing.size, *color, thing.name])


class Speaker(Describer):
    """Names objects of one scene and asks about them, choosing at random with `rng`."""

    def question(self, kind: str) -> Question | None:
        """A random question of this kind (see `QUESTION_KINDS`), or None where the scene has no clear one."""
        made = QUESTION_KINDS[kind](self)
        return Question(kind, *made) if made is not None and self._may_say(made[0]) else None

    def _ask(self, template: str, **phrases: str) -> str:
        if self._words and template in EVERYDAY_QUESTIONS and self.rng.random() < EVERYDAY_TEMPLATE / 2:
            return self._pick(EVERYDAY_QUESTIONS[template]).format(**phrases)
        return self._ask_usually(template, **phrases)

    def _ask_usually(self, template: str, **phrases: str) -> str:
        return self._pick(QUESTIONS[template]).format(**phrases)

    def _left_to_right(self, members: Sequence[int]) -> list[SceneObject]:
        return sorted((self.objects[i] for i in members), key=lambda thing: (thing.x, thing.y))

    def _alone_at_its_place(self, thing: SceneObject) -> str | None:
        here = place(thing)
        return here if [place(other) for other in self.objects].count(here) == 1 else None

    # -- about one object ---------------------------------------------------------------------------------------------

    def _names(self) -> Made:
        if self.rng.random() < 0.88:
            thing = self.objects[self._any()]
            here = self._alone_at_its_place(thing)
            return None if here is None else (self._ask("names", place=here), thing.name)
        column, row = (int(k) for k in self.rng.integers(CELLS, size=2))
        x, y = (column + 0.5) / CELLS, (row + 0.5) / CELLS
        free = all((x - o.x) ** 2 + (y - o.y) ** 2 > (o.side / 2 + _CLEARANCE) ** 2 for o in self.objects)
        return (self._ask("names", place=f"x{column} y{row}"), NOTHING) if free else None

    def _categories(self) -> Made:
        target = self._any()
        thing = self.objects[target]
        if self.rng.random() < 0.3:
            here = self._alone_at_its_place(thing)
            return None if here is None else (self._ask("category_at", place=here), thing.category)
        name = self.unique_name(target, without="category")
        return None if name is None else (self._ask("categories", n=name), thing.category)

    def _colors(self) -> Made:
        target = self._any()
        thing = self.objects[target]
        clear = THINGS[thing.name].is_painted or not THINGS[thing.name].also
        name = self.unique_name(target, without="color")
        return (self._ask("colors", n=name), thing.color) if clear and name is not None else None

    def _sizes(self) -> Made:
        target = self._any()
        name = self.unique_name(target, without="size")
        return None if name is None else (self._ask("sizes", n=name), self.objects[target].size)

    def _superlatives(self) -> Made:
        along, everything = self.rng.random() < 0.7, range(len(self.objects))
        extreme = self._pick(list(EXTREMES if along else SIZE_EXTREMES))
        first = (self.truths.first_along if along else self.truths.first_in_size)(everything, extreme)
        if first is None:
            return None
        return self._ask("superlatives", extreme=self._word(extreme)), full_name(self.objects[first])

    def _description(self) -> Made:
        made = self._expression(self._pick(["spatial", "spatial", "ordinal", "reasoning"]))
        if made is None or len(made.targets) != 1:
            return None
        return self._ask("description", text=made.text), full_name(self.objects[made.targets[0]])

    # -- about several ------------------------------------------------------------------------------------------------

    def _existence(self) -> Made:
        if self.rng.random() < 0.5:
            thing = self.objects[self._any()]
            look = {"category": thing.category} if self.rng.random() < 0.25 else {"name": thing.name}
            if THINGS[thing.name].is_painted and self.rng.random() < 0.6:
                look["color"] = thing.color
            return self._ask("existence", a_n=with_article(self._phrase(look))), "yes"
        absent = next((made for _ in range(4) if (made := self.absent_look())), None)
        return None if absent is None else (self._ask("existence", a_n=with_article(self._phrase(absent))), "no")

    def _counting(self) -> Made:
        if self.rng.random() < 0.85:
            group = self._group(self._any())
            look, members = group if group is not None else ({}, None)
        else:
            look = self.absent_look() or {}
            members = self.truths.matching(look)
        if members is None or look.get("color") == COLORFUL:
            return None
        return self._ask("counting", many=self._phrase(look, "many")), NUMBERS[len(members)]

    def _relations(self) -> Made:
        target, anchor = self._any(), self._any()
        direction = self._pick(list(DIRECTIONS))
        step = self.truths.step(target, anchor, direction)
        subject, landmark = self.unique_name(target), self.unique_name(anchor)
        if abs(step) < CLEAR_STEP or subject is None or landmark is None:
            return None
        return self._ask("relations", n=subject, where=self._word(direction), a=landmark), "yes" if step > 0 else "no"

    def where(self, kind: str, *, framed: bool = True) -> Made:
        """Places of what an expression of this kind names; about facts, in every wording but held-out templates.

        `framed`: with what people say around a prompt, as the heads ask the model where a prompt is.
        """
        subset = self._pick(["seen", "held_out_phrasing", "held_out_fact"]) if kind == "reasoning" else "seen"
        made = self._expression(kind, subset)
        if made is None:
            return None
        places = " and ".join(place(thing) for thing in self._left_to_right(made.targets))
        text = self._framed(made.text) if framed else made.text
        ask = self._ask if text == made.text else self._ask_usually
        return ask("where", text=text), places or NOWHERE

    # -- about facts --------------------------------------------------------------------------------------------------

    def _facts(self) -> Made:
        target, wanted = self._any(), self.rng.random() < 0.5
        name = self.unique_name(target)
        holding = [f for f in FACTS.values() if f.members.holds(self.objects[target].name) is wanted]
        if name is None or not holding:
            return None
        near = [f for f in holding if any(self.truths.answers("fact", f.name))]  # true of something that is here
        fact = self._pick(near if near and self.rng.random() < 0.6 else holding)
        if self.rng.random() < 0.5:
            text = fact.ask.format(it=f"the {name}")
        else:
            text = QUESTIONS["fact of it"][0].format(n=name, c=self._pick(fact.all_clauses))
        return text, "yes" if wanted else "no"

    def _fact_names(self) -> Made:
        true_here = [fact for fact in FACTS.values() if any(self.truths.answers("fact", fact.name))]
        fact = self._pick(true_here if true_here and self.rng.random() < 0.8 else list(FACTS.values()))
        members = self.truths.matching({"fact": fact.name})
        if members is None or len(members) > _MOST_NAMES:
            return None
        clause = self._pick(fact.all_clauses)
        text = as_question(clause)
        if text is None or self.rng.random() < 0.4:
            text = QUESTIONS["facts by name"][0].format(c=clause)
        return text, " and ".join(thing.name for thing in self._left_to_right(members)) or NOTHING

    # -- about what is said -------------------------------------------------------------------------------------------

    def request(self, kind: str, subset: str = "seen") -> str | None:
        """A request for a mask.

        Args:
            kind: "dialogue" (none: a question that wants words), "explicit" (it names things by looks or places),
                "reasoning" (by what is known of them), or "mixed" (a question, then a request).
            subset: "seen", or "held_out_template": how a mask is asked for in no training.
        """
        if kind == "dialogue":
            about = self._pick(_DIALOGUE)
            asked = self.where(WHERE[about], framed=False) if about in WHERE else QUESTION_KINDS[about](self)
            return None if asked is None else asked[0]
        if kind == "mixed":
            first, then = self.request("dialogue"), self.request(self._pick(["explicit", "reasoning"]), subset)
            return None if first is None or then is None else f"{first} {then}"
        made = self._expression(self._pick(["reasoning"] if kind == "reasoning" else _EXPLICIT))
        ways = REQUESTS.held_out if subset == "held_out_template" else REQUESTS.seen
        if self._words and subset == "seen" and self.rng.random() < FRAMED:
            ways = FRAMES.held_out if self.wording == "held_out" else FRAMES.seen
        return None if made is None else self._pick(ways).format(e=made.text)

    def _routing(self) -> Made:
        kind = self._pick(["dialogue", "dialogue", "dialogue", "explicit", "reasoning", "mixed"])
        said = self.request(kind)
        return None if said is None else (ROUTING_QUESTION.format(prompt=said), "no" if kind == "dialogue" else "yes")


WHERE = {  # kind of question -> of the expression in it
    "where": "attribute",
    **{f"where_{kind}": kind for kind in ("spatial", "ordinal", "several", "reasoning", "absent", "joined")},
}
REQUEST_KINDS = ("dialogue", "explicit", "reasoning", "mixed")
QUESTION_KINDS: dict[str, Callable[[Speaker], Made]] = {
    "names": Speaker._names,
    "categories": Speaker._categories,
    "colors": Speaker._colors,
    "sizes": Speaker._sizes,
    "existence": Speaker._existence,
    "superlatives": Speaker._superlatives,
    "counting": Speaker._counting,
    "relations": Speaker._relations,
    "facts": Speaker._facts,
    "fact_names": Speaker._fact_names,
    **{name: partial(Speaker.where, kind=kind) for name, kind in WHERE.items()},
    "description": Speaker._description,
    "routing": Speaker._routing,
}
# What dialogues ask, and what requests name. ("joined" is what two requests for one thing each would be.)
_DIALOGUE = [kind for kind in QUESTION_KINDS if kind not in ("routing", "where_joined")]
_EXPLICIT = [kind for kind in EXPRESSION_KINDS if kind not in ("reasoning", "joined")]
