"""The page under 50 visitors for two minutes, ten of whom mean it no good: who waits, who is told what, what it takes.

    python -m benchmarks.page_load                       # into results/page_load.json; needs gradio
    python -m benchmarks.page_load --seconds 10 --honest 4 --hostile 3 --json /tmp/load.json

The page is `lens-adapter app` as it is, with the built-in models, in a process of its own. Each visitor has an address
of this machine and does one thing after another. The honest ones upload a picture, ask for masks, look at layers, ask a
question, and think about what they see; the hostile ones do what `HOSTILE` says, over and over, without thinking.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.visitor import SHOWN, Reply, Visitor, named
from lens_adapter.app.bounds import MOST_PROMPTS
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE

ROOT = Path(__file__).parents[1]
THINKING = (8.0, 22.0)  # seconds, of an honest visitor, between two requests
BREATH = 0.2  # seconds, of a hostile one
BOMBS = (5_001, 9_000, 13_000, 20_000)  # pixels of a side
LARGEST = 5_000
PATIENCE = 300.0  # seconds that the page has to start, and to end what it began
SERVER_FILES = ("/etc/passwd", "/etc/hostname", str(Path(__file__)), str(ROOT / "docs" / "app.png"), "/nowhere.png")


@dataclass
class Diary:
    """What happened to whom.

    Attributes:
        seconds: of every request of an honest visitor that was done, by what it asked for.
        lost: what an honest visitor asked for and did not get, with the page's words.
        answers: how many requests of each hostile kind were done ("done"), refused in words ("words") or neither.
        leaks: attacks that got what they must not get.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)

    def honest(self, what: str, reply: Reply) -> None:
        if reply.good:
            self.seconds.setdefault(what, []).append(reply.seconds)
        else:
            self.lost.append(f"{what}: {reply.words}")

    def hostile(self, kind: str, reply: Reply, *, harmless: bool = False) -> None:
        outcome = "done" if reply.good else "words" if reply.words else "neither"
        self.answers.setdefault(kind, Counter())[outcome] += 1
        if reply.good and not harmless:
            self.leaks.append(kind)


@cache
def picture(side: int = PICTURE_SIZE, number: int = 0, kind: str = "PNG") -> bytes:
    """A scene of the built-in world as a file."""
    buffer = BytesIO()
    EXAMPLES[number % len(EXAMPLES)].scene().draw(PICTURE_SIZE).resize((side, side)).save(buffer, kind)
    return buffer.getvalue()


@cache
def blank(side: int) -> bytes:
    """A picture of a few kilobytes, however large."""
    buffer = BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


async def come(visitor: Visitor, diary: Diary, number: int, thinking: tuple[float, float]) -> None:
    """An honest visit, over and over."""
    chance = random.Random(number)
    shown = EXAMPLES[number % len(EXAMPLES)]

    async def think() -> None:
        await asyncio.sleep(chance.uniform(*thinking))

    await asyncio.sleep(chance.uniform(0, thinking[1]))  # they do not come all at once
    raw = picture(number=number % len(EXAMPLES))
    while True:
        upload = await visitor.upload(raw)
        diary.honest("segment", await visitor.segment(upload, "\n".join(shown.prompts)))
        await think()
        diary.honest("redraw", await visitor.redraw(["Masks", "Heatmap"]))
        await think()
        diary.honest("ask", await visitor.question(upload, shown.question))
        await think()


async def steal(visitor: Visitor, diary: Diary) -> None:
    for file in SERVER_FILES:
        for upload in (named(file), {"path": file}):
            diary.hostile("names files of the server", await visitor.segment(upload, "the cup"))
            diary.hostile("names files of the server", await visitor.ask("check", upload))


async def explode(visitor: Visitor, diary: Diary) -> None:
    for side in BOMBS:
        upload = await visitor.upload(blank(side))
        diary.hostile("pictures of up to 400 megapixels in kilobytes", await visitor.segment(upload, "the cup"))


async def script(visitor: Visitor, diary: Diary) -> None:
    diary.hostile("PostScript named .png", await visitor.segment(await visitor.upload(picture(kind="EPS")), "the cup"))


async def chatter(visitor: Visitor, diary: Diary) -> None:
    upload = await visitor.upload(picture())
    for words in ("a " * 2_500_000, "cup " * 10_000, "<image>" * 20, "x" * 600):
        diary.hostile("lines of up to 5 MB, special tokens", await visitor.segment(upload, words))
        diary.hostile("lines of up to 5 MB, special tokens", await visitor.question(upload, words))


async def list_much(visitor: Visitor, diary: Diary) -> None:
    upload = await visitor.upload(picture())
    reply = await visitor.segment(upload, "\n".join(f"the cup {k}" for k in range(5_000)))
    diary.hostile("5 000 prompts", reply)


async def flood(visitor: Visitor, diary: Diary) -> None:
    upload = await visitor.upload(picture())
    for _ in range(100):
        diary.hostile("100 requests at a time", await visitor.join("segment", upload, "the cup", *SHOWN), harmless=True)
    await visitor.segment(upload, "the cup")


async def multiply(visitor: Visitor, diary: Diary) -> None:
    upload = await visitor.upload(picture())
    for _ in range(20):
        reply = await visitor.ask("check", upload, session=os.urandom(8).hex())
        diary.hostile("a new session per request", reply, harmless=True)


