"""Ctrl-C at any moment: nothing of ours stays on the base.

Two kinds of interrupts, each at a random moment of a random work:

    by time   from another thread, as a signal comes: Python raises it where it next looks, in whatever code that is
    by line   raised at the k-th line of this package that runs

The second leaves out lines that begin or end the holding of a lock. Python never looks for an interrupt between the end
of such a block and the release, but its trace function may be asked to raise there.
"""

from __future__ import annotations

import ctypes
import gc
import linecache
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import torch

import lens_adapter
from lens_adapter.data.records import Example
from lens_adapter.errors import FitError, LensError
from lens_adapter.vlm import attention, registers, threads
from tests.attacks.registry import Outcome, attack
from tests.tiny.adapters import GREEDY, hooks_in, marks_on, ready_inputs, tiny_adapter, tiny_trio
from tests.tiny.sam import noise_image

PACKAGE = str(Path(lens_adapter.__file__).parent)
_LOCKED = (
    "with _lending",
    "with _changing",
    "with _stance_lock",
    "with _processing",
    "with self.base.turn",
    "with self.turn",
)
PROMPTS = ["the cat", "a dog"]


class Target:
    """A tiny base with an adapter, what can be done with them, and what must be as it was."""

    def __init__(self, fusion: str = "lite") -> None:
        self.adapter, self.model, self.processor = tiny_trio("llava", fusion, attention="sdpa")
        self.inputs, self.image = ready_inputs(self.processor), noise_image(50, 70)
        self.readout = tiny_adapter(self.model, self.processor, "readout")
        masks = [np.arange(50 * 70).reshape(50, 70) % 70 < 20 + k for k in range(8)]
        self.examples = [Example(noise_image(50, 70, seed=k), "the cat", mask) for k, mask in enumerate(masks)]
        self.works: dict[str, Callable[[], object]] = {
            "capture": self.capture,
            "an empty capture": self.empty,
            "a capture in a capture": self.nested,
            "prefill": lambda: self.adapter.prefill(self.inputs, layers=[0, 1]),
            "segment": lambda: self.adapter.segment(self.image, PROMPTS),
            "generate": lambda: self.adapter.base.generate(self.inputs, **GREEDY),
            "look": lambda: self.adapter.look(self.image, PROMPTS[0]),
            "fit": self.fit,
        }
        for name, work in self.works.items():
            if name != "fit":
                work()
        self.stance = torch._dynamo.eval_frame._stance
        self.marks, self.logits = marks_on(self.model), self.forward()

    def forward(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(**self.inputs).logits

    def capture(self) -> None:
        with self.adapter.capture(layers=[0, 1, 2]):
            self.forward()

    def empty(self) -> None:
        with suppress(LensError), self.adapter.capture(layers=[0, 1, 2, 3]):
            pass

    def nested(self) -> None:
        with self.adapter.capture(layers=[0, 1]), self.adapter.capture(layers=[1, 2]):
            self.forward()

    def fit(self) -> None:
        with suppress(FitError):  # an untrained base points nowhere
            self.readout.fit(self.examples)

    def left(self) -> list[str]:
        """What is not as it was."""
        found = [f"a hook: {hook}" for hook in hooks_in(self.model)]
        found += [] if marks_on(self.model) == self.marks else ["a mark"]
        found += ["a register is not as it was"] if any(map(_shadowed, self.model.modules())) else []
        locks = {"lending": attention._lending, "changing": registers._changing, "stance": threads._stance_lock}
        found += [f"the lock {name}" for name, lock in locks.items() if lock.locked()]
        if threads._resting or torch._dynamo.eval_frame._stance != self.stance:
            found.append("a stance of torch.compile")
        return found


def _shadowed(module: torch.nn.Module) -> bool:
    return any("__reduce_ex__" in vars(register) for _, register in registers._registers_of(module))


def run(count: int, seed: int, *, fit: bool = True) -> dict[str, int]:
    """Interrupt `count` works; how many were hit, in which way, and how often something was left.

    Each is followed by a look at every module, and every tenth by a forward of the base, which must be bit-identical.
    """
    chance, found = (
        random.Random(seed),
        Counter[str](interrupts=0, by_time=0, by_line=0, left=0, hangs=0, other_errors=0),
    )
    targets = [Target("lite"), Target("mirror")]
    ways = [by_time, by_line]
    names = [name for name in targets[0].works if fit or name != "fit"]
    facts = {(id(target), name): _measured(target.works[name]) for target in targets for name in names}
    turn = 0
    while found["interrupts"] < count:
        turn += 1
        target, way = chance.choice(targets), ways[turn % 2]
        name = chance.choice(names)
        if name == "fit" and turn % 5:  # long, and all of it on a replica
            name = "capture"
        seconds, lines = facts[id(target), name]
        try:
            way(target.works[name], chance.uniform(0, seconds) if way is by_time else chance.randrange(lines))
        except KeyboardInterrupt:
            found["interrupts"] += 1
            found[way.__name__] += 1
        except Exception as error:
            found["other_errors"] += 1
            print(f"{name}, {way.__name__}: {error!r}", file=sys.stderr)
        torch.set_grad_enabled(True)  # torch's own `no_grad` may be cut short as well
        if left := target.left():
            gc.collect()
            found["left"] += 1
            print(f"{name}, {way.__name__}: {left}; after a collection: {target.left()}", file=sys.stderr)
            target.__init__()  # type: ignore[misc]  # go on with a clean one
        if turn % 10 == 0 and not torch.equal(target.forward(), target.logits):
            found["left"] += 1
            print(f"{name}, {way.__name__}: the base answers otherwise", file=sys.stderr)
    return dict(found)


def _measured(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and lines of the package."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    with _traced(None) as lines:
        work()
    return seconds, lines[0]


def by_time(work: Callable[[], object], after: float) -> None:
    """Interrupt `work` after so many seconds, from another thread; too late, it is not interrupted."""
    thread, done = threading.get_ident(), threading.Event()
    ready = threading.Event()

    def interrupt() -> None:
        ready.wait()
        end = time.perf_counter() + after
        while time.perf_counter() < end:  # sleeping is too coarse
            pass
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))
        done.set()

    other = threading.Thread(target=interrupt)
    other.start()
    late = False
    try:
        ready.set()
        work()
        late = True
        while True:  # it comes, now or soon
            done.wait(0.001)
    except KeyboardInterrupt:
        if not late:
            raise
    finally:
        other.join()


