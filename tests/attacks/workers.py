"""Inputs tried one by one in a process beside this one, with all sockets closed and an end to time and memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lens_adapter.errors import LensError
from tests.attacks.registry import Outcome

PATIENCE = 5.0  # seconds of the processor for one input
LONGEST = 120.0  # seconds of the clock, on a busy machine
ROOM = 4 << 30  # bytes beyond what the process takes before the first input


class Touched(BaseException):
    """Somebody wanted to reach something over the network; no `except Exception` swallows it."""


@contextlib.contextmanager
def closed_sockets() -> Iterator[list[str]]:
    """Inside, nothing is reached over the network; yields what was wanted."""
    wanted: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*args: Any, **_: Any) -> Any:
            wanted.append(f"{name}{args!r:.200}")
            raise Touched(wanted[-1])

        return refused

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (socket.socket, "connect"),
            (socket.socket, "connect_ex"),
            (socket, "getaddrinfo"),
            (socket, "gethostbyname"),
            (socket, "create_connection"),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, refuse(name))
        yield wanted


def tried(
    inputs: Iterable[Any],
    attempt: Callable[[Any], Any],
    outcome: Outcome,
    describe: Callable[[Any], str] = repr,
) -> Outcome:
    """`attempt(input)` of each input, in a forked process; a new one after each that hangs or dies.

    Args:
        inputs: small ones, that can be pickled and printed.
        attempt: returns where the input is taken, raises a `LensError` where it is refused.
        outcome: is counted in.
        describe: an input that must not be -> what it is.
    """
    context = multiprocessing.get_context("fork")
    process, ours = None, None
    for item in inputs:
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, attempt), daemon=True)
            process.start()
            theirs.close()
        outcome.tried += 1
        try:
            ours.send(item)
            kind, text = ours.recv() if _answers(ours, process.pid) else ("hung", f"more than {PATIENCE:g} s")
        except (EOFError, OSError):
            kind, text = "hung", "its process died"
        if kind == "hung":
            process.kill()
            process.join()
            ours.close()
            process = None
        if kind != "taken":
            setattr(outcome, kind, getattr(outcome, kind) + 1)
        if kind not in ("taken", "refused"):
            outcome.note(f"{kind}: {describe(item):.300}: {text}")
    if process is not None:
        ours.close()
        process.join(PATIENCE)
        process.kill()
    return outcome


def _answers(pipe: Any, worker: int) -> bool:
    """Whether something comes before the worker has spent its time."""
    spent, end = _seconds_of(worker), time.monotonic() + LONGEST
    while not pipe.poll(0.25):
        if _seconds_of(worker) - spent > PATIENCE or time.monotonic() > end:
            return False
    return True


def _seconds_of(process: int) -> float:
    """What a process has had of the processor."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(pipe: Any, attempt: Callable[[Any], Any]) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_result(attempt, pipe.recv()))


def _result(attempt: Callable[[Any], Any], item: Any) -> tuple[str, str]:
    with closed_sockets() as wanted:
        try:
            attempt(item)
            found = "taken", ""
        except LensError as error:
            found = "refused", str(error)[:300]
        except BaseException as error:
            found = "foreign", f"{type(error).__name__}: {str(error)[:300]}"
    return ("lost", f"wanted {wanted[:3]}") if wanted else found
