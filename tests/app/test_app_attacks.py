"""The page against those who mean no good: every attack gets words, tells nothing, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from zlib import compress, crc32

import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
httpx = pytest.importorskip("httpx")

from benchmarks import page_load  # noqa: E402
from benchmarks.visitor import LAYERS, SHOWN, Visitor, named  # noqa: E402
from lens_adapter.app import bounds  # noqa: E402
from lens_adapter.app.examples import EXAMPLES  # noqa: E402
from lens_adapter.app.kept import MOST_EXAMPLES  # noqa: E402
from lens_adapter.app.page import build_page, launch  # noqa: E402
from lens_adapter.app.teaching import Teacher  # noqa: E402
from lens_adapter.app.visitors import NOT_UPLOADED, ended_by_signals, visitors_folder  # noqa: E402
from lens_adapter.cli import main  # noqa: E402
from lens_adapter.vlm.images import MOST_PIXELS  # noqa: E402
from lens_adapter.vlm.inputs import LONGEST_TEXT  # noqa: E402
from tests.tiny.processes import PATIENCE, SERVER, run_alone  # noqa: E402

PROMPT = "the donut"


@pytest.fixture(scope="module")
def folder():
    with visitors_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def page(adapter, folder, tmp_path_factory):
    page = build_page(adapter, Teacher(adapter, tmp_path_factory.mktemp("teach") / "kept", sam="builtin"))
    launch(page, host="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield page
    page.close()


@pytest.fixture
def visit(page):
    """Runs what a visitor does."""

    def visiting(doing):
        async def whole():
            async with Visitor(page.local_url) as visitor:
                return await doing(visitor)

        return asyncio.run(whole())

    return visiting


def png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that would take `width * height` bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(bytes(10**6), 9)) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def scene(files):
    return files[0].read_bytes()


def test_a_visitor_gets_what_a_visitor_came_for(visit, scene, folder):
    async def come(visitor):
        picture = await visitor.upload(scene)
        found = await visitor.segment(picture, "\n".join(EXAMPLES[0].prompts))
        drawn = await visitor.redraw(["Heatmap"])
        said = [await visitor.question(picture, EXAMPLES[0].question) for _ in range(2)]
        return picture, found, drawn, said

    picture, found, drawn, said = visit(come)
    assert found.good and drawn.good and all(one.good for one in said)
    chats = [one.data[1] for one in said]
    assert [chat.count('"asked"') for chat in chats] == [1, 2] and EXAMPLES[0].question in chats[0]
    assert found.data[1]["path"] != drawn.data[0]["path"]
    for file in (picture["path"], found.data[1]["path"], found.data[4]["value"]["path"]):
        assert Path(file).is_relative_to(folder)


def test_no_file_of_the_server_is_read_whatever_names_it(visit, scene, folder, files, tmp_path):
    """Neither is it told which of them exist."""
    (folder / "link.png").symlink_to(files[0])
    (folder / "linked").symlink_to(files[0].parent)
    (folder / "circle.png").symlink_to(folder / "circle.png")
    inside = os.path.relpath(files[0], folder)
    paths = [
        str(files[0]),
        str(tmp_path / "nowhere.png"),
        f"{folder}/{inside}",
        f"{folder}/nowhere/../{inside}",
        str(folder / "link.png"),
        str(folder / "linked" / files[0].name),
        str(folder / "circle.png"),
        str(folder / "nowhere.png"),
        str(folder),
        inside,
        f"file://{files[0]}",
        "/etc/passwd",
        "/etc/no-such-file",
        "~/.bashrc",
        "a\0b",
        "x" * 5000,
        "",
        "http://127.0.0.1:9/a.png",
        "http://localhost/a.png",
        7,
        ["a"],
    ]

    async def steal(visitor):
        picture = await visitor.upload(scene)
        replies = []
        for path in paths:
            ways = [named(path), {"path": path}, {"path": path, "url": "/a", "orig_name": "a.png"}]
            for upload in ways if path == paths[0] else ways[:1]:
                replies += [
                    await visitor.ask("check", upload),
                    await visitor.segment(upload, PROMPT),
                    await visitor.question(upload, "what is it?"),
                    await visitor.ask("upload", [upload], None),
                    await visitor.ask("upload", [picture, upload], None),
                    await visitor.ask("redraw", None, [upload], -1),
                    await visitor.ask("redraw", upload, LAYERS, -1),
                    await visitor.ask("choose", None, event={"index": upload, "value": upload}),
                    await visitor.ask("click", None, "Add", event={"index": [1, upload], "value": None}),
                    await visitor.ask("keep", None, upload),
                    await visitor.ask("attempt", None, None, upload),
                    # a chat with a file in it, which the page would show
                    await visitor.ask("ask", picture, "what?", [{"role": "user", "content": upload}], True, *SHOWN),
                ]
                for name in ("upload", "segment", "predict"):
                    body = {"data": [upload, PROMPT, *SHOWN], "fn_index": visitor.functions["segment"]}
                    replies.append(await visitor.post(f"/gradio_api/run/{name}", body))
                    replies.append(await visitor.post(f"/gradio_api/call/{name}", body))
                    replies.append(await visitor.post(f"/gradio_api/call/v2/{name}", {"upload": upload}))
        return replies

    replies = visit(steal)
    assert {reply.words for reply in replies} == {NOT_UPLOADED}
    assert not any(reply.good for reply in replies)


def test_uploads_without_a_path_and_things_that_are_none(visit, scene):
    async def ask(visitor):
        picture = await visitor.upload(scene)
        no_picture = [
            await visitor.segment(upload, PROMPT)
            for upload in (
                {},
                {"path": None},
                {"url": picture["path"]},
                {"url": "http://127.0.0.1:9/a.png"},
                "a.png",
                5,
            )
        ]
        odd = [
            await visitor.segment(picture, {"a": 1}),
            await visitor.segment(picture, None),
            await visitor.question(picture, ["what?"]),
            await visitor.ask("pick", event={"index": -1, "value": None}),
            await visitor.ask("pick", event={"index": 10**9, "value": None}),
            await visitor.ask("pick", event={"index": "a", "value": None}),
            await visitor.ask("choose", None, event={"index": [0], "value": None}),
            await visitor.ask("mark", None, event={"index": 0, "value": None}),
            await visitor.ask("click", None, "Add", event={"index": [1, 1], "value": None}),
            await visitor.ask("attempt", None, None, PROMPT),
            *[await visitor.ask("segment", picture, PROMPT, LAYERS, odd) for odd in (-1, 1, "0", [0])],
        ]
        good = await visitor.ask("segment", picture, PROMPT, {"no": "layers"}, None)
        return no_picture, odd, good

    no_picture, odd, good = visit(ask)
    assert not any(reply.good for reply in no_picture + odd) and good.good
    assert [reply.words for reply in odd] == [
        "Type what to find: one prompt per line.",
        "Type what to find: one prompt per line.",
        "Type a question about the picture.",
        *["What was selected is not here, or not any more. Select it again."] * 5,
        "Open a picture first.",
        "Fit a head first.",
        *[f"score_threshold must be a number in [0, 1); got {got}." for got in ("-1", "1", "&#x27;0&#x27;", "[0]")],
    ]


def test_clicks_beside_the_picture(visit):
    async def click(visitor):
        opened = await visitor.ask("choose", None, event={"index": 0, "value": None})
        wrong = [[-5, 1], [1, 10**9], [1], ["a", 1], [None, 1], {"x": 1}, [1e308, 1]]
        return opened, [
            await visitor.ask("click", None, "Add", event={"index": index, "value": None}) for index in wrong
        ]

    opened, replies = visit(click)
    assert opened.good and {reply.words for reply in replies} == {"Click inside the picture."}


def test_what_goes_over_a_bound_gets_words_and_never_a_model(visit, scene, adapter, monkeypatch):
    asked = []
    monkeypatch.setattr(adapter, "segment", lambda *given, **_: asked.append(given))
    monkeypatch.setattr(type(adapter.base), "answers", lambda *given, **_: asked.append(given))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was run"))
    eps = BytesIO()
    Image.new("RGB", (32, 32)).save(eps, "EPS")

    async def ask(visitor):
        picture = await visitor.upload(scene)
        bombs = [await visitor.upload(bomb(*size)) for size in ((5001, 5000), (9_400, 9_400), (60_000, 60_000))]
        script = await visitor.upload(eps.getvalue())
        many = [await visitor.upload(scene, f"{k}.png") for k in range(bounds.MOST_PICTURES + 1)]
        return {
            "pixels": [
                reply
                for one in bombs
                for reply in (
                    await visitor.ask("check", one),
                    await visitor.segment(one, PROMPT),
                    await visitor.question(one, "what is it?"),
                    await visitor.ask("upload", [one], None),
                )
            ],
            "none of JPEG": [await visitor.segment(script, PROMPT), await visitor.ask("upload", [script], None)],
            f"At most {bounds.MOST_PROMPTS} prompts": [
                await visitor.segment(picture, "\n".join(f"the {k}" for k in range(1000)))
            ],
            "too long": [
                await visitor.segment(picture, "a" * (bounds.LONGEST_PROMPT + 1)),
                await visitor.question(picture, "a" * (bounds.LONGEST_PROMPT + 1)),
                await visitor.segment(picture, "a" * 5_000_000),
                await visitor.question(picture, "a " * 2_500_000),
                await visitor.post("/gradio_api/run/forget", {"data": ["a" * 5_000_000]}),
            ],
            "Expected JSON": [
                await visitor.post("/gradio_api/queue/join", raw) for raw in (b"[" * 90_000, b"\xff", b"a=1", b"{")
            ],
            "at a time": [await visitor.ask("upload", many, None)],
        }

    for words, replies in visit(ask).items():
        for reply in replies:
            assert not reply.good and words in reply.words, (words, reply.words[:200])
    assert asked == []


def test_a_flood_from_one_address_leaves_room_for_others(visit, page, adapter, scene):
    async def flood(visitor):
        async with Visitor(page.local_url, "127.0.0.2") as other:
            picture = await visitor.upload(scene)
            with adapter.base.turn():  # nothing is done meanwhile
                first = asyncio.create_task(visitor.segment(picture, PROMPT))
                await asyncio.sleep(0.3)
                replies = [await visitor.join("segment", picture, PROMPT, *SHOWN) for _ in range(60)]
                body = {"data": [picture, PROMPT, *SHOWN], "fn_index": visitor.functions["segment"]}
                replies += [await visitor.post("/gradio_api/call/segment", body) for _ in range(10)]
                honest = asyncio.create_task(other.segment(await other.upload(scene), PROMPT))
                await asyncio.sleep(0.3)
            return replies, await first, await honest

    replies, first, honest = visit(flood)
    taken = [reply for reply in replies if reply.good]
    assert len(taken) == bounds.MOST_WAITING_EACH and first.good and honest.good
    assert all("are waiting already" in reply.words for reply in replies if not reply.good)


def test_who_leaves_while_waiting_does_not_stop_the_queue(visit, page, adapter, scene):
    async def leave(visitor):
        picture = await visitor.upload(scene)
        async with Visitor(page.local_url, "127.0.0.3") as leaving:
            other = await leaving.upload(scene)
            with adapter.base.turn():  # nothing is done meanwhile
                first = asyncio.create_task(visitor.segment(picture, PROMPT))
                await asyncio.sleep(0.3)
                assert all([(await leaving.join("segment", other, PROMPT, *SHOWN)).good for _ in range(3)])
                page._queue.pending_messages_per_session.pop(leaving.session, None)  # as when a connection ends
            await asyncio.wait_for(first, 60)
        return await asyncio.wait_for(visitor.segment(picture, PROMPT), 60)

    assert visit(leave).good and not page._queue.stopped


def test_new_sessions_are_bounded_and_who_waits_is_not_forgotten(visit, page, scene):
    sessions = page._queue.pending_messages_per_session

    async def multiply(visitor):
        picture = await visitor.upload(scene)
        async with Visitor(page.local_url, "127.0.0.5") as hostile, Visitor(page.local_url, "127.0.0.6") as other:
            theirs = await hostile.upload(scene)
            replies = [
                await hostile.ask("check", theirs, session=f"new{k}") for k in range(bounds.NEW_SESSIONS_EACH + 5)
            ]
            known = await hostile.ask("check", theirs, session="new0")
            long = await other.ask("check", await other.upload(scene), session="x" * (bounds.LONGEST_SESSION + 1))
        assert (await visitor.ask("check", picture)).good
        first = next(iter(sessions))
        again = await visitor.ask("check", picture, session=first)
        return replies, known, long, first, again

    replies, known, long, first, again = visit(multiply)
    assert [reply.good for reply in replies] == [True] * bounds.NEW_SESSIONS_EACH + [False] * 5
    assert "within a minute" in replies[-1].words and known.good
    assert not long.good and "session_hash must be" in long.words
    assert again.good and [*sessions][-1] == first


def test_a_state_is_small_and_goes_after_a_while(visit, page, monkeypatch):
    """Of a picture of 3 megapixels and as many prompts as there may be: masks alone would be 63 MB."""
    colors = ("red", "blue", "green", "black", "white", "pink", "grey")
    lines = "\n".join(f"the {color} {thing}" for color in colors for thing in ("car", "cup", "shirt"))
    assert lines.count("\n") + 1 == bounds.MOST_PROMPTS
    large = png(Image.new("RGB", (2000, 1500), "navy"))

    async def come(visitor):
        picture = await visitor.upload(large)
        found = await visitor.segment(picture, lines)
        opened = await visitor.ask("upload", [picture], None)
        states = page.app.state_holder.session_data[visitor.session].state_data
        size = len(pickle.dumps([value for value in states.values() if not callable(value)], protocol=5))
        for block in states:
            assert page.blocks[block].time_to_live == bounds.EXPIRY
        later = datetime.now() + timedelta(seconds=bounds.EXPIRY + 1)
        clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda: later))
        monkeypatch.setattr("gradio.state_holder.datetime", clock)
        page.app.state_holder.delete_all_expired_state()
        monkeypatch.undo()
        return found, opened, size, dict(states)

    found, opened, size, left = visit(come)
    assert found.good and opened.good
    assert 1000 < size < 5_000_000
    assert left == {}


def test_pictures_that_have_gone_are_asked_for_again(visit, scene):
    async def come(visitor):
        picture = await visitor.upload(scene, "gone.png")
        found = await visitor.segment(picture, PROMPT)
        Path(picture["path"]).unlink()
        return found, await visitor.redraw(["Heatmap"]), await visitor.segment(picture, PROMPT)

    found, drawn, again = visit(come)
    assert found.good and drawn.words == again.words == NOT_UPLOADED


def test_honest_visitors_among_hostile_ones_lose_nothing(page):
    """A short look at what `benchmarks.page_load` does for two minutes."""
    ours = (page_load.steal, page_load.script, page_load.list_much, page_load.chatter, page_load.smuggle)

    async def come():
        diary = page_load.Diary()
        async with AsyncExitStack() as stack:
            visitors = [
                await stack.enter_async_context(Visitor(page.local_url, f"127.0.3.{k + 1}"))
                for k in range(2 + len(ours))
            ]
            hostile = [
                asyncio.create_task(page_load.trouble(visitor, diary, doing))
                for visitor, doing in zip(visitors[2:], ours, strict=True)
            ]
            honest = [
                asyncio.create_task(page_load.come(visitor, diary, k, (0.1, 0.2)))
                for k, visitor in enumerate(visitors[:2])
            ]
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and (len(diary.answers) < len(ours) or len(diary.seconds) < 3):
                assert not any(task.done() for task in hostile + honest)
                await asyncio.sleep(0.1)
            for task in hostile + honest:
                task.cancel()
            await asyncio.gather(*hostile, *honest, return_exceptions=True)
        return diary

    diary = asyncio.run(come())
    assert diary.lost == diary.leaks == []
    assert set(diary.seconds) == {"segment", "redraw", "ask"}
    assert len(diary.answers) == len(ours)
    assert all(set(answers) == {"words"} for answers in diary.answers.values())


def test_the_security_page_names_the_bounds():
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    for words in (
        f"{MOST_PIXELS / 1e6:.0f} megapixels (`MOST_PIXELS`",
        f"{LONGEST_TEXT:,} letters\n(`lens_adapter.vlm.inputs.LONGEST_TEXT`)".replace(",", " "),
        f"{bounds.MOST_PIXELS / 1e6:.0f} megapixels, {bounds.LARGEST_UPLOAD.removesuffix('mb')} MB as a file",
        f"{bounds.MOST_PROMPTS}, of {bounds.LONGEST_PROMPT} letters each",
        f"{bounds.MOST_TOKENS} tokens; the chat shows the last {bounds.MOST_TURNS}",
        f"{bounds.LARGEST_REQUEST:,} bytes".replace(",", " "),
        f"{bounds.MOST_WAITING}, and {bounds.MOST_WAITING_EACH} from one address",
        f"{bounds.NEW_SESSIONS_EACH} from one address within a minute",
        f"{bounds.MOST_SESSIONS:,}".replace(",", " ") + ", some megabytes",
        f"go after {bounds.EXPIRY // 3600} hours",
        f"{bounds.MOST_PICTURES} pictures open, {bounds.MOST_CLICKS} clicks and {bounds.LONGEST_NAME} letters per",
        f"{MOST_EXAMPLES} examples in its folder",
    ):
        assert words in page, words


def serve_until_killed(folder: str, port: int) -> None:
    os.chdir(folder)
    os.environ |= {"TMPDIR": folder}
    tempfile.tempdir = None
    sys.exit(main(["app", "--port", str(port), "--teach", f"{folder}/taught"]))


def test_what_visitors_left_goes_with_the_page(tmp_path, scene):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def come():
        for _ in range(PATIENCE * 5):
            try:
                async with Visitor(f"http://127.0.0.1:{port}") as visitor:
                    picture = await visitor.upload(scene)
                    found = await visitor.segment(picture, f"{PROMPT}\nthe red car")
                    for _ in range(4):  # whose answers nobody waits for
                        assert (await visitor.join("segment", picture, PROMPT, *SHOWN)).good
                    return found
            except httpx.ConnectError:
                await asyncio.sleep(0.2)
                assert server.is_alive()

    server = SERVER.Process(target=serve_until_killed, args=(str(tmp_path), port))
    server.start()
    assert asyncio.run(come()).good
    (folder,) = tmp_path.glob("lens-adapter-page-*")
    assert list(folder.rglob("masks.zip")) and list(folder.rglob("picture.png"))
    os.kill(server.pid, signal.SIGTERM)
    server.join(PATIENCE)
    assert server.exitcode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("lens-adapter")] == []


def signalled(folder: str, number: int) -> None:
    tempfile.tempdir = folder
    with ended_by_signals(), visitors_folder() as own:
        (own / "a.png").touch()
        os.kill(os.getpid(), number)
        time.sleep(PATIENCE)


def test_ctrl_c_takes_the_folder_along(tmp_path):
    assert run_alone(signalled, str(tmp_path), signal.SIGINT) == 128 + signal.SIGINT
    assert list(tmp_path.iterdir()) == []
