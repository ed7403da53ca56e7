"""`lens-adapter serve` under load on this machine: who is answered, how soon, and what batching is worth.

    python -m benchmarks.serve_load             # into results/serve_load.json; needs the extra serve, and httpx
    python -m benchmarks.serve_load --seconds 5 --rounds 1 --json /tmp/load.json

Clients send one request after another without a pause, each with a prompt and a picture that was not there before;
every tenth has no picture. The same load goes to a server that asks the model about one request at a time, in turns
with the other, so that what else the machine does falls on both. At the end of each round the server gets SIGTERM under
load.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.page_load import PATIENCE, ROOT, await_answer, free_port, memory, quantile
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.serving.bounds import BATCH_SIZE

BAD_EVERY = 10  # requests
WARMING = 8  # requests


@dataclass
class Ledger:
    """What became of the requests.

    Attributes:
        seconds: of each that was answered with masks.
        refused: those that were told that they cannot be used, and were such.
        turned_away: those that found no room, 503.
        lost: what else happened, in words. A connection that cannot be made once the server was told to end is none.
        held: the most that were on their way at the same time.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    turned_away: int = 0
    lost: list[str] = field(default_factory=list)
    held: int = 0
    now: int = 0
    ending: bool = False


@cache
def scene(number: int) -> Image.Image:
    """A picture that the model knows its way in."""
    return EXAMPLES[number].scene().draw(PICTURE_SIZE)


def request(number: int) -> tuple[bytes, bool]:
    """The body of one, and whether it is good. No two pictures are the same, so that nothing is known from before."""
    good, kind, file = number % BAD_EVERY != BAD_EVERY - 1, number % len(EXAMPLES), BytesIO()
    if good:
        own = scene(kind).copy()
        own.paste((number % 256, number // 256 % 256, number // 65536), (0, 0, 16, 16))
        own.save(file, "JPEG")
    parameters = {"prompts": [next(iter(EXAMPLES[kind].prompts))]}
    return json.dumps({"inputs": base64.b64encode(file.getvalue()).decode(), "parameters": parameters}).encode(), good


async def come(client: httpx.AsyncClient, ledger: Ledger, number: int, clients: int) -> None:
    """One client, until nobody listens any more."""
    while True:
        body, good = request(number)
        number += clients
        start = time.monotonic()
        ledger.now += 1
        ledger.held = max(ledger.held, ledger.now)
        try:
            answer = await client.post("/", content=body)
        except httpx.TransportError as error:
            if not (
                ledger.ending and isinstance(error, httpx.ConnectError | httpx.RemoteProtocolError | httpx.ReadError)
            ):
                ledger.lost.append(f"{type(error).__name__}: {error}")
            if ledger.ending:
                return
            continue
        finally:
            ledger.now -= 1
        if answer.status_code == 503:
            ledger.turned_away += 1
            await asyncio.sleep(float(answer.headers["Retry-After"]))
        elif answer.status_code == 200 and good:
            ledger.seconds.append(time.monotonic() - start)
        elif answer.status_code == 400 and not good:
            ledger.refused += 1
        else:
            ledger.lost.append(f"{answer.status_code}: {answer.text[:200]}")


async def load(url: str, clients: int, seconds: float, server: subprocess.Popen[bytes]) -> tuple[Ledger, float, float]:
    """All of them for a while, then SIGTERM.

    Returns:
        The ledger; how many per second were answered with masks before SIGTERM; the most MB that the server took.
    """
    ledger, limits = Ledger(), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        for number in range(WARMING):  # what the models need once
            await client.post("/", content=request(1_000_000 + number)[0])
        start = time.monotonic()
        tasks = [asyncio.create_task(come(client, ledger, number, clients)) for number in range(clients)]
        await asyncio.sleep(seconds)
        rate, (_, most) = len(ledger.seconds) / (time.monotonic() - start), memory(server.pid)
        ledger.ending = True
        server.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    return ledger, rate, most


def measure(clients: int, seconds: float, batch_size: int) -> dict[str, Any]:
    """One server under load, and its end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for number in range(len(EXAMPLES)):  # made now: clients share one thread
        scene(number)
    command = [sys.executable, "-m", "lens_adapter", "serve", "--model", "builtin", "--device", "cpu"]
    options = ["--port", str(port), "--batch-size", str(batch_size)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/log", "w") as log:
            server = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
        try:
            await_answer(f"{url}/ready", server)
            ledger, rate, most = asyncio.run(load(url, clients, seconds, server))
            code = server.wait(PATIENCE)
        finally:
            server.kill()
        said = re.search(r"Answered (\d+) of (\d+) requests", Path(folder, "log").read_text())
    told, accepted = map(int, said.groups()) if said else (0, -1)
    seen = len(ledger.seconds) + ledger.refused + WARMING
    return {
        "answered_per_second": round(rate, 2),
        "requests": {
            "answered": len(ledger.seconds),
            "refused_for_their_picture": ledger.refused,
            "turned_away_503": ledger.turned_away,
            "lost": len(ledger.lost) + accepted - seen,
            "words": sorted(set(ledger.lost)),
            "held_at_most": ledger.held,
        },
        "seconds": {"p50": quantile(ledger.seconds, 50), "p95": quantile(ledger.seconds, 95)},
        "stop": {"accepted": accepted, "answered": told, "exit_code": code},
        "memory_mb": round(most),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "serve_load.json")
    args = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    rounds = [
        {name: measure(args.clients, args.seconds, size) for name, size in (("batched", BATCH_SIZE), ("unbatched", 1))}
        for _ in range(args.rounds)
    ]
    figures = {
        "clients": args.clients,
        "batch_size": BATCH_SIZE,
        "seconds_of_a_round": args.seconds,
        "machine": {"cores": os.cpu_count(), "load_before": round(before, 1), "device": "cpu", "model": "builtin"},
        "throughput_of_batched_to_unbatched": [
            round(one["batched"]["answered_per_second"] / one["unbatched"]["answered_per_second"], 2) for one in rounds
        ],
        "rounds": rounds,
    }
    args.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
