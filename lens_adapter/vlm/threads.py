"""Where several threads use one model: hooks of one thread alone, locks that a fork does not leave locked, processors
that serve one thread at a time, and compiled code that rests in one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from threading import Lock, RLock, Thread, current_thread
from typing import Any, ParamSpec, TypeVar

import torch
from torch._dynamo import eval_frame

from lens_adapter.vlm.state import undone

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def fork_safe_lock() -> Lock:
    """A lock to be held for a moment only: a fork waits for it, and finds it open in the child."""
    lock = Lock()
    if hasattr(os, "register_at_fork"):  # Windows knows no fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


_processing = RLock()


def _renew() -> None:
    global _processing
    _processing = RLock()  # whoever held it does not exist in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def one_at_a_time(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """For what calls a processor: fast tokenizers raise "Already borrowed" where two threads call one at once."""

    @wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        with _processing:
            return function(*args, **kwargs)

    return call


class ThreadHook:
    """A hook that acts on forwards of the thread that makes it, and on no other's.

    Nor does it enter code that is being compiled: that is another thread's (see `compiled_code_rests`), or will be.

    Args:
        hook: what it does.
        owner: whose it is: by that it is found again.
    """

    def __init__(self, hook: Callable[..., Any], owner: object) -> None:
        self.hook, self.owner, self.thread = hook, owner, current_thread()

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or current_thread() is not self.thread:
            return None
        return self.hook(*arguments)


class _EagerHere(str):
    """A stance of torch.compile, which is the whole process's: "force_eager" in threads that rest, as it was in all
    others."""

    before: Any  # the stance as it was

    def __eq__(self, other: object) -> bool:
        return other == "force_eager" if current_thread() in _resting.values() else str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


_resting: dict[object, Thread] = {}  # of each context that is open, in whatever order they close
_stance_lock = fork_safe_lock()


@contextmanager
def compiled_code_rests() -> Iterator[None]:
    """Inside, calls of code that torch.compile made run the Python it was made from, in this thread."""
    context = object()

    def close() -> None:
        _resting.pop(context, None)
        _settle_stance()

    with undone(close):
        _resting[context] = current_thread()
        _settle_stance()
        yield


def _settle_stance() -> None:
    """The process's stance is ours while a context is open, and then as it was before the first one."""
    with _stance_lock:
        now = eval_frame._stance
        stance: Any = now.stance
        if _resting and not isinstance(stance, _EagerHere):
            here: Any = _EagerHere(stance)
            here.before = now
            eval_frame._set_stance(replace(now, stance=here))
        elif not _resting and isinstance(stance, _EagerHere):
            eval_frame._set_stance(stance.before)
