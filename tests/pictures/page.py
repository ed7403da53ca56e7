"""The page as a browser shows it, to be looked at: `PYTHONPATH=.app python -m tests.pictures.page FOLDER [NAME ...]`.

Writes a picture of each situation, on a phone, a tablet and a desktop, in the light and in the dark; of those named
alone, if any are. With `--docs`: `app.png` and `teach.png` of the docs.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from lens_adapter import builtin
from lens_adapter.app.examples import EXAMPLES
from lens_adapter.app.page import build_page, launch
from lens_adapter.app.teaching import Teacher
from lens_adapter.app.visitors import visitors_folder

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SIZES: dict[str, ViewportSize] = {
    "phone": {"width": 390, "height": 844},
    "tablet": {"width": 768, "height": 1024},
    "desktop": {"width": 1280, "height": 800},
}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
OF_DOCS: ViewportSize = {"width": 1366, "height": 768}
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
    opened = page.locator(".lens-canvas img")
    for number, shown in enumerate(EXAMPLES):
        before = opened.get_attribute("src") if number else None
        page.locator(".lens-pictures .thumbnail-item").nth(number).click()
        wait_for_another(page, before)
        clean = opened.get_attribute("src") or ""
        prompt, (target, *_) = next(iter(shown.prompts.items()))
        thing = shown.scene().objects[target]
        click(page, thing.x, thing.y)
        page.get_by_label("What would you ask for").fill(prompt)
        page.get_by_role("button", name="Keep").click()
        expect(page.locator(".lens-kept .caption-label")).to_have_count(number + 1)
        expect(opened).to_have_attribute("src", clean)
    click(page, thing.x, thing.y)
    page.get_by_role("button", name="Fit", exact=True).click()
    page.get_by_label("What to find in the open picture").fill("the red car\nthe pencil\nthe sheep")
    page.get_by_role("button", name="Try").click()
    page.locator(".lens-tried img").wait_for()
    expect(page.locator(".lens-table").last.locator("tbody tr")).to_have_count(3)


def wait_for_another(page: Page, before: str | None) -> None:
    """Until another picture is open, and has come."""
    page.wait_for_function(
        "before => { const i = document.querySelector('.lens-canvas img');"
        " return i && i.src != before && i.naturalWidth > 0 }",
        arg=before,
    )


def click(page: Page, x: float, y: float) -> None:
    """In fractions of the open picture, which is square."""
    picture = page.locator(".lens-canvas img")
    before, box = picture.get_attribute("src"), picture.bounding_box()
    assert box is not None
    side = min(box["width"], box["height"])
    place: Any = {"x": (box["width"] - side) / 2 + x * side, "y": (box["height"] - side) / 2 + y * side}
    picture.click(position=place)
    wait_for_another(page, before)


def app(page: Page) -> None:
    open_example(page, 0)
    segment(page)
    page.locator(".lens-table").wait_for()
    ask(page)


SITUATIONS: dict[str, Callable[[Page], None]] = {
    one.__name__: one for one in (nothing, results, heat, error, no_result, chat, many, teach)
}
DOCS: dict[str, Callable[[Page], None]] = {"app": app, "teach": teach}


@contextmanager
def served() -> Iterator[str]:
    adapter = builtin.load_head().attach(*builtin.load_base())
    with adapter, TemporaryDirectory() as folder, chdir(folder), visitors_folder():
        teacher = Teacher(adapter, "lens-teach", sam="builtin", publishes=True, **builtin.QUESTIONS)
        page = build_page(adapter, teacher)
        launch(page, host="127.0.0.1", prevent_thread_lock=True, quiet=True)
        yield page.local_url
        page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*SITUATIONS, []], help="situations; default: all")
    parser.add_argument("--docs", action="store_true", help="the two pictures of the docs instead")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=60_000)
    with served() as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name in DOCS if args.docs else args.names or SITUATIONS:
            page = browser.new_page(viewport=OF_DOCS)
            page.goto(address)
            page.get_by_role("button", name="Segment").wait_for()
            (DOCS if args.docs else SITUATIONS)[name](page)
            if args.docs:
                shoot(page, folder / f"{name}.png")
                with Image.open(folder / f"{name}.png") as picture:  # a third of the bytes, to the eye the same
                    picture.convert("RGB").quantize(256).save(folder / f"{name}.png", optimize=True)
            else:
                for (device, size), scheme in product(SIZES.items(), SCHEMES):
                    page.set_viewport_size(size)
                    page.emulate_media(color_scheme=scheme)
                    shoot(page, folder / f"{name}-{device}-{scheme}.png")
            page.close()


def shoot(page: Page, file: Path) -> None:
    page.evaluate("scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)
    page.screenshot(path=file, full_page=True)


if __name__ == "__main__":
    main()
