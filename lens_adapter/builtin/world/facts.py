"""What people know about the things: what is done with them, what they have and where they come from.

A fact is said in clauses ("something *you can eat*", "the vehicle *that has wheels*") and asked with `ask`. The
vision-language model meets all of them, in text questions only. The heads learn from masks for some of them: the pairs
of `HELD_OUT_PAIRS`, and the last clause of every fact that has several, never name a mask in training.

Living animals count as animals, not as food.
"""

from __future__ import annotations

from dataclasses import dataclass

from lens_adapter.builtin.world.catalog import CATEGORIES, THINGS, Members, is_a


@dataclass(frozen=True)
class Fact:
    """Something that is true of some things.

    Attributes:
        name: for tables.
        ask: a question about one thing, `{it}`.
        clauses: how it is said of "something"; each starts with "you", "that" or "with".
        held_out_clause: one more, for evaluation; empty: none.
        members: what it is true of.
    """

    name: str
    ask: str
    clauses: tuple[str, ...]
    held_out_clause: str
    members: Members

    @property
    def all_clauses(self) -> tuple[str, ...]:
        return (*self.clauses, self.held_out_clause) if self.held_out_clause else self.clauses


def _fact(name: str, ask: str, *clauses: str, sure: str, unclear: str = "") -> Fact:
    known, held_out = (clauses[:-1], clauses[-1]) if len(clauses) > 1 else (clauses, "")
    certain = _names(sure)
    return Fact(name, f"{ask} ?", known, held_out, Members(certain, _names(unclear) - certain))


def _names(text: str) -> frozenset[str]:
    """Names of things; a category stands for all that belongs to it."""
    found: set[str] = set()
    for word in text.split():
        found |= is_a(word).sure if word in CATEGORIES else {THINGS[word].name}
    return frozenset(found)


