"""`lens-adapter serve`: masks over HTTP. starlette and uvicorn speak it; what they leave open is here.

POST / takes a request (`lens_adapter.serving.requests`) and answers 200, 400 (it cannot be used), 408 (it came too
slowly), 413 (it is too large), 503 (no room, or no model yet; `Retry-After` says when) or 500 (our fault), each as
JSON, errors as {"error": words}. GET /health says 200 while the process lives, GET /ready when the model is loaded,
else 503.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from transformers.utils import logging

from lens_adapter.adapter import LensAdapter
from lens_adapter.app.gate import read_body
from lens_adapter.errors import InputError
from lens_adapter.serving.batching import Batcher
from lens_adapter.serving.bounds import (
    BATCH_SIZE,
    COLLECTING,
    LARGEST_REQUEST,
    MOST_HELD,
    OPENING,
    RETRY_AFTER,
    SLOWEST_REQUEST,
)
from lens_adapter.serving.requests import Answer, parse_request

logger = logging.get_logger(__name__)


class Service:
    """The routes.

    Args:
        batcher: asks the model.
        most_held: requests that arrive, wait or are worked on; who comes beyond that is sent away with 503.

    Attributes:
        held: how many there are now.
        accepted: how many there was room for so far.
        answered: how many of them were told something, be it that they cannot be used.
    """

    def __init__(self, batcher: Batcher, most_held: int = MOST_HELD):
        self.batcher, self.most_held = batcher, most_held
        self.held = self.accepted = self.answered = 0
        self._opening = anyio.CapacityLimiter(OPENING)

    def application(self) -> Starlette:
        """For any ASGI server."""
        routes = [
            Route("/", self.segment, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.readiness),
        ]
        return Starlette(routes=routes)

    async def health(self, _: Request) -> Response:
        """Whether the process lives."""
        return _json(200, {"status": "alive"})

    async def readiness(self, _: Request) -> Response:
        """Whether the model is loaded."""
        return _json(200, {"status": "ready"}) if self.batcher.ready else _later("The model is not loaded yet.")

    async def segment(self, request: Request) -> Response:
        """One picture's masks."""
        if not self.batcher.ready or self.held >= self.most_held:
            await _read(request, 0)  # so that who sends a picture reads the answer
            full = f"{self.most_held} requests are at work or waiting, as many as there is room for."
            return _later(full if self.batcher.ready else "The model is not loaded yet.")
        self.held += 1
        self.accepted += 1
        try:
            return await self._answer(request)
        finally:
            self.held -= 1
            self.answered += 1

    async def _answer(self, request: Request) -> Response:
        body = await _read(request, LARGEST_REQUEST)
        if body is None:
            return _refusal(408, f"The request did not arrive within {SLOWEST_REQUEST:g} seconds.")
        if len(body) > LARGEST_REQUEST:
            return _refusal(413, f"A request may have {LARGEST_REQUEST} bytes. Scale the picture down.")
        try:
            asked = await anyio.to_thread.run_sync(parse_request, body, limiter=self._opening)
            answer: Answer = await asyncio.wrap_future(self.batcher.submit(asked))
            return _json(200, answer)
        except InputError as error:
            return _refusal(400, str(error))
        except Exception as error:  # ours: the log says where, and nothing of what was sent
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("A request ended with %s:\n%s", type(error).__name__, where)
            return _refusal(500, "This went wrong here and not with you; the log of the server says where.")


def serve(
    load: Callable[[], AbstractContextManager[LensAdapter]],
    *,
    host: str,
    port: int,
    batch_size: int = BATCH_SIZE,
    collecting: float = COLLECTING,
    most_held: int = MOST_HELD,
) -> Service:
    """Answer requests until SIGTERM or Ctrl-C, and then those that were accepted. For the main thread.

    Args:
        load: gives the attached adapter; called while the server already answers `/health`.
        host, port: where.
        batch_size, collecting: as for `Batcher`.
        most_held: as for `Service`.

    Returns:
        What was served, when it has ended by SIGTERM.

    Raises:
        KeyboardInterrupt: it has ended by Ctrl-C.
        Exception: what `load` raised.
    """
    batcher = Batcher(load, lambda: setattr(server, "should_exit", True), batch_size=batch_size, collecting=collecting)
    service = Service(batcher, most_held)
    settings = uvicorn.Config(
        service.application(),
        host=host,
        port=port,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,  # a query may hold what is nobody's business
        proxy_headers=False,
        server_header=False,
    )
    server = uvicorn.Server(settings)
    batcher.start()
    try:
        with _ended_by_sigterm():
            server.run()
    finally:
        batcher.close()
    if batcher.error is not None:
        raise batcher.error
    return service


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what is inside. uvicorn lets it wait until all is answered, and then raises it once more."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    except SystemExit as ended:
        if ended.code != 0:  # uvicorn cannot listen
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


async def _read(request: Request, most: int) -> bytes | None:
    """See `read_body`; None: it did not arrive in time."""
    try:
        async with asyncio.timeout(SLOWEST_REQUEST):
            return await read_body(request.receive, most)
    except TimeoutError:
        return None


def _json(status: int, content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def _refusal(status: int, words: str) -> Response:
    return _json(status, {"error": words})


def _later(words: str) -> Response:
    return _json(503, {"error": f"{words} Try again a little later."}, {"Retry-After": str(RETRY_AFTER)})