async def babble(visitor: Visitor, diary: Diary) -> None:
    for body in (b"[" * 90_000, b"\xff" * 9_000, b"{}", b'{"data": 5}', b'{"data": [[]], "fn_index": -1}'):
        for place in ("/gradio_api/queue/join", "/gradio_api/run/segment", "/gradio_api/call/segment"):
            diary.hostile("what is no request", await visitor.post(place, body), harmless=True)


async def fill(visitor: Visitor, diary: Diary) -> None:
    """All that one may ask for: of the bounds on a picture and on prompts, the most."""
    upload = await visitor.upload(picture(LARGEST, kind="JPEG"), f"{random.random()}.jpg")
    prompts = "\n".join(f"the red car {k}" for k in range(MOST_PROMPTS))
    diary.hostile(f"25 megapixels and {MOST_PROMPTS} prompts", await visitor.segment(upload, prompts), harmless=True)


async def smuggle(visitor: Visitor, diary: Diary) -> None:
    upload = await visitor.upload(picture())
    for file in SERVER_FILES:
        turns = [{"role": "user", "content": named(file)}]
        diary.hostile("files in a chat", await visitor.ask("ask", upload, "what is it?", turns, True, *SHOWN))


HOSTILE = (steal, explode, script, chatter, list_much, flood, multiply, babble, fill, smuggle)


async def trouble(
    visitor: Visitor, diary: Diary, doing: Callable[[Visitor, Diary], Awaitable[None]], breath: float = BREATH
) -> None:
    """A hostile visit, over and over."""
    while True:
        try:
            await doing(visitor, diary)
        except httpx.HTTPError as error:
            diary.hostile(doing.__name__, Reply(False, f"{type(error).__name__}: {error}"))
        await asyncio.sleep(breath)


async def visits(url: str, honest: int, hostile: int, seconds: float, thinking: tuple[float, float]) -> Diary:
    """All of them at the same time.

    Raises:
        Exception: an honest visitor's request failed in a way that the page has no words for.
    """
    diary = Diary()
    visitors = [Visitor(url, f"127.0.{1 + k // 250}.{1 + k % 250}") for k in range(honest + hostile)]
    for visitor in visitors:
        await visitor.__aenter__()
    tasks = [asyncio.create_task(come(visitor, diary, k, thinking)) for k, visitor in enumerate(visitors[:honest])]
    for k, visitor in enumerate(visitors[honest:]):
        tasks.append(asyncio.create_task(trouble(visitor, diary, HOSTILE[k % len(HOSTILE)])))
    done, left = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for visitor in visitors:
        await visitor.__aexit__()
    for task in done:
        task.result()
    return diary


def memory(process: int) -> tuple[float, float]:
    """MB of a process now, and at most so far."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1000 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def measure(honest: int, hostile: int, seconds: float) -> dict[str, Any]:
    """Start the page, let them come, end it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for side in BOMBS:  # made now: visitors share one thread
        blank(side)
    picture(LARGEST, kind="JPEG")
    picture(kind="EPS")
    for number in range(len(EXAMPLES)):
        picture(number=number)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lens_adapter", "app", "--port", str(port), "--teach", f"{folder}/taught"]
        environment = {**os.environ, "TMPDIR": folder, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        with open(f"{folder}/log", "w") as log:
            page = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            await_answer(url, page)
            asyncio.run(visits(url, 1, 0, 10, (0.1, 0.2)))  # what the models need once
            before, _ = memory(page.pid)
            load = os.getloadavg()[0]
            start = time.monotonic()
            diary = asyncio.run(visits(url, honest, hostile, seconds, THINKING))
            lasted = time.monotonic() - start
            after, most = memory(page.pid)
            tracebacks = Path(folder, "log").read_text().count("Traceback")
            page.send_signal(signal.SIGTERM)
            code = page.wait(PATIENCE)
        finally:
            page.kill()
        left = [path.name for path in Path(folder).rglob("*") if path.is_file() and path.name != "log"]
    every = [one for these in diary.seconds.values() for one in these]
    return {
        "seconds": round(lasted, 1),
        "visitors": {"honest": honest, "hostile": hostile},
        "machine": {"cores": os.cpu_count(), "load_before": round(load, 1)},
        "memory_mb": {"before": round(before), "after": round(after), "most": round(most)},
        "honest": {
            "done": len(every),
            "lost": len(diary.lost),
            "words": sorted(set(diary.lost)),
            "seconds": {
                what: {"p50": quantile(these, 50), "p95": quantile(these, 95), "count": len(these)}
                for what, these in [("all", every), *sorted(diary.seconds.items())]
            },
        },
        "hostile": {kind: dict(counts) for kind, counts in sorted(diary.answers.items())},
        "leaks": sorted(set(diary.leaks)),
        "tracebacks": tracebacks,
        "exit_code": code,
        "files_left": left,
    }


def free_port() -> int:
    """One of this machine's that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_answer(url: str, page: subprocess.Popen[bytes]) -> None:
    """Wait until something answers 200 there.

    Raises:
        RuntimeError: the process has ended, or does not come to it.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and page.poll() is None:
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise RuntimeError(f"{url} does not answer; its process ended with {page.poll()}.")


def quantile(values: list[float], percent: int) -> float | None:
    """Rounded to hundredths; None of no values."""
    return round(float(np.percentile(values, percent)), 2) if values else None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_load", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--honest", type=int, default=40)
    parser.add_argument("--hostile", type=int, default=10)
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "page_load.json")
    args = parser.parse_args(arguments)
    figures = measure(args.honest, args.hostile, args.seconds)
    args.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(figures, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
