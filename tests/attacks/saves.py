"""Saves over an earlier head that are killed, at every step and at random moments, or find the disk full."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lens_adapter import LensAdapter
from lens_adapter.errors import LensError
from tests.attacks.registry import Outcome, attack
from tests.tiny.adapters import tiny_trio

# What a save asks of the system between one state of the disk and the next.
STEPS = ("open", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "fsync", "chmod")
KILLED = 137


def two_heads(root: Path) -> tuple[LensAdapter, LensAdapter, Path]:
    """An old head, which is saved in a folder, and a new one: other weights and another config."""
    old, _, _ = tiny_trio(fusion="lite")
    new, _, _ = tiny_trio(fusion="lite", fusion_layers=2, mask_threshold=0.3)
    for adapter in (old, new):
        adapter.detach()
    folder = root / "head"
    old.save_pretrained(folder)
    return old, new, folder


def dying(what: Callable[[], object], before: Callable[[], object]) -> int:
    """`what` in a fork, after `before`; its exit code, 137 where it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            before()
            what()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return KILLED if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def killed_at(step: int) -> None:
    """Let this process die right before its `step`-th call of `STEPS`, counted from 0."""
    left = [step]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*args, **kwargs)

        return called

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def killed_after(seconds: float) -> None:
    """Let this process die after a while."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def full_after(size: int) -> None:
    """Let every file that this process writes end at `size` bytes, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def what_is_there(folder: Path, known: dict[str, str]) -> str:
    """Which head loads whole from a folder: its digest and config must be of one and the same."""
    try:
        found = LensAdapter.from_pretrained(folder)
    except (LensError, OSError) as error:
        return f"lost: {error}"
    name = known.get(found.digest(), "strange weights")
    layers = {"old": 1, "new": 2}.get(name)
    return name if found.config.fusion_layers == layers else f"mixed: {name} with {found.config.fusion_layers} layers"


@attack("saves", 150)
def attack_saves(seed: int, count: int) -> Outcome:
    """A save over an earlier head is killed (at every step, then at random moments) or finds the disk full"""
    rng, outcome = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory() as root:
        old, new, folder = two_heads(Path(root))
        known = {old.digest(): "old", new.digest(): "new"}
        whole = Path(root, "whole")
        shutil.copytree(folder, whole)
        began = time.monotonic()
        assert not dying(lambda: new.save_pretrained(folder), lambda: None)
        seconds = time.monotonic() - began
        step = 0
        for turn in range(count):
            if turn % 10 == 9:
                size = rng.randrange(1, (whole / "model.safetensors").stat().st_size)
                before, about = (lambda size=size: full_after(size)), f"files end at {size} bytes"
            elif step is not None:
                before, about = (lambda step=step: killed_at(step)), f"step {step}"
            else:
                after = rng.uniform(0, 1.2 * seconds)
                before, about = (lambda after=after: killed_after(after)), f"after {after:.4f} s"
            if turn % 3 == 0:  # else over what the last kill has left
                shutil.rmtree(folder)
                shutil.copytree(whole, folder)
            code = dying(lambda: new.save_pretrained(folder), before)
            outcome.tried += 1
            outcome.refused += code != 0
            if step is not None and turn % 10 != 9:
                step = step + 1 if code else None
            found = what_is_there(folder, known)
            if found not in ("old", "new") or (not code and found != "new"):
                outcome.lost += 1
                outcome.note(f"{about}, exit code {code}: {found}; {sorted(os.listdir(folder))}")
            elif turn % 2:  # what was left is tidied by the next save
                (old if found == "new" else new).save_pretrained(folder)
                left = [name for name in os.listdir(folder) if name.startswith(".lens-save") and "part" not in name]
                if left or what_is_there(folder, known) != ("old" if found == "new" else "new"):
                    outcome.lost += 1
                    outcome.note(f"{about}: the save after it left {sorted(os.listdir(folder))}")
    return outcome
