"""How things are said: templates, noun phrases, and the list of every word of the world.

Everything is lower case, words are separated by single spaces, and "?" is a word of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lens_adapter.builtin.world.catalog import ALSO_CALLED, CATEGORIES, COLORFUL, COLORS, OBJECT, THINGS, Noun
from lens_adapter.builtin.world.facts import FACTS
from lens_adapter.builtin.world.scenes import CELLS, SIZES

Look = dict[str, str]  # some of "size", "color", "category", "name" and "fact", with values

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ORDINALS = ("first", "second", "third")
NOWHERE = "nowhere"
NOTHING = "nothing"
DIRECTIONS = {  # how it is said -> axis, and which way along it
    "left of": ("x", -1),
    "to the left of": ("x", -1),
    "right of": ("x", 1),
    "to the right of": ("x", 1),
    "above": ("y", -1),
    "below": ("y", 1),
    "under": ("y", 1),
}
EXTREMES = {
    "leftmost": ("x", -1),
    "rightmost": ("x", 1),
    "topmost": ("y", -1),
    "highest": ("y", -1),
    "bottommost": ("y", 1),
    "lowest": ("y", 1),
}
SIZE_EXTREMES = {"largest": 1, "biggest": 1, "smallest": -1}
SIDES = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}


@dataclass(frozen=True)
class Templates:
    """Ways to say one thing; the first is the usual one. `held_out` ones are kept for evaluation: no text that anything
    is trained on is made from them. `everyday` ones are more of those seen, for who talks in everyday words."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]
    everyday: tuple[str, ...] = ()


