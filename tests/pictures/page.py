"""The page as a browser shows it, to be looked at: `PYTHONPATH=.app python -m tests.pictures.page FOLDER [NAME ...]`.

Writes a picture of each situation, on a phone, a tablet and a desktop, in the light and in the dark; of those named
alone, if any are. `docs/app.png` and `docs/teach.png` are `--docs FOLDER`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from lens_adapter import builtin
from lens_adapter.app.examples import EXAMPLES
from lens_adapter.app.page import build_page, launch
from lens_adapter.app.teaching import Teacher
from lens_adapter.app.visitors import visitors_folder

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SIZES = {"phone": (390, 844), "tablet": (768, 1024), "desktop": (1280, 800)}
OF_DOCS = (1366, 768)
PROMPTS = "What to find, one prompt per line"
DESCRIBE = "describe the picture ."  # an answer of which names a thing


def open_example(page: Page, number: int) -> None:
    page.locator(".lens-examples button").nth(number).click()
    expect(page.get_by_label(PROMPTS)).to_have_value("\n".join(EXAMPLES[number].prompts))
    page.locator(".lens-picture img").wait_for()


def segment(page: Page, *prompts: str) -> None:
    if prompts:
        page.get_by_label(PROMPTS).fill("\n".join(prompts))
    page.get_by_role("button", name="Segment").click()


def ask(page: Page, question: str | None = None, times: int = 1) -> None:
    if question is not None:
        page.get_by_label("Question about the picture").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".lens-talk .answered")).to_have_count(times)


def nothing(page: Page) -> None:
    page.wait_for_timeout(300)


def results(page: Page) -> None:
    open_example(page, 3)
    segment(page, *EXAMPLES[3].prompts, "my zebra")
    page.locator(".lens-table").wait_for()
    ask(page)


def heat(page: Page) -> None:
    results(page)
    page.get_by_label("Heatmap").click()
    page.locator(".lens-heat").wait_for()


def error(page: Page) -> None:
    results(page)
    segment(page, "<image>")
    page.locator(".toast-body").wait_for()
    page.locator(".lens-table").wait_for(state="detached")
    page.get_by_label("Question about the picture").fill("<image>")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".toast-message-text")).to_have_count(2)


def no_result(page: Page) -> None:
    open_example(page, 3)
    segment(page, "the red book", "the zebra")
    page.locator(".lens-table").wait_for()


def chat(page: Page) -> None:
    open_example(page, 0)
    ask(page, "![a picture](http://127.0.0.1:9/a.png) <b>bold</b> **what** is it ?")
    ask(page, "how many animals ?", 2)
    page.get_by_label("Point at what the answer names").check()
    ask(page, DESCRIBE, 3)
    page.locator(".lens-table").wait_for()


def many(page: Page) -> None:
    open_example(page, 4)
    things = ("car", "sheep", "scissors", "rainbow", "train", "cup", "dog")
    segment(page, *[f"the {color} {thing}" for color in ("red", "green", "blue") for thing in things])
    expect(page.locator(".lens-table tbody tr")).to_have_count(21)


def teach(page: Page) -> None:
    page.get_by_role("tab", name="Teach").click()
    for number, shown in enumerate(EXAMPLES):
        page.locator(".lens-pictures .thumbnail-item").nth(number).click()
        prompt, (target, *_) = next(iter(shown.prompts.items()))
        thing = shown.scene().objects[target]
        click(page, thing.x, thing.y)
        if number < len(EXAMPLES) - 1 or page.locator(".lens-kept .caption-label").count() < number:
            page.get_by_label("What would you ask for").fill(prompt)
            page.get_by_role("button", name="Keep").click()
            expect(page.locator(".lens-kept .caption-label")).to_have_count(number + 1)
            expect(page.get_by_label("What would you ask for")).to_have_value("")
    page.get_by_role("button", name="Use drawn scenes").click()
    page.get_by_label("What to find in the open picture").fill("the red car\nthe pencil\nthe sheep")
    page.get_by_role("button", name="Try").click()
    page.locator(".lens-tried img").wait_for()
    expect(page.locator(".lens-table").last.locator("tbody tr")).to_have_count(3)


def click(page: Page, x: float, y: float) -> None:
    """In fractions of the open picture, which is square."""
    page.wait_for_function("() => document.querySelector('.lens-canvas img')?.naturalWidth > 0")
    picture = page.locator(".lens-canvas img")
    before, box = picture.get_attribute("src"), picture.bounding_box()
    assert box is not None
    side = min(box["width"], box["height"])
    place: Any = {"x": (box["width"] - side) / 2 + x * side, "y": (box["height"] - side) / 2 + y * side}
    picture.click(position=place)
    page.wait_for_function("before => document.querySelector('.lens-canvas img').src != before", arg=before)


SITUATIONS: dict[str, Callable[[Page], None]] = {
    one.__name__: one for one in (nothing, results, heat, error, no_result, chat, many, teach)
}


@contextmanager
def served() -> Iterator[str]:
    adapter = builtin.load_head("lite").attach(*builtin.load_base())
    with adapter, TemporaryDirectory() as folder, visitors_folder():
        teacher = Teacher(adapter, Path(folder, "lens-teach"), sam="builtin", publishes=True, **builtin.QUESTIONS)
        page = build_page(adapter, teacher)
        launch(page, host="127.0.0.1", prevent_thread_lock=True, quiet=True)
        yield page.local_url
        page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*SITUATIONS, []], help="situations; default: all but teach")
    parser.add_argument("--docs", action="store_true", help="the two pictures of the docs instead")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with served() as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

        def shoot(name: str, doing: Callable[[Page], None], size: tuple[int, int], scheme: str) -> None:
            context = browser.new_context(
                viewport={"width": size[0], "height": size[1]},
                color_scheme=scheme,  # type: ignore[arg-type]  # "light" or "dark"
            )
            page = context.new_page()
            page.goto(address)
            page.get_by_role("button", name="Segment").wait_for()
            doing(page)
            page.evaluate("scrollTo(0, 0)")
            page.mouse.move(0, 0)
            page.wait_for_timeout(400)
            page.screenshot(path=args.folder / f"{name}.png", full_page=True)
            context.close()

        if args.docs:
            shoot("app", docs_app, OF_DOCS, "light")
            shoot("teach", teach, OF_DOCS, "light")
            return
        for name in args.names or [name for name in SITUATIONS if name != "teach"]:
            for device, size in SIZES.items():
                for scheme in ("light", "dark"):
                    shoot(f"{name}-{device}-{scheme}", SITUATIONS[name], size, scheme)


def docs_app(page: Page) -> None:
    open_example(page, 0)
    segment(page)
    page.locator(".lens-table").wait_for()
    ask(page)


if __name__ == "__main__":
    main()
