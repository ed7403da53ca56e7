"""Referring expressions about scenes of things, each with the objects it names.

All are unambiguous by construction: what is nearly a tie, or what people would disagree about, is not said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from lens_adapter.builtin.world.catalog import CATEGORIES, COLORFUL, THINGS
from lens_adapter.builtin.world.facts import FACTS, HELD_OUT_PAIRS
from lens_adapter.builtin.world.scenes import Scene
from lens_adapter.builtin.world.truths import CLEAR_NEARER, CLEAR_OTHER_WAY, CLEAR_STEP, Truths
from lens_adapter.builtin.world.wording import (
    ASKED,
    ASKING_FRAMES,
    BOTH,
    DIRECTIONS,
    EVERYDAY_TEMPLATE,
    EXPRESSIONS,
    EXTREMES,
    FRAMED,
    FRAMES,
    NUMBERS,
    ORDINALS,
    SIDES,
    SIZE_EXTREMES,
    Look,
    in_words,
    is_held_out,
    noun,
    noun_phrase,
    what,
    with_article,
)

EXPRESSION_KINDS = ("attribute", "spatial", "ordinal", "several", "reasoning", "absent", "joined")
SUBSETS = ("seen", "held_out_template", "held_out_phrasing", "held_out_fact")  # the last two: of "reasoning" only
# How somebody talks -> the subset of what is said so. "usual": in the words of templates and names only; "everyday":
# also in other words, and with more around them; "held_out": so, and with around them what is kept for evaluation.
WORDINGS = {"usual": "seen", "everyday": "everyday", "held_out": "held_out_wording"}

OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SIDE_OF = {
    extreme: next(side for side, (along, way) in SIDES.items() if (along, -way) == (axis, sign))
    for extreme, (axis, sign) in EXTREMES.items()
}

Option = TypeVar("Option")
_ATTEMPTS = 16


@dataclass(frozen=True)
class Expression:
    """A text and the objects it names.

    Attributes:
        kind: one of `EXPRESSION_KINDS`.
        text: e.g. "the leftmost animal".
        targets: indices into `scene.objects`; empty for "absent".
        subset: one of `SUBSETS`, or of the values of `WORDINGS`: "seen" and "everyday" may be trained on; the
            others hold something that never is.
        fact: name of the fact that it rests on, or empty.
    """

    kind: str
    text: str
    targets: tuple[int, ...]
    subset: str = "seen"
    fact: str = ""


@dataclass(frozen=True)
class Said:
    """What a maker of expressions hands back."""

    text: str
    targets: Sequence[int]
    fact: str = ""


class Describer:
    """Names objects of one scene, choosing at random with `rng`; `wording`: how, a key of `WORDINGS`."""

    def __init__(self, scene: Scene, rng: np.random.Generator, wording: str = "usual"):
        if wording not in WORDINGS:
            raise ValueError(f"Expected a wording of {tuple(WORDINGS)}; got {wording!r}.")
        self.scene = scene
        self.objects = scene.objects
        self.truths = Truths(scene)
        self.rng = rng
        self.wording = wording
        self._words = None if wording == "usual" else rng  # chooses among words that mean the same

    def expression(self, kind: str, subset: str = "seen") -> Expression | None:
        """A random expression of this kind, or None where the scene has no clear one.

        Args:
            kind: one of `EXPRESSION_KINDS`.
            subset: one of `SUBSETS`; only "seen" is for training.
        """
        made = self._expression(kind, subset)
        return None if made is None else replace(made, text=self._framed(made.text))

    def _expression(self, kind: str, subset: str = "seen") -> Expression | None:
        """`expression` with nothing around it."""
        if subset not in SUBSETS or (subset in SUBSETS[2:] and kind != "reasoning"):
            raise ValueError(
                f"Expected one of {SUBSETS}, the last two for reasoning only; got {subset!r} for {kind!r}."
            )
        spatial = (self._extreme, self._size_extreme, self._relation, self._relation, self._between, self._nearest)
        makers: dict[str, Callable[[str], Said | None]] = {
            "attribute": self._attribute,
            "spatial": self._pick(spatial),
            "ordinal": self._ordinal,
            "several": self._several,
            "reasoning": self._reasoning,
            "absent": self._absent,
            "joined": self._joined,
        }
        # What is rarely clear, as relations, would be said too seldom without many attempts.
        attempts = (makers[kind](subset) for _ in range(_ATTEMPTS))
        said = next((one for one in attempts if one is not None and self._may_say(one.text)), None)
        if said is None:
            return None
        if subset == "seen":
            subset = WORDINGS[self.wording]
        return Expression(kind, said.text, tuple(said.targets), subset, said.fact)

    # -- choices ------------------------------------------------------------------------------------------------------

    def _pick(self, options: Sequence[Option]) -> Option:
        return options[int(self.rng.integers(len(options)))]

    def _any(self) -> int:
        return int(self.rng.integers(len(self.objects)))

    def _template(self, name: str, subset: str, with_noun: bool = False) -> str:
        """One way to say it; the first is as common as all others together. `with_noun`: only ways that hold one."""
        ways = EXPRESSIONS[name]
        fit = ways.held_out if subset == "held_out_template" else ways.seen
        if self._words and subset != "held_out_template" and ways.everyday and self.rng.random() < EVERYDAY_TEMPLATE:
            fit = ways.everyday
        options = [way for way in fit if not with_noun or "{n}" in way or "{many}" in way]
        return options[0] if fit is not ways.everyday and self.rng.random() < 0.5 else self._pick(options)

    def _phrase(self, look: Look, form: str = "one") -> str:
        """A look in words; everyday ones now and then, where they are wanted."""
        return noun_phrase(look, form, self._words)

    def _word(self, usual: str) -> str:
        return in_words(usual, self._words)

    def _framed(self, text: str) -> str:
        """With something around it, as people talk."""
        if self.wording == "held_out":
            return self._pick(FRAMES.held_out).format(e=text)
        if self.wording == "everyday" and self.rng.random() < FRAMED:
            return self._pick(ASKING_FRAMES if self.rng.random() < ASKED else FRAMES.seen).format(e=text)
        return text

    def _may_say(self, text: str) -> bool:
        """Not where it holds words that are kept for evaluation."""
        return self.wording != "everyday" or not is_held_out(text)

    def unique_name(self, target: int, without: str = "", loosely: bool = False) -> str | None:
        """A shortest-to-full name that only `target` has; never uses the attribute `without`.

        `loosely`: also "scissors" for "pair of scissors".
        """
        good = [look for look in self.truths.unique_looks(target) if without not in look]
        if not good:
            return None
        # Short names are what people say; longer ones come now and then.
        short = [look for look in good if len(look) == len(good[0])]
        look = self._pick(short if self.rng.random() < 0.6 else good)
        return self._phrase(look, self._form(look) if loosely else "one")

    def _form(self, look: Look) -> str:
        """How a name is said when nothing is counted: for "pair of scissors" also "scissors"."""
        return "loose" if "name" in look and noun(look).loose and self.rng.random() < 0.6 else "one"

    def _group(self, target: int) -> tuple[Look, list[int]] | None:
        """A vague name ("animal", "red object", "car") of `target` and everything it fits; None: unclear what."""
        thing = self.objects[target]
        chosen = self._pick([("name",), ("name",), ("category",), ("category",), ("color", "name"), ("color",), ()])
        look = {attribute: thing.look(attribute) for attribute in chosen}
        if look.get("category") in ("fruit", "vegetable", "flower") and self.rng.random() < 0.4:
            look["category"] = "plant" if look["category"] == "flower" else "food"  # the wider one
        members = None if look.get("color") == COLORFUL else self.truths.matching(look)
        return None if members is None else (look, members)

    def _crowd(self) -> tuple[Look, list[int]] | None:
        """A vague name that fits at least two; None: no luck."""
        groups = (self._group(self._any()) for _ in range(4))
        return next((group for group in groups if group is not None and len(group[1]) > 1), None)

    # -- expressions --------------------------------------------------------------------------------------------------

    def _attribute(self, subset: str) -> Said | None:
        target = self._any()
        name = self.unique_name(target, loosely=True)
        if name is None:
            return None
        return Said(self._template("attribute", subset).format(n=name, a_n=with_article(name)), [target])

    def _extreme(self, subset: str) -> Said | None:
        crowd = self._crowd()
        extreme = self._pick(list(EXTREMES))
        target = crowd and self.truths.first_along(crowd[1], extreme)
        if crowd is None or target is None:
            return None
        phrases = {"extreme": self._word(extreme), "side": SIDE_OF[extreme], "n": self._phrase(crowd[0])}
        return Said(self._template("extreme", subset).format(**phrases), [target])

    def _size_extreme(self, subset: str) -> Said | None:
        crowd = self._crowd()
        extreme = self._pick(list(SIZE_EXTREMES))
        target = crowd and self.truths.first_in_size(crowd[1], extreme)
        if crowd is None or target is None:
            return None
        phrases = {"n": self._phrase(crowd[0]), "many": self._phrase(crowd[0], "many"), "extreme": self._word(extreme)}
        return Said(self._template("size extreme", subset).format(**phrases), [target])

    def _relation(self, subset: str) -> Said | None:
        crowd, anchor = self._crowd(), self._any()
        landmark = self.unique_name(anchor, loosely=True)
        direction = self._pick(list(DIRECTIONS))
        if crowd is None or landmark is None:
            return None
        steps = sorted((self.truths.step(i, anchor, direction), i) for i in crowd[1] if i != anchor)
        # Needed (the name alone fits several) and clear (every other one lies the other way).
        if len(steps) < 2 or steps[-1][0] < CLEAR_STEP or steps[-2][0] > -CLEAR_OTHER_WAY:
            return None
        name = self._phrase(crowd[0])
        phrases = {"n": name, "a_n": with_article(name), "where": self._word(direction), "a": landmark}
        return Said(self._template("relation", subset).format(**phrases), [steps[-1][1]])

    def _between(self, subset: str) -> Said | None:
        crowd, first, second = self._crowd(), self._any(), self._any()
        names = [self.unique_name(i, loosely=True) for i in (first, second)]
        if crowd is None or first == second or None in names:
            return None
        others = [i for i in crowd[1] if i not in (first, second)]
        answers = [self.truths.lies_between(i, first, second) for i in others]
        if None in answers or answers.count(True) != 1:
            return None
        text = self._template("between", subset).format(n=self._phrase(crowd[0]), a=names[0], b=names[1])
        return Said(text, [others[answers.index(True)]])

    def _nearest(self, subset: str) -> Said | None:
        crowd, anchor = self._crowd(), self._any()
        landmark = self.unique_name(anchor, loosely=True)
        if crowd is None or landmark is None:
            return None
        away = sorted((self.truths.distance(i, anchor), i) for i in crowd[1] if i != anchor)
        if len(away) < 2 or away[1][0] - away[0][0] < CLEAR_NEARER:
            return None
        return Said(self._template("nearest", subset).format(n=self._phrase(crowd[0]), a=landmark), [away[0][1]])

    def _ordinal(self, subset: str) -> Said | None:
        group = self._group(self._any())
        side = self._pick(list(SIDES))
        ordered = group and self.truths.order(group[1], *SIDES[side])
        if not group or not ordered or len(ordered) < 3:
            return None
        rank = int(self.rng.integers(min(len(ordered), len(ORDINALS))))
        phrases = {"rank": self._word(ORDINALS[rank]), "side": side, "opposite": OPPOSITE[side]}
        phrases["n"] = self._phrase(group[0])
        return Said(self._template("ordinal", subset).format(**phrases), [ordered[rank]])

    def _several(self, subset: str) -> Said | None:
        group = self._crowd()
        if group is None or not group[0]:
            return None
        look, members = group
        template = self._template("several", subset)
        if subset == "seen" and len(members) == 2 and self.rng.random() < 0.2:
            template = BOTH
        phrases = {form: self._phrase(look, form) for form in ("many", "loose")} | {"n": self._phrase(look)}
        return Said(template.format(count=self._word(NUMBERS[len(members)]), **phrases), members)

    def _joined(self, subset: str) -> Said | None:
        """Two or three things or groups that share nothing."""
        parts = [self._part() for _ in range(3 if len(self.objects) > 3 and self.rng.random() < 0.2 else 2)]
        names = [part[0] for part in parts if part is not None]
        targets = [i for part in parts if part is not None for i in part[1]]
        if len(names) < len(parts) or len(set(targets)) < len(targets) or len(set(names)) < len(names):
            return None
        template = self._template("joined" if len(names) == 2 else "joined three", subset)
        return Said(template.format(**dict(zip("abd"[: len(names)], names, strict=True))), targets)

    def _part(self) -> tuple[str, Sequence[int]] | None:
        """One of what "and" joins: a thing or, now and then, a group."""
        if self.rng.random() < 0.3:
            group = self._crowd()
            if group is None or not group[0]:
                return None
            way, look, members = self._pick(("the {many}", "the {many}", "all {loose}", "the {count} {many}")), *group
            phrases = {form: self._phrase(look, form) for form in ("many", "loose")}
            return way.format(count=self._word(NUMBERS[len(members)]), **phrases), members
        target = self._any()
        name = self.unique_name(target, loosely=True)
        if name is None:
            return None
        way = self._pick(("the {n}", "the {n}", "{a_n}", "{n}"))
        return way.format(n=name, a_n=with_article(name)), [target]

    def _reasoning(self, subset: str) -> Said | None:
        true_here = {fact: self.truths.answers("fact", fact) for fact in FACTS}
        facts = [FACTS[name] for name, answers in true_here.items() if any(answers)]
        if not facts:
            return None
        fact = self._pick(facts)
        clause = fact.held_out_clause if subset == "held_out_phrasing" else self._pick(fact.clauses)
        look = {"fact": fact.name}
        if self.rng.random() < 0.4:  # "the animal that ..."
            some = self._pick([i for i, answer in enumerate(true_here[fact.name]) if answer])
            look["category"] = self.objects[some].category
        members = self.truths.matching(look)
        if not members or not clause:
            return None
        targets, called = members, "fact of one" if len(members) == 1 else "fact of several"
        phrases = {"c": clause, "n": self._phrase(look), "many": self._phrase(look, "many")}
        phrases["what"] = what(clause) or f"something {clause}"
        if len(members) > 1 and self.rng.random() < 0.4:
            extreme = self._pick(list(EXTREMES))
            phrases |= {"extreme": self._word(extreme), "side": SIDE_OF[extreme]}
            first = self.truths.first_along(members, extreme)
            if first is None:
                return None
            targets, called = [first], "fact and extreme"
        if subset == "held_out_fact":
            fits = self._any_held_out(fact.name, targets)
        else:
            fits = not self._any_held_out(fact.name, members)
        text = self._template(called, subset, with_noun="category" in look).format(**phrases)
        return Said(text, targets, fact.name) if fits else None

    def _any_held_out(self, fact: str, members: Sequence[int]) -> bool:
        return any((self.objects[i].name, fact) in HELD_OUT_PAIRS for i in members)

    def _absent(self, subset: str) -> Said | None:
        """Mostly looks that are there, recombined: hard to tell from them."""
        chance = self.rng.random()
        if chance < 0.2:
            return self._absent_fact(subset)
        look = self.absent_look()
        if look is None:
            return None
        if chance < 0.35:
            phrases = {form: self._phrase(look, form) for form in ("many", "loose")} | {"n": self._phrase(look)}
            count = self._word(NUMBERS[int(self.rng.integers(2, 5))])
            return Said(self._template("several", subset).format(count=count, **phrases), [])
        template, name = self._template("attribute", subset), self._phrase(look, self._form(look))
        return Said(template.format(n=name, a_n=with_article(name)), [])

    def absent_look(self) -> Look | None:
        """A name, category or color and name that surely nothing here has; None: no luck."""
        first, second = self.objects[self._any()], self.objects[self._any()]
        chance = self.rng.random()
        if chance < 0.4:  # the right thing in another color, one that is there if possible
            paints = [paint for paint in THINGS[second.name].paints if paint != second.color]
            if not paints:
                return None
            color = first.color if first.color in paints else self._pick(paints)
            look = {"color": color, "name": second.name}
        elif chance < 0.75:  # another thing of a category that is there, or any
            kin = [t.name for t in THINGS.values() if t.category == second.category or self.rng.random() < 0.05]
            look = {"name": self._pick(kin)}
        elif chance < 0.9:
            look = {"category": self._pick(list(CATEGORIES))}
        else:
            look = {"color": first.color, "category": second.category}
        return look if look.get("color") != COLORFUL and self.truths.matching(look) == [] else None

    def _absent_fact(self, subset: str) -> Said | None:
        fact = self._pick(list(FACTS.values()))
        taught = any((name, fact.name) not in HELD_OUT_PAIRS for name in fact.members.sure)
        if self.truths.matching({"fact": fact.name}) != [] or not taught:
            return None
        clause = self._pick(fact.clauses)
        several = self.rng.random() < 0.3
        template = self._template("fact of several" if several else "fact of one", subset)
        phrases = {"c": clause, "n": "object", "many": "objects", "what": what(clause) or f"something {clause}"}
        return Said(template.format(**phrases), [], fact.name)
