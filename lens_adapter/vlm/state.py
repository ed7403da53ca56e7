"""What is changed for a while, and is as it was afterwards, whatever interrupts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Whatever happens inside, `undo` runs to its end before the context has ended.

    An interrupt (Ctrl-C) may come anywhere, also between a change and whatever would remember it, and in the middle of
    taking it back. So changes are made inside, nothing is remembered, and `undo` finds by itself what there is to take
    back: it may run before anything was changed, and twice. Where Python is interrupted between its own steps into or
    out of a context, it ends with the last reference to the exception.
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()  # an interrupt may have cut the first one short


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the submodules that were training do so again.

    A module that is in evaluation mode already is not written, so whatever its user changes meanwhile stays.
    """
    training = [part for part in module.modules() if part.training]

    def train() -> None:
        for part in training:
            part.training = True

    with undone(train):
        for part in training:
            part.training = False
        yield
