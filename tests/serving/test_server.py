"""The server: who is told what, and that nothing accepted is lost when it is to end."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import sys
from contextlib import contextmanager, redirect_stderr
from io import BytesIO
from threading import Event

import pytest

pytest.importorskip("starlette", reason="the server needs starlette: pip install -e '.[serve]'")
pytest.importorskip("uvicorn", reason="the server needs uvicorn: pip install -e '.[serve]'")
httpx = pytest.importorskip("httpx")

from lens_adapter import builtin  # noqa: E402
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE  # noqa: E402
from lens_adapter.cli import main  # noqa: E402
from lens_adapter.errors import InputError, LensError  # noqa: E402
from lens_adapter.serving import server  # noqa: E402
from lens_adapter.serving.batching import Batcher  # noqa: E402
from lens_adapter.serving.requests import answer_all, read_request  # noqa: E402
from lens_adapter.serving.server import Service  # noqa: E402
from tests.tiny.processes import PATIENCE, SERVER  # noqa: E402

VISITORS = 6


def asking(number: int = 0, **parameters):
    shown, buffer = EXAMPLES[number % len(EXAMPLES)], BytesIO()
    shown.scene().draw(PICTURE_SIZE).save(buffer, "JPEG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    return {"inputs": picture, "parameters": {"prompts": list(shown.prompts), **parameters}}


@contextmanager
def service(load=lambda: builtin.load_head("lite").attach(*builtin.load_base()), **options):
    batcher = Batcher(load, collecting=0.05)
    batcher.start()
    try:
        yield Service(batcher, **options)
    finally:
        batcher.close()


def visit(service, visitor):
    """Run `visitor(client)`, a coroutine, against the routes."""

    async def come():
        transport = httpx.ASGITransport(service.application())
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await visitor(client)

    return asyncio.run(come())


async def until_ready(client):
    for _ in range(PATIENCE * 20):
        if (await client.get("/ready")).status_code == 200:
            return
        await asyncio.sleep(0.05)
    pytest.fail("The server does not get ready.")


def test_each_gets_what_the_handler_says_and_the_bad_ones_their_own_words():
    async def come(client):
        await until_ready(client)
        bad = {**asking(), "inputs": "AAAA"}
        commanding = asking(prompts=["<image>"])  # is refused by the model's own check, in the batch
        return await asyncio.gather(
            *(client.post("/", json=one) for one in (asking(0), bad, asking(1), commanding, asking(2, instances=True)))
        )

    with service() as served:
        answers = visit(served, come)
        assert (served.held, served.accepted, served.answered) == (0, 5, 5)
    assert [answer.status_code for answer in answers] == [200, 400, 200, 400, 200]
    assert "cannot be read as an image" in answers[1].json()["error"]
    assert "special tokens" in answers[3].json()["error"]
    with builtin.load_head("lite").attach(*builtin.load_base()) as adapter:
        asked = [read_request(one) for one in (asking(0), asking(1), asking(2, instances=True))]
        for answer, expected in zip(answers[::2], answer_all(adapter, asked), strict=True):
            for one, wanted in zip(answer.json()["results"], expected["results"], strict=True):
                assert one["found"] == wanted["found"] and one["score"] == pytest.approx(wanted["score"], abs=1e-4)
                assert abs(one["area"] - wanted["area"]) <= 5  # batches differ by numerical noise
    assert len(answers[4].json()["results"][0]["instances"]) >= 1


class Slow:
    """Stands for a model that works until it may end."""

    def __init__(self):
        self.go, self.fails = Event(), None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def segment(self, pictures, prompts, **options):
        assert self.go.wait(PATIENCE)
        raise self.fails


def test_who_finds_no_room_is_told_when_to_come_again():
    slow = Slow()
    slow.fails = InputError("not today")

    async def come(client):
        await until_ready(client)
        waiting = [asyncio.create_task(client.post("/", json=asking())) for _ in range(2)]
        while served.held < 2:
            await asyncio.sleep(0.01)
        refused = await client.post("/", json=asking())
        alive = await client.get("/health")
        slow.go.set()
        return refused, alive, await asyncio.gather(*waiting)

    with service(lambda: slow, most_held=2) as served:
        refused, alive, answers = visit(served, come)
    assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
    assert "as many as there is room for" in refused.json()["error"] and alive.status_code == 200
    assert [(one.status_code, one.json()["error"]) for one in answers] == [(400, "not today")] * 2
    assert served.accepted == served.answered == 2


def test_before_the_model_is_there(monkeypatch):
    go = Event()

    def load():
        assert go.wait(PATIENCE)
        return Slow()

    async def come(client):
        found = [await client.get("/health"), await client.get("/ready"), await client.post("/", json=asking())]
        go.set()
        await until_ready(client)
        return found

    with service(load) as served:
        health, ready, answer = visit(served, come)
    assert health.status_code == 200
    for one in (ready, answer):
        assert one.status_code == 503 and one.headers["Retry-After"] and "not loaded yet" in one.json()["error"]


def test_what_is_too_large_or_too_slow(monkeypatch):
    monkeypatch.setattr(server, "LARGEST_REQUEST", 1000)
    monkeypatch.setattr(server, "SLOWEST_REQUEST", 0.2)
    sent = []

    async def parts(pause):
        for _ in range(20):
            sent.append(1)
            yield b"x" * 100
            await asyncio.sleep(pause)

    async def come(client):
        await until_ready(client)
        large = await client.post("/", content=b"x" * 1001)
        streamed = await client.post("/", content=parts(0))
        slow = await client.post("/", content=parts(60))
        return large, streamed, slow

    with service(Slow) as served:
        large, streamed, slow = visit(served, come)
    assert large.status_code == streamed.status_code == 413 and "1000 bytes" in large.json()["error"]
    assert slow.status_code == 408 and "did not arrive within 0.2 seconds" in slow.json()["error"]
    assert served.held == 0 and len(sent) == 21


def test_what_is_our_fault_is_logged_without_what_was_sent(monkeypatch):
    slow, said = Slow(), []
    slow.go.set()
    slow.fails = LensError("a secret prompt")
    monkeypatch.setattr(server.logger, "error", lambda words, *values: said.append(words % values))

    async def come(client):
        await until_ready(client)
        return await client.post("/", json=asking(prompts="a secret prompt"), headers={"Authorization": "Bearer key"})

    with service(lambda: slow) as served:
        answer = visit(served, come)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "LensError" in said[0] and "segment" in said[0]
    assert "secret" not in said[0] and "Bearer" not in said[0]


def serve_until_told(log: str, port: int) -> None:
    with open(log, "w") as said, redirect_stderr(said):
        code = main(["serve", "--model", "builtin", "--port", str(port), "--most-held", "4"])
    sys.exit(code)


def test_sigterm_loses_nothing_that_was_accepted(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = SERVER.Process(target=serve_until_told, args=(str(tmp_path / "log"), port))
    process.start()
    url, told = f"http://127.0.0.1:{port}", []

    async def ask(client, number):
        body = asking(number, prompts=[next(iter(EXAMPLES[number].prompts))])
        while True:
            try:
                answer = await client.post("/", json=body)
            except httpx.TransportError:  # it listens no more
                return
            told.append(answer.status_code)
            if answer.status_code == 503:
                await asyncio.sleep(0.2)
            if answer.status_code == 200:
                assert [one["prompt"] for one in answer.json()["results"]] == body["parameters"]["prompts"]

    async def come():
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=99)) as client:
            for _ in range(PATIENCE * 10):
                assert process.is_alive()
                try:
                    if (await client.get("/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
            visitors = [asyncio.create_task(ask(client, number)) for number in range(VISITORS)]
            while told.count(200) < 2:
                await asyncio.sleep(0.01)
            os.kill(process.pid, signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*visitors), PATIENCE)

    asyncio.run(come())
    process.join(PATIENCE)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 0 and set(told) == {200, 503}  # more came than there was room for
    count = told.count(200)
    assert f"Answered {count} of {count} requests that were accepted." in log and count >= 2
    assert "Traceback" not in log and "POST" not in log


def test_a_model_that_cannot_be_loaded_and_a_port_that_is_taken(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--model", "builtin", "--port", str(taken.getsockname()[1])]) == 1
    assert "The server cannot be served at --port" in capsys.readouterr().err
    assert main(["serve", "--model", "builtin", "--adapter", str(tmp_path), "--port", "0"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
