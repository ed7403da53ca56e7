"""Where several threads use one model: hooks of one thread alone, locks that a fork does not leave locked, processors
that serve one thread at a time, and compiled code that rests in one thread."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import Lock, RLock, Thread, current_thread
from typing import Any, ParamSpec, TypeVar

import torch
from torch._dynamo import eval_frame

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
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook, self.thread = hook, current_thread()

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or current_thread() is not self.thread:
            return None
        return self.hook(*arguments)


class _EagerHere(str):
    """A stance of torch.compile, which is the whole process's: "force_eager" in threads that rest, as it was in all
    others."""

    def __eq__(self, other: object) -> bool:
        return other == "force_eager" if current_thread() in _resting else str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


_resting: Counter[Thread] = Counter()  # how many contexts each thread has open
_stance = ExitStack()  # entered by the first context that is open, closed by the last, in whatever order they close
_stance_lock = fork_safe_lock()


@contextmanager
def compiled_code_rests() -> Iterator[None]:
    """Inside, calls of code that torch.compile made run the Python it was made from, in this thread."""
    thread = current_thread()
    with _stance_lock:
        if not _resting:
            now = eval_frame._stance
            here: Any = _EagerHere(now.stance)
            stance = torch.compiler.set_stance(
                here, skip_guard_eval_unsafe=now.skip_guard_eval_unsafe, force_backend=now.backend
            )
            _stance.enter_context(stance)
        _resting[thread] += 1
    try:
        yield
    finally:
        with _stance_lock:
            _resting[thread] -= 1
            if not _resting[thread]:
                del _resting[thread]
            if not _resting:
                _stance.close()
