"""What stands before gradio: no request gets by that is too large, names a file of the server, or floods the queue.

Handlers come too late for that: gradio looks at files, fetches addresses and queues requests before it calls one.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

from lens_adapter.app.bounds import LARGEST_REQUEST, LONGEST_SESSION, MOST_WAITING_EACH, NEW_SESSIONS_EACH
from lens_adapter.app.visitors import uploaded
from lens_adapter.errors import InputError

UPLOADS = "/gradio_api/upload"
REMEMBERED = 10_000  # sessions, and addresses
_MINUTE = 60.0  # seconds

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware.

    Args:
        application: what is behind.
        waiting: how many requests of an address are in the queue.
        used: is told of a session when a request of it joins the queue.
    """

    def __init__(self, application: Application, waiting: Callable[[str], int], used: Callable[[str], None]):
        self.application, self.waiting, self.used = application, waiting, used
        self.sessions = Sessions()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", "")).rstrip("/")
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or path.endswith(UPLOADS):
            await self.application(scope, receive, send)  # uploads are bounded by gradio, and go to its folder
            return
        body = await read_body(receive, LARGEST_REQUEST)
        if len(body) > LARGEST_REQUEST:
            await _refuse(send, 413, f"This request is too long: it may have {LARGEST_REQUEST} bytes. Shorten it.")
            return
        try:
            session = _checked(body)
        except InputError as error:
            await _refuse(send, 400, str(error))
            return
        address = (scope.get("client") or ("",))[0]
        joins = path.endswith("/queue/join") or "/call/" in path  # the queue
        if joins and self.waiting(address) >= MOST_WAITING_EACH:
            await _refuse(send, 429, f"{MOST_WAITING_EACH} requests of yours are waiting already. Try again later.")
        elif joins and not self.sessions.admit(address, session):
            await _refuse(send, 429, f"You opened this page {NEW_SESSIONS_EACH} times within a minute. Wait a little.")
        else:
            if joins and session is not None:
                self.used(session)
            await self.application(scope, _repeated(body, receive), send)


class Sessions:
    """How many new sessions each address begins: gradio remembers 2 000 of all, and forgets the others."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, None] = OrderedDict()  # the one used longest ago first
        self._begun: OrderedDict[str, deque[float]] = OrderedDict()  # by address: when each of the last minute's began

    def admit(self, address: str, session: str | None) -> bool:
        """Whether a request may join; None: it has no session, and gets one of its own."""
        if session is not None and session in self._known:
            self._known.move_to_end(session)
            return True
        now, begun = monotonic(), self._begun.setdefault(address, deque())
        self._begun.move_to_end(address)
        while begun and begun[0] <= now - _MINUTE:
            begun.popleft()
        if len(begun) >= NEW_SESSIONS_EACH:
            return False
        begun.append(now)
        if session is not None:
            self._known[session] = None
        for remembered in (self._known, self._begun):
            if len(remembered) > REMEMBERED:
                remembered.popitem(last=False)
        return True


def _checked(body: bytes) -> str | None:
    """The session of a request, where it has one.

    Raises:
        InputError: something is wrong with the request.
    """
    try:
        found = json.loads(body or b"null")
        _check(found)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError("Expected JSON.") from error
    session = found.get("session_hash") if isinstance(found, dict) else None
    if not isinstance(session, str | None) or len(session or "") > LONGEST_SESSION:
        raise InputError(f"session_hash must be a text of at most {LONGEST_SESSION} letters.")
    return session


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


async def read_body(receive: Receive, most: int) -> bytes:
    """The body of a request; of one that is too large, `most` bytes and one more. It is heard out all the same: many
    clients look at an answer only when they have sent everything."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")[: most + 1 - len(body)]
        more = message.get("more_body", False)  # none when the visitor has gone
    return bytes(body)


async def _refuse(send: Send, status: int, words: str) -> None:
    body = json.dumps({"detail": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
