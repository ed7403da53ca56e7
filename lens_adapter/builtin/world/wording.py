"""How things are said: templates, noun phrases, and the list of every word of the world.

Everything is lower case, words are separated by single spaces, and "?" is a word of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lens_adapter.builtin.world.catalog import CATEGORIES, COLORFUL, COLORS, OBJECT, THINGS, Noun
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
    is trained on is made from them."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


# Fields: n a noun phrase, many its plural, loose its looser plural; a, b landmarks; c a clause.
EXPRESSIONS = {
    "attribute": Templates(("the {n}", "{n}", "the {n} in the picture"), ("the {n} that you see in the picture",)),
    "extreme": Templates(("the {extreme} {n}",), ("the {n} that is the {extreme}",)),
    "size extreme": Templates(("the {extreme} {n}", "the {extreme} of all {many}"), ("the {n} that is the {extreme}",)),
    "relation": Templates(
        ("the {n} {where} the {a}", "the {n} that is {where} the {a}"), ("the {n} that you see {where} the {a}",)
    ),
    "between": Templates(
        ("the {n} between the {a} and the {b}", "the {n} that is between the {a} and the {b}"),
        ("the {n} that you see between the {a} and the {b}",),
    ),
    "nearest": Templates(
        ("the {n} nearest to the {a}", "the {n} closest to the {a}"),
        ("the {n} that is nearest to the {a}", "the {n} that is closest to the {a}"),
    ),
    "ordinal": Templates(
        ("the {rank} {n} from the {side}", "the {rank} {n} counting from the {side}"),
        ("from the {side} the {rank} {n}",),
    ),
    "several": Templates(
        ("all {loose}", "all the {many}", "every {n}", "the {count} {many}"),
        ("all of the {many}", "every one of the {many}"),
    ),
    "fact of one": Templates(("something {c}", "the {n} {c}", "{what}"), ("the one {n} {c}",)),
    "fact of several": Templates(("everything {c}", "every {n} {c}"), ("every one of the {many} {c}",)),
    "fact and extreme": Templates(("the {extreme} {n} {c}",), ("the {n} {c} that is the {extreme}",)),
}
BOTH = "both {many}"  # one more way to say "several", of two
# How a mask is asked for, e of an expression; everything else is to be answered in words.
REQUESTS = Templates(
    ("segment {e}", "outline {e}", "mark {e}", "show me {e}", "show me a mask of {e}", "{e}"),
    ("please segment {e}", "find the mask of {e}", "can you outline {e} ?"),
)
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
FUNCTION_WORDS = ("yes", "no", "and", "a", "an", "?", "medium", COLORFUL, NOWHERE, NOTHING, "both", "do", "what", "can")


def noun(look: Look) -> Noun:
    """What a look is called without its size and color."""
    if "name" in look:
        return THINGS[look["name"]].noun
    return CATEGORIES[look["category"]] if "category" in look else OBJECT


def noun_phrase(look: Look, form: str = "one") -> str:
    """{"color": "red", "name": "car"} -> "red car"; `form`: "one", "many" or "loose"."""
    called = noun(look)
    head = called.one if form == "one" else called.loose if form == "loose" and called.loose else called.many
    return " ".join([*(look[a] for a in ("size", "color") if a in look), head])


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
    """Every word that expressions, questions and answers can hold, in a fixed order."""
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
    ]
    return list(dict.fromkeys(" ".join(re.sub(r"\{\w+\}", " ", text) for text in texts).split()))
