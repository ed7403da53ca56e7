"""What an attack is, and what came of it. A module that registers one is imported by `__main__`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Counts of one attack.

    Attributes:
        tried: inputs, kills or interrupts.
        refused: of them, those that ended in an error of ours.
        foreign: those that ended in anybody else's.
        hung: those that took longer than `workers.PATIENCE`, or took their process along.
        lost: what must never be: a head lost or mixed, a socket opened, a hook left.
        examples: a line about each that must not be; the first few.
    """

    tried: int = 0
    refused: int = 0
    foreign: int = 0
    hung: int = 0
    lost: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return not (self.foreign or self.hung or self.lost)

    def note(self, line: str) -> None:
        """Remember what must not be."""
        if len(self.examples) < 40:
            self.examples.append(line)


# (seed, count) -> what came of it.
Attack = Callable[[int, int], Outcome]


@dataclass(frozen=True)
class Entry:
    """An attack of the command: its name, how many inputs it takes unless told, and what it is, in a line."""

    run: Attack
    count: int
    about: str


ATTACKS: dict[str, Entry] = {}


def attack(name: str, count: int) -> Callable[[Attack], Attack]:
    """Register a function under a name; the first line of its docstring says what it is."""

    def register(function: Attack) -> Attack:
        ATTACKS[name] = Entry(function, count, (function.__doc__ or "").strip().splitlines()[0])
        return function

    return register