def by_line(work: Callable[[], object], line: int) -> None:
    """Interrupt `work` at this line of the package, counted from 0 in the order in which they run."""
    with _traced(line):
        work()


@contextmanager
def _traced(stop: int | None) -> Iterator[list[int]]:
    lines = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and not _holds_a_lock(frame):
            lines[0] += 1
            if stop is not None and lines[0] == stop + 1:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(None)


def _holds_a_lock(frame: FrameType) -> bool:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(_LOCKED)


def run_commands(count: int, seed: int) -> dict[str, int]:
    """Interrupt `count` processes of the command line at random moments; how many ended with 130 and no traceback.

    The moments begin where the package has been imported: before, Python itself is interrupted.
    """
    chance, found = random.Random(seed), Counter[str](interrupts=0, other_endings=0)
    # Who is started in the background by a shell has SIGINT ignored, and hands that on.
    code = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from lens_adapter.cli import main\nprint('begun', flush=True)\nsys.exit(main())"
    with TemporaryDirectory() as folder:
        while found.total() < count:
            # -u: what it prints comes at once.
            words = [sys.executable, "-u", "-c", code, "demo", "-o", f"{folder}/sheet.png"]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            time.sleep(chance.uniform(0, 8))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=300)
            if process.returncode == 0 and "Traceback" not in said:  # it was done before
                continue
            good = process.returncode == 130 and "Traceback" not in said and said.endswith("interrupted\n")
            found["interrupts" if good else "other_endings"] += 1
            if not good:
                print(f"exit code {process.returncode}: {said[-2000:]}", file=sys.stderr)
    return dict(found)


@attack("interrupts", 2000)
def attack_interrupts(seed: int, count: int) -> Outcome:
    """Works on a base are interrupted at random moments: no hook stays, and it answers bit for bit as before"""
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    try:
        found = run(count, seed)
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(interval)
    return Outcome(found["interrupts"], 0, found["other_errors"], found["hangs"], found["left"])


@attack("commands", 20)
def attack_commands(seed: int, count: int) -> Outcome:
    """Processes of the command line get Ctrl-C at random moments: 130, and no traceback"""
    found = run_commands(count, seed)
    return Outcome(sum(found.values()), 0, found["other_endings"])
