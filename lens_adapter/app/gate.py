"""What stands before gradio: no request gets by that is too large, names a file of the server, or floods the queue.

Handlers come too late for that: gradio looks at files, fetches addresses and queues requests before it calls one.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lens_adapter.app.bounds import LARGEST_REQUEST, MOST_WAITING_EACH
from lens_adapter.app.visitors import uploaded
from lens_adapter.errors import InputError

UPLOADS = "/gradio_api/upload"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware.

    Args:
        application: what is behind.
        waiting: how many requests of an address are in the queue.
    """

    def __init__(self, application: Application, waiting: Callable[[str], int]):
        self.application, self.waiting = application, waiting

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", "")).rstrip("/")
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or path.endswith(UPLOADS):
            await self.application(scope, receive, send)  # uploads are bounded by gradio, and go to its folder
            return
        body = await _body(receive)
        joins = path.endswith("/queue/join") or "/call/" in path  # the queue
        address = (scope.get("client") or ("",))[0]
        if len(body) > LARGEST_REQUEST:
            await _refuse(send, 413, f"This request is too long: it may have {LARGEST_REQUEST} bytes. Shorten it.")
        elif joins and self.waiting(address) >= MOST_WAITING_EACH:
            await _refuse(send, 429, f"{MOST_WAITING_EACH} requests of yours are waiting already. Try again later.")
        elif complaint := _complaint(body):
            await _refuse(send, 400, complaint)
        else:
            await self.application(scope, _repeated(body, receive), send)


def _complaint(body: bytes) -> str | None:
    """What is wrong with a request."""
    try:
        _check(json.loads(body or b"null"))
    except InputError as error:
        return str(error)
    except (ValueError, RecursionError):
        return "Expected JSON."
    return None


def _repeated(body: bytes, receive: Receive) -> Receive:
    """Receives a body once more, and then what comes."""
    sent: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return sent.pop() if sent else await receive()

    return again


def _check(value: Any) -> None:
    """Refuse data about a file that is no upload, wherever it stands.

    Raises:
        InputError: see `uploaded`.
    """
    if isinstance(value, dict):
        if value.get("path") is not None:
            uploaded(value["path"])
        for part in value.values():
            _check(part)
    elif isinstance(value, list):
        for part in value:
            _check(part)


async def _body(receive: Receive) -> bytes:
    """The body of a request; of one that is too large, the beginning: a browser shows words when it was heard out."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")[: LARGEST_REQUEST + 1 - len(body)]
        more = message.get("more_body", False)  # none when the visitor has gone
    return bytes(body)


async def _refuse(send: Send, status: int, words: str) -> None:
    body = json.dumps({"detail": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