# Fields: n a noun phrase, a_n the same with "a" or "an", many its plural, loose its looser plural; a, b, d landmarks;
# c a clause; side that of an extreme; opposite the other side.
EXPRESSIONS = {
    "attribute": Templates(
        ("the {n}", "{n}", "the {n} in the picture"),
        ("the {n} that you see in the picture",),
        ("{a_n}", "my {n}", "this {n}", "that {n}", "the {n} here", "the {n} in this photo", "just the {n}"),
    ),
    "extreme": Templates(
        ("the {extreme} {n}",),
        ("the {n} that is the {extreme}",),
        (
            *("the {n} on the {side}", "the {side} {n}", "the {n} furthest to the {side}", "{extreme} {n}"),
            *("the {n} at the {side}", "the {n} on the {side} side", "the {n} on the far {side}"),
        ),
    ),
    "size extreme": Templates(
        ("the {extreme} {n}", "the {extreme} of all {many}"),
        ("the {n} that is the {extreme}",),
        ("{extreme} {n}", "the {extreme} of the {many}", "the {extreme} one of the {many}"),
    ),
    "relation": Templates(
        ("the {n} {where} the {a}", "the {n} that is {where} the {a}"),
        ("the {n} that you see {where} the {a}",),
        ("{n} {where} {a}", "the {n} which is {where} the {a}", "{a_n} {where} the {a}"),
    ),
    "between": Templates(
        ("the {n} between the {a} and the {b}", "the {n} that is between the {a} and the {b}"),
        ("the {n} that you see between the {a} and the {b}",),
        ("the {n} in between the {a} and the {b}", "{n} between {a} and {b}"),
    ),
    "nearest": Templates(
        ("the {n} nearest to the {a}", "the {n} closest to the {a}"),
        ("the {n} that is nearest to the {a}", "the {n} that is closest to the {a}"),
        (
            *("the {n} next to the {a}", "the {n} near the {a}", "the {n} close to the {a}", "the {n} beside the {a}"),
            *("the {n} by the {a}", "{n} next to {a}"),
        ),
    ),
    "ordinal": Templates(
        ("the {rank} {n} from the {side}", "the {rank} {n} counting from the {side}"),
        ("from the {side} the {rank} {n}",),
        (
            *("{rank} {n} from the {side}", "the {rank} {n} from {side}", "the {rank} {n} starting from the {side}"),
            "the {rank} {n} from {side} to {opposite}",
        ),
    ),
    "several": Templates(
        ("all {loose}", "all the {many}", "every {n}", "the {count} {many}"),
        ("all of the {many}", "every one of the {many}"),
        ("the {many}", "{many}", "{count} {many}", "all {count} {many}", "each {n}", "each of the {many}"),
    ),
    "fact of one": Templates(
        ("something {c}", "the {n} {c}", "{what}"),
        ("the one {n} {c}",),
        ("the thing {c}", "the one {c}", "a thing {c}", "that {n} {c}", "the only {n} {c}"),
    ),
    "fact of several": Templates(
        ("everything {c}", "every {n} {c}"),
        ("every one of the {many} {c}",),
        ("all things {c}", "all the things {c}", "the {many} {c}", "all {many} {c}"),
    ),
    "fact and extreme": Templates(
        ("the {extreme} {n} {c}",), ("the {n} {c} that is the {extreme}",), ("the {n} {c} furthest to the {side}",)
    ),
    "joined": Templates(
        ("{a} and {b}",),
        ("{a} and {b} that you see in the picture",),
        ("both {a} and {b}", "{a} and also {b}", "{a} with {b}", "{a} plus {b}", "{b} together with {a}"),
    ),
    "joined three": Templates(
        ("{a} and {b} and {d}", "{a} {b} and {d}"),
        ("{a} {b} and {d} that you see in the picture",),
        ("{a} plus {b} plus {d}", "{a} with {b} and {d}"),
    ),
}
BOTH = "both {many}"  # one more way to say "several", of two
# How a mask is asked for, e of an expression; everything else is to be answered in words.
REQUESTS = Templates(
    ("segment {e}", "outline {e}", "mark {e}", "show me {e}", "show me a mask of {e}", "{e}"),
    ("please segment {e}", "find the mask of {e}", "can you outline {e} ?"),
)
# What is said around a prompt, e of an expression: as a request, or as a question that a mask answers, too.
FRAMES = Templates(
    (
        *("please find {e}", "find {e}", "find {e} please", "find me {e}", "please show me {e}", "show me {e} please"),
        *("show {e}", "can you find {e} ?", "can you segment {e} ?", "can you segment {e} please", "{e} please"),
        *("could you show me {e} ?", "could you please mark {e}", "i want {e}", "i want to see {e}", "i need {e}"),
        *("i would like to see {e}", "i am looking for {e}", "give me {e}", "give me the mask of {e}", "look for {e}"),
        *("point to {e}", "point at {e}", "select {e}", "highlight {e}", "outline {e}", "mark {e}", "segment {e}"),
        *("show me {e}", "cut out {e}", "locate {e}", "let me see {e}", "hello can you show me {e} ?", "pick {e}"),
        *("help me find {e}", "try to find {e}", "the picture of {e}", "a mask for {e}", "{e} thank you"),
        "hi find {e}",
    ),
    (
        *("please can you help me look for {e} ?", "could you point at {e} please", "let me see where {e} is"),
        *("i would like you to highlight {e}", "hello i need to find {e}", "please select {e} for me"),
    ),
)
ASKING_FRAMES = (
    *("where is {e}", "where is {e} ?", "where are {e} ?", "do you see {e} ?", "can you see {e} ?", "what about {e} ?"),
    *("which one is {e} ?", "where can i see {e} ?"),
)
# How else people say a word or two of the above.
EVERYDAY = {
    "small": ("little", "tiny"),
    "large": ("big", "huge", "giant"),
    "gray": ("grey",),
    "purple": ("violet",),
    "left of": ("on the left of", "on the left side of", "to the left side of", "left from"),
    "to the left of": ("on the left of", "on the left side of", "to the left side of", "left from"),
    "right of": ("on the right of", "on the right side of", "to the right side of", "right from"),
    "to the right of": ("on the right of", "on the right side of", "to the right side of", "right from"),
    "above": ("over", "on top of", "higher than"),
    "below": ("beneath", "underneath", "lower than"),
    "under": ("beneath", "underneath", "lower than"),
    "topmost": ("uppermost",),
    "bottommost": ("lowermost",),
    "largest": ("larger",),
    "biggest": ("bigger",),
    "smallest": ("smaller", "tiniest", "littlest"),
    "first": ("1st",),
    "second": ("2nd",),
    "third": ("3rd",),
    **{word: (str(k),) for k, word in enumerate(NUMBERS) if k},
}
# Pairs of words that no training ever has in one text, although it has each of them.
HELD_OUT_WORDS = frozenset(
    frozenset(pair.split())
    for pair in (
        *("little puppy", "big doggy", "tiny kitten", "huge plane", "little lamb", "big pony", "giant mug"),
        *("grey bunny", "violet gown", "tiny piglet", "big ship", "little duckling", "huge bear"),
        *("2 kitties", "3 bunnies"),
    )
)
# Of who talks in everyday words: how often a word, a template, and what is around a prompt is not the usual one.
EVERYDAY_WORD, EVERYDAY_TEMPLATE, FRAMED, ASKED = 0.4, 0.45, 0.4, 0.2  # ASKED: of what is framed
ROUTING_QUESTION = "is a mask wanted : {prompt}"  # as `LensAdapter.route` asks it; answered with yes or no
QUESTIONS = {
    "names": ("what is at {place} ?", "which object is at {place} ?", "what do you see at {place} ?"),
    "categories": ("what kind of object is the {n} ?", "which kind of object is the {n} ?"),
    "category_at": ("what kind of object is at {place} ?", "what kind of object do you see at {place} ?"),
    "colors": ("what color is the {n} ?", "which color does the {n} have ?"),
    "sizes": ("what size is the {n} ?", "how large is the {n} ?"),
    "existence": ("is there {a_n} ?", "do you see {a_n} ?", "is there {a_n} in the picture ?"),
    "counting": ("how many {many} ?", "how many {many} are there ?", "how many {many} do you see ?"),
    "relations": ("is the {n} {where} the {a} ?",),
    "superlatives": ("what is the {extreme} object ?", "which object is the {extreme} ?"),
    "where": ("where is {text} ?",),
    "fact of it": ("is the {n} something {c} ?",),  # beside `Fact.ask`
    "facts by name": ("name everything {c} ?",),  # beside `as_question`
    "description": ("describe {text} ?",),
}
EVERYDAY_QUESTIONS = {  # more ways
    "names": ("what is there at {place} ?", "what is the thing at {place} ?"),
    "colors": ("what colour is the {n} ?", "what colour does the {n} have ?"),
    "sizes": ("how big is the {n} ?",),
    "existence": ("can you see {a_n} ?", "is there {a_n} here ?", "is {a_n} in this picture ?"),
    "counting": ("count the {many}", "how many {many} can you see ?", "what is the number of {many} ?"),
    "where": ("where is {text}", "where are {text} ?", "show me where {text} is"),
}
FUNCTION_WORDS = ("yes", "no", "and", "a", "an", "?", "medium", COLORFUL, NOWHERE, NOTHING, "both", "do", "what", "can")