FACTS = {
    fact.name: fact
    for fact in (
        _fact(
            "eat",
            "can you eat {it}",
            *("you can eat", "that people eat", "you eat when you are hungry"),
            sure="food",
            unclear="fish cup",
        ),
        _fact(
            "sweet",
            "does {it} taste sweet",
            *("that tastes sweet", "with a sweet taste"),
            sure="apple banana strawberry pineapple watermelon cake donut",
            unclear="carrot corn cup lemon",
        ),
        _fact("sour", "does {it} taste sour", "that tastes sour", sure="lemon", unclear="apple strawberry pineapple"),
        _fact(
            "trees",
            "does {it} grow on trees",
            *("that grows on trees", "that grows on a tree", "you pick from a tree"),
            sure="apple lemon",
            unclear="banana tree",
        ),
        _fact(
            "monkeys",
            "do monkeys love to eat {it}",
            "that monkeys love to eat",
            sure="banana",
            unclear="fruit vegetable food",
        ),
        _fact(
            "birthday",
            "do you need {it} for a birthday",
            *("you need for a birthday", "with candles"),
            sure="cake",
            unclear="balloon",
        ),
        _fact(
            "from_milk",
            "is {it} made from milk",
            "that is made from milk",
            sure="cheese",
            unclear="pizza cake donut cup",
        ),
        _fact(
            "drink",
            "can you drink from {it}",
            *("you can drink from", "you use to drink"),
            sure="cup",
        ),
        _fact(
            "milk",
            "does {it} give milk",
            *("that gives milk", "that gives us milk"),
            sure="cow",
            unclear="sheep horse pig dog cat elephant rabbit",
        ),
        _fact("wool", "does {it} give wool", "that gives wool", "that gives us wool", sure="sheep", unclear="rabbit"),
        _fact("honey", "does {it} make honey", "that makes honey", "that gives us honey", sure="bee"),
        _fact("barks", "does {it} bark", "that barks", "that can bark", sure="dog"),
        _fact("mice", "does {it} catch mice", "that catches mice", "that hunts mice", sure="cat", unclear="dog"),
        _fact(
            "four_legs",
            "does {it} have four legs",
            *("that has four legs", "with four legs"),
            sure="dog cat cow pig horse sheep elephant rabbit chair",
            unclear="teddy piano",
        ),
        _fact(
            "wings",
            "does {it} have wings",
            "that has wings",
            "with wings",
            sure="airplane bee butterfly duck",
            unclear="rocket",
        ),
        _fact(
            "fly",
            "can {it} fly",
            *("that can fly", "that flies"),
            sure="airplane rocket bee butterfly duck kite",
            unclear="balloon cloud",
        ),
        _fact("in_water", "does {it} live in water", "that lives in water", sure="fish", unclear="duck"),
        _fact(
            "on_water",
            "can {it} go on water",
            *("that can go on water", "that you see on a lake"),
            sure="boat duck",
            unclear="fish airplane balloon basketball",
        ),
        _fact(
            "alive",
            "is {it} alive",
            *("that is alive", "that lives"),
            sure="animal plant",
            unclear="fruit vegetable",
        ),
        _fact(
            "wheels",
            "does {it} have wheels",
            *("that has wheels", "that rolls on wheels", "with wheels"),
            sure="car motorcycle train skateboard",
            unclear="airplane",
        ),
        _fact(
            "engine",
            "does {it} have an engine",
            *("that has an engine", "with an engine"),
            sure="car motorcycle airplane rocket train",
            unclear="boat",
        ),
        _fact("rails", "does {it} run on rails", "that runs on rails", sure="train"),
        _fact("moon", "can {it} fly to the moon", "that flies to the moon", "that can fly to the moon", sure="rocket"),
        _fact("sail", "does {it} have a sail", "that has a sail", "with a sail", sure="boat"),
        _fact(
            "wear",
            "can you wear {it}",
            *("you can wear", "that people wear"),
            sure="clothing",
        ),
        _fact(
            "head",
            "do you wear {it} on your head",
            *("you wear on your head", "you put on your head"),
            sure="hat cap",
        ),
        _fact("feet", "do you wear {it} on your feet", "you wear on your feet", "you put on your feet", sure="shoe"),
        _fact(
            "rain",
            "does {it} keep you dry in the rain",
            *("that keeps you dry in the rain", "you need in the rain"),
            sure="umbrella",
            unclear="hat cap shirt shoe",
        ),
        _fact(
            "time", "does {it} tell the time", "that tells the time", "that shows the time", sure="clock", unclear="sun"
        ),
        _fact("read", "can you read {it}", "you can read", sure="book", unclear="clock"),
        _fact(
            "sit",
            "do you sit on {it} at a table",
            *("you sit on at a table", "you can sit on at a table"),
            sure="chair",
        ),
        _fact(
            "ride",
            "can you ride {it}",
            *("you can ride", "that people ride"),
            sure="horse motorcycle skateboard",
            unclear="vehicle elephant cow sheep pig dog",
        ),
        _fact(
            "cut_paper",
            "would you use {it} to cut paper",
            *("you would use to cut paper", "you can cut paper with", "that cuts paper"),
            sure="scissors",
            unclear="saw",
        ),
        _fact(
            "cut_wood",
            "would you use {it} to cut wood",
            *("you would use to cut wood", "you can cut wood with"),
            sure="saw",
        ),
        _fact(
            "nail",
            "would you use {it} to hit a nail",
            *("you would use to hit a nail", "you can hit a nail with"),
            sure="hammer",
        ),
        _fact(
            "write",
            "would you use {it} to write",
            *("you would use to write", "you can write with"),
            sure="pencil",
        ),
        _fact(
            "music",
            "does {it} make music",
            *("that makes music", "you can make music with"),
            sure="instrument",
        ),
        _fact("blow", "do you blow into {it}", "you blow into", "you can blow into", sure="trumpet", unclear="balloon"),
        _fact(
            "strings",
            "does {it} have strings",
            *("that has strings", "with strings"),
            sure="guitar racket",
            unclear="piano kite balloon shoe",
        ),
        _fact("sticks", "do you hit {it} with sticks", "you hit with sticks", sure="drum"),
        _fact("bounce", "does {it} bounce", "that bounces", "that can bounce", sure="basketball", unclear="balloon"),
        _fact(
            "child",
            "does a child take {it} to bed",
            *("that a child takes to bed",),
            sure="teddy",
            unclear="book cup",
        ),
        _fact("wind", "does {it} need wind", "that needs wind", sure="kite boat", unclear="airplane balloon cloud"),
        _fact(
            "vase",
            "would you put {it} in a vase",
            *("you would put in a vase", "you can put in a vase"),
            sure="flower",
            unclear="cactus tree",
        ),
        _fact("wood", "does {it} give wood", "that gives wood", "that gives us wood", sure="tree"),
        _fact("desert", "does {it} grow in the desert", "that grows in the desert", sure="cactus"),
        _fact(
            "sky",
            "do you see {it} in the sky",
            *("you see in the sky", "you can see in the sky"),
            sure="sun cloud rainbow",
            unclear="airplane rocket kite balloon bee butterfly duck snowflake",
        ),
        _fact(
            "light",
            "does {it} give light",
            "that gives light",
            "that gives us light",
            sure="sun",
            unclear="cake car motorcycle train rocket rainbow",
        ),
        _fact("ice", "is {it} made of ice", "that is made of ice", sure="snowflake"),
    )
}

# Name -> facts that no mask in training is named by together with it.
_HELD_OUT = {
    "banana": "eat",
    "donut": "eat",
    "corn": "eat",
    "watermelon": "sweet",
    "lemon": "trees",
    "cow": "milk",
    "pig": "four_legs",
    "chair": "four_legs",
    "butterfly": "fly",
    "bee": "wings",
    "elephant": "alive",
    "tulip": "alive vase",
    "skateboard": "wheels",
    "motorcycle": "engine",
    "horse": "ride",
    "duck": "on_water",
    "hat": "head",
    "dress": "wear",
    "umbrella": "rain",
    "scissors": "cut_paper",
    "clock": "time",
    "trumpet": "music",
    "guitar": "strings",
    "rainbow": "sky",
}
HELD_OUT_PAIRS = frozenset((name, fact) for name, facts in _HELD_OUT.items() for fact in facts.split())
