"""Someone who uses the page of `lens-adapter app` without a browser, as well or as badly as they like."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import httpx

PATIENCE = 300  # seconds that a visitor waits for an answer
LAYERS = ["Masks", "Keypoints"]
SHOWN = (LAYERS, None)  # with the head's own score threshold
ALL_PROMPTS = -1


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        good: the request was done.
        words: what the page said otherwise; "" where it said nothing.
        data: of the outputs, in order.
        seconds: from asking to the answer.
    """

    good: bool
    words: str = ""
    data: Any = None
    seconds: float = 0.0


class Visitor:
    """One session.

    Args:
        url: of the page.
        address: on this machine, that its requests come from.
    """

    def __init__(self, url: str, address: str | None = None):
        transport = httpx.AsyncHTTPTransport(local_address=address, limits=httpx.Limits(max_connections=None))
        self.client = httpx.AsyncClient(base_url=url.rstrip("/"), transport=transport, timeout=PATIENCE)
        self.session = token_hex(8)
        self.functions: dict[str, int] = {}

    async def __aenter__(self) -> Visitor:
        page = await self.client.get("/config")
        self.functions = {one["api_name"]: one["id"] for one in page.json()["dependencies"]}
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.client.aclose()

    async def upload(self, raw: bytes, name: str = "picture.png") -> dict[str, Any]:
        """A picture, as the page's component holds it then.

        Raises:
            httpx.HTTPStatusError: the page refuses it.
        """
        answer = await self.client.post("/gradio_api/upload", files={"files": (name, raw)})
        answer.raise_for_status()
        return named(answer.json()[0])

    async def ask(self, function: str, *data: Any, event: Any = None, session: str | None = None) -> Reply:
        """Call a handler of the page through its queue, and wait for what comes."""
        start = time.monotonic()
        session = session or self.session
        joined = await self.join(function, *data, event=event, session=session)
        if not joined.good:
            return joined
        try:
            return await self._answer(joined.data, session, start)
        except httpx.RemoteProtocolError as error:  # the page closed the connection
            return Reply(False, str(error), None, time.monotonic() - start)

    async def _answer(self, event: Any, session: str, start: float) -> Reply:
        """Wait for what comes of an event."""
        async with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
            async for line in lines.aiter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed" and message["event_id"] == event:
                    output, seconds = message["output"], time.monotonic() - start
                    if message["success"]:
                        return Reply(True, "", output["data"], seconds)
                    return Reply(False, str(output.get("error") or ""), None, seconds)
        return Reply(False, "the answer ended without a result", None, time.monotonic() - start)

    async def join(self, function: str, *data: Any, event: Any = None, session: str | None = None) -> Reply:
        """Call a handler, and leave it at that; the data are the event's name."""
        body = {"fn_index": self.functions.get(function, 0), "data": data, "event_data": event}
        return await self.post("/gradio_api/queue/join", {**body, "session_hash": session or self.session})

    async def post(self, path: str, body: Any) -> Reply:
        """Send JSON of any kind, or bytes that are none, to any place."""
        answer = await self.client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))
        try:
            said = answer.json()
        except ValueError:
            return Reply(False, answer.text)
        if answer.status_code != 200:
            return Reply(False, str(said.get("detail", said) if isinstance(said, dict) else said))
        return Reply(True, "", said.get("event_id", said) if isinstance(said, dict) else said)

    async def segment(self, picture: Any, lines: str) -> Reply:
        return await self.ask("segment", picture, lines, *SHOWN)

    async def redraw(self, layers: list[str]) -> Reply:
        return await self.ask("redraw", None, layers, ALL_PROMPTS)

    async def question(self, picture: Any, words: str, points: bool = False) -> Reply:
        return await self.ask("ask", picture, words, None, points, *SHOWN)


def named(path: str) -> dict[str, Any]:
    """How a request names a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