def noun(look: Look) -> Noun:
    """What a look is called without its size and color."""
    if "name" in look:
        return THINGS[look["name"]].noun
    return CATEGORIES[look["category"]] if "category" in look else OBJECT


def noun_phrase(look: Look, form: str = "one", rng: np.random.Generator | None = None) -> str:
    """{"color": "red", "name": "car"} -> "red car"; `form`: "one", "many" or "loose"; `rng`: in everyday words."""
    called = noun(look)
    others = ALSO_CALLED.get(look.get("name") or look.get("category") or "object", ())
    if rng is not None and others and rng.random() < EVERYDAY_WORD:
        called = others[int(rng.integers(len(others)))]
    head = called.one if form == "one" else called.loose if form == "loose" and called.loose else called.many
    return " ".join([*(in_words(look[a], rng) for a in ("size", "color") if a in look), head])


def in_words(usual: str, rng: np.random.Generator | None) -> str:
    """The usual words, or with an `rng` now and then others that mean the same."""
    others = EVERYDAY.get(usual, ())
    if rng is None or not others or rng.random() >= EVERYDAY_WORD:
        return usual
    return others[int(rng.integers(len(others)))]


def is_held_out(text: str) -> bool:
    """Does it hold two words that no training has together?"""
    said = frozenset(text.split())
    return any(pair <= said for pair in HELD_OUT_WORDS)


def with_article(phrase: str) -> str:
    """ "an apple"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def what(clause: str) -> str | None:
    """ "that has wheels" -> "what has wheels"; None for what is said with "with" only."""
    return None if clause.startswith("with ") else f"what {clause.removeprefix('that ')}"


def as_question(clause: str) -> str | None:
    """ "you can eat" -> "what can you eat ?", "that has wheels" -> "what has wheels ?"."""
    words = clause.split()
    if words[0] == "you" and words[1] in ("can", "would"):
        return " ".join(["what", words[1], "you", *words[2:], "?"])
    if words[0] == "you":
        return f"what do {clause} ?"
    asked = what(clause)
    return (
        None
        if asked is None or asked.startswith(("what you", "what people", "what a ", "what monkeys"))
        else f"{asked} ?"
    )


def words() -> list[str]:
    """Every word that expressions, questions and answers can hold, in a fixed order; the everyday ones come last.

    A word's place is that of its vector in the models that ship: new words are for the end.
    """
    nouns = [*(thing.noun for thing in THINGS.values()), *CATEGORIES.values(), OBJECT]
    texts = [
        *FUNCTION_WORDS,
        *(form for called in nouns for form in (called.one, called.many, called.loose)),
        *THINGS,
        *CATEGORIES,
        *COLORS,
        *SIZES,
        *NUMBERS,
        *(*ORDINALS, *DIRECTIONS, *EXTREMES, *SIZE_EXTREMES, *SIDES),
        *(template for ways in EXPRESSIONS.values() for template in (*ways.seen, *ways.held_out)),
        *(template for ways in QUESTIONS.values() for template in ways),
        *(*REQUESTS.seen, *REQUESTS.held_out, ROUTING_QUESTION),
        *(text for fact in FACTS.values() for text in (fact.ask, *fact.all_clauses)),
        *(f"{axis}{k}" for axis in "xy" for k in range(CELLS)),
        *(form for others in ALSO_CALLED.values() for n in others for form in (n.one, n.many, n.loose)),
        *(text for others in EVERYDAY.values() for text in others),
        *(template for ways in EXPRESSIONS.values() for template in ways.everyday),
        *(template for ways in EVERYDAY_QUESTIONS.values() for template in ways),
        *(*FRAMES.seen, *FRAMES.held_out, *ASKING_FRAMES),
    ]
    return list(dict.fromkeys(" ".join(re.sub(r"\{\w+\}", " ", text) for text in texts).split()))
