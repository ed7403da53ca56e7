"""A few of every attack, with seeds of their own; `python -m tests.attacks` does thousands."""

from __future__ import annotations

import pytest

from tests.attacks import heads, saves
from tests.attacks.registry import ATTACKS, Outcome
from tests.attacks.workers import closed_sockets, tried

FEW = {"heads": 40, "saves": 8}


@pytest.mark.parametrize("name", FEW)
def test_it_holds(name):
    outcome = ATTACKS[name].run(1_000_000, FEW[name])
    assert outcome.held and outcome.tried == FEW[name], outcome.examples
    assert outcome.refused  # else it was no attack


def _misbehave(item: str) -> None:
    if item == "hang":
        while True:
            pass
    if item == "reach":
        import socket

        try:
            socket.create_connection(("192.0.2.1", 80))
        except BaseException:
            return  # swallowed: it counts all the same
    if item == "die":
        import os

        os._exit(3)
    if item == "break":
        raise KeyError(item)


def test_what_must_not_be_is_counted(monkeypatch):
    monkeypatch.setattr("tests.attacks.workers.PATIENCE", 0.3)
    outcome = tried(["", "hang", "reach", "die", "break", ""], _misbehave, Outcome())
    assert (outcome.tried, outcome.hung, outcome.lost, outcome.foreign, outcome.refused) == (6, 2, 1, 1, 0)
    assert len(outcome.examples) == 4 and not outcome.held


def test_sockets_are_open_again_after():
    import socket

    before = socket.getaddrinfo
    with closed_sockets() as wanted:
        assert socket.getaddrinfo is not before and not wanted
    assert socket.getaddrinfo is before


__all__ = ["heads", "saves"]
