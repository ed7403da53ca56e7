"""The page in a real browser, as a visitor meets it."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from zipfile import ZipFile

import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium in the PATH (Debian: apt-get install chromium)", allow_module_level=True)

from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE  # noqa: E402
from lens_adapter.app.findings import answer  # noqa: E402
from lens_adapter.app.page import build_page, launch  # noqa: E402
from lens_adapter.app.teaching import Teacher  # noqa: E402
from lens_adapter.app.visitors import visitors_folder  # noqa: E402
from lens_adapter.data.folder import read_folder  # noqa: E402
from lens_adapter.evaluation import overlap  # noqa: E402
from tests.tiny.sam import noise_image  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
PATIENCE = 120_000  # milliseconds: a machine that is busy with other work is slow, not wrong
playwright.expect.set_options(timeout=PATIENCE)
PROMPTS = "What to find, one prompt per line"


@pytest.fixture(scope="module")
def calls(adapter):
    """How often the models were asked to segment."""
    counted = []
    segment = adapter.segment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "segment", lambda *given, **more: counted.append(given) or segment(*given, **more))
        yield counted


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Where the page keeps what is taught."""
    return tmp_path_factory.mktemp("teach") / "kept"


@pytest.fixture(scope="module")
def address(adapter, calls, taught):
    with visitors_folder():
        page = build_page(adapter, Teacher(adapter, taught, sam="builtin", publishes=True))
        launch(page, host="127.0.0.1", prevent_thread_lock=True, quiet=True)
        yield page.local_url
        page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page in a browser of one's own; at the end nothing may have been asked from elsewhere, or broken."""

    @contextmanager
    def visiting(**options):
        context = browser.new_context(**{"viewport": LAPTOP, **options})
        context.set_default_timeout(PATIENCE)
        asked, broken = [], []
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Segment").wait_for()
        yield page
        context.close()
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert broken == []

    return visiting


def pick(page, number: int) -> None:
    page.locator(".lens-examples button").nth(number).click()
    playwright.expect(page.get_by_label(PROMPTS)).to_have_value("\n".join(EXAMPLES[number].prompts))
    page.locator(".lens-picture img").wait_for()


def segment(page) -> None:
    page.get_by_role("button", name="Segment").click()


def rows(page) -> list[str]:
    page.locator(".lens-table tbody tr").first.wait_for()
    return page.locator(".lens-table tbody tr .prompt").all_inner_texts()


def overlay(page) -> str:
    return page.locator(".lens-result img").get_attribute("src")


def natural_size(page) -> list[int]:
    return page.locator(".lens-result img").evaluate("i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])")


def message(page) -> str:
    """What the page complains about; closes it."""
    page.locator(".toast-body").wait_for()
    said = page.locator(".toast-body").inner_text()
    page.locator(".toast-close").evaluate_all("all => all.forEach(one => one.click())")  # or it went by itself
    page.locator(".toast-body").wait_for(state="detached")
    return said


def test_from_an_example_to_files(visit, calls, adapter, files, tmp_path):
    with visit(accept_downloads=True) as page:
        pick(page, 3)
        segment(page)
        assert rows(page) == list(EXAMPLES[3].prompts)
        assert page.locator(".lens-table .absent .prompt").all_inner_texts() == ["the red book"]
        wait_in_sight(page, ".lens-table tbody tr")
        assert page.locator(".lens-heat").count() == 0  # where there is no heat
        boxes = [page.locator(f".lens-table .{row} .swatch").first.bounding_box() for row in ("present", "absent")]
        assert boxes[0]["height"] > 8 and boxes[1]["height"] < 4  # a line is no box that waits for a tick
        assert natural_size(page) == [PICTURE_SIZE, PICTURE_SIZE]
        check_contrast(page)

        asked, before = len(calls), overlay(page)
        for layer in ("Heatmap", "Masks", "Keypoints"):
            page.get_by_label(layer).click()
            page.wait_for_function("before => document.querySelector('.lens-result img').src != before", arg=before)
            before = overlay(page)
        page.get_by_label("Show", exact=True).click()
        page.get_by_role("option", name="the book left of the green book").click()
        page.wait_for_function("before => document.querySelector('.lens-result img').src != before", arg=before)
        assert page.locator(".lens-heat").count() == 1
        number = page.get_by_label("number input for Found from this score on")
        for threshold, absent in (("0.999", 3), ("0", 0), ("0.063", 1)):
            number.fill(threshold)
            playwright.expect(page.locator(".lens-table .absent")).to_have_count(absent)
        assert len(calls) == asked  # no model ran

        for button, name in (("Masks (PNG)", "masks.zip"), ("COCO (JSON)", "masks.json")):
            with page.expect_download() as download:
                page.get_by_role("button", name=button).click()
            assert download.value.suggested_filename == name
            download.value.save_as(tmp_path / name)
        with ZipFile(tmp_path / "masks.zip") as archive:
            assert len(archive.namelist()) == 3
        records = json.loads((tmp_path / "masks.json").read_text())
        assert [record["found"] for record in records] == [True, True, False]

        page.get_by_role("button", name="Ask", exact=True).click()
        playwright.expect(page.locator(".answered")).to_have_text(answer(adapter, files[3], EXAMPLES[3].question))
        question = page.get_by_label("Question about the picture")
        question.fill("is there a red book ?")
        question.press("Enter")
        playwright.expect(page.locator(".answered")).to_have_count(2)
        assert page.locator(".answered").last.inner_text() == answer(adapter, files[3], "is there a red book ?")

        pick(page, 0)  # what was found in another picture goes
        page.locator(".lens-table").wait_for(state="detached")
        playwright.expect(page.get_by_role("button", name="Masks (PNG)")).to_be_disabled()
        assert page.locator(".lens-result img").count() == page.locator(".answered").count() == 0


def wait_in_sight(page, selector: str) -> None:
    """Until all of these are within the window, and not beyond its lower edge."""
    page.wait_for_function(
        """selector => [...document.querySelectorAll(selector)].every(one => {
            const place = one.getBoundingClientRect();
            return place.top >= 0 && place.bottom <= innerHeight;
        })""",
        arg=selector,
    )


def test_after_an_error_nothing_old_passes_for_an_answer(visit):
    with visit() as page:
        pick(page, 3)
        segment(page)
        assert rows(page)
        page.get_by_role("button", name="Ask", exact=True).click()
        playwright.expect(page.locator(".answered")).to_have_count(1)
        for ask in (page.get_by_label(PROMPTS), page.get_by_label("Question about the picture")):
            ask.fill("<image>")
            ask.press("Control+Enter")
            assert "special" in message(page)
        page.locator(".lens-table").wait_for(state="detached")
        page.locator(".lens-result img").wait_for(state="detached")
        for button in ("Masks (PNG)", "COCO (JSON)"):
            playwright.expect(page.get_by_role("button", name=button)).to_be_disabled()
        playwright.expect(page.locator(".wrap .error:visible")).to_have_count(0)
        assert page.locator(".answered").is_visible() and page.locator(".answered").count() == 1  # the conversation
        assert page.get_by_label("Question about the picture").input_value() == "<image>"  # to be mended


MARKUP = "![a](http://127.0.0.1:9/a.png) <img src=http://127.0.0.1:9/b.png> **b** {{value}} ${value} @children"


def test_what_a_visitor_writes_is_literal_wherever_it_is_shown(visit):
    """The fixture sees to it that no other host is asked."""
    with visit() as page:
        pick(page, 0)
        page.get_by_label(PROMPTS).fill(MARKUP)
        page.get_by_label(PROMPTS).press("Control+Enter")
        assert rows(page) == [MARKUP]
        page.get_by_label("Show", exact=True).click()
        playwright.expect(page.get_by_role("option").last).to_contain_text(MARKUP)
        page.keyboard.press("Escape")
        page.get_by_label("Question about the picture").fill(MARKUP)
        page.get_by_role("button", name="Ask", exact=True).click()
        playwright.expect(page.locator(".asked")).to_have_text(MARKUP)
        page.get_by_label("Question about the picture").fill(MARKUP * 6)
        page.get_by_role("button", name="Ask", exact=True).click()
        assert MARKUP[:39] in message(page)
        assert page.locator(".lens-talk img, .lens-table img, .lens-talk strong").count() == 0


def test_an_answer_points(visit):
    with visit() as page:
        pick(page, 0)
        page.get_by_label("Point at what the answer names").check()
        for k, (question, note) in enumerate((("how many animals ?", 1), ("what is at x1 y2 ?", 1))):
            page.get_by_label("Question about the picture").fill(question)
            page.get_by_role("button", name="Ask", exact=True).click()
            playwright.expect(page.locator(".answered")).to_have_count(k + 1)
            assert page.locator(".lens-talk .lens-note").count() == note
        assert rows(page) == ["dog"] == page.locator(".lens-talk mark").all_inner_texts()
        segment(page)
        playwright.expect(page.locator(".lens-table tbody tr")).to_have_count(3)
        playwright.expect(page.locator(".lens-talk mark")).to_have_count(0)  # another picture of other things
        page.get_by_role("button", name="Clear the chat").click()
        playwright.expect(page.locator(".answered")).to_have_count(0)


def test_what_is_wrong_is_said(visit, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    with visit() as page:
        segment(page)
        assert "Pick an example or upload a picture first." in message(page)
        page.locator(".lens-picture input[type=file]").set_input_files(tmp_path / "broken.png")
        said = message(page)
        assert "broken.png" in said and "cannot be read" in said
        assert "Traceback" not in said and "/tmp" not in said
        page.locator(".lens-picture img").wait_for(state="detached")
        pick(page, 0)
        for text, complaint in (
            ("  \n", "one prompt per line"),
            ("red " * 600, "too long"),
            ("red " * 30_000, "too long"),
            ("<image>", "special"),
        ):
            page.get_by_label(PROMPTS).fill(text)
            segment(page)
            assert complaint in message(page)
        page.get_by_label(PROMPTS).fill("the donut")  # and it still works
        segment(page)
        assert rows(page) == ["the donut"]


@pytest.mark.parametrize("size", [(768, 1024), (390, 844)])
def test_results_are_in_sight_on_small_screens(visit, size):
    with visit(viewport={"width": size[0], "height": size[1]}) as page:
        pick(page, 0)
        segment(page)
        assert len(rows(page)) == 3
        wait_in_sight(page, ".lens-table tbody tr")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_two_visitors_at_once_get_their_own(visit, adapter):
    with visit() as one, visit() as other:
        pick(one, 1)
        pick(other, 2)
        with adapter.base.turn():  # neither is done before both have asked
            segment(one)
            segment(other)
        assert rows(one) == list(EXAMPLES[1].prompts)
        assert rows(other) == list(EXAMPLES[2].prompts)
        before, others = overlay(one), overlay(other)
        one.get_by_label("Heatmap").click()
        one.wait_for_function("before => document.querySelector('.lens-result img').src != before", arg=before)
        assert overlay(other) == others != overlay(one)


def test_on_a_phone_in_the_dark(visit, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: 640 x 400 is shown as 400 x 640
    noise_image(400, 640).save(tmp_path / "photo.jpg", exif=exif)
    with visit(viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True) as page:
        page.locator(".lens-picture input[type=file]").set_input_files(tmp_path / "photo.jpg")
        page.locator(".lens-picture img").wait_for()
        page.get_by_label(PROMPTS).fill("the red car\na very long prompt about " + "everything" * 8)
        segment(page)
        assert len(rows(page)) == 2
        assert natural_size(page) == [400, 640]
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        check_contrast(page)


def open_to_teach(page, number: int) -> None:
    """Open a picture that is not open yet."""
    before = page.locator(".lens-canvas img").get_attribute("src") if page.locator(".lens-canvas img").count() else ""
    page.locator(".lens-pictures .thumbnail-item").nth(number).click()
    page.wait_for_function(
        "before => ![before, ''].includes(document.querySelector('.lens-canvas img')?.src ?? '')", arg=before
    )


def click_at(page, x: float, y: float) -> None:
    """Click the open picture, which is square, at a place in fractions of it, and wait for the mask."""
    picture = page.locator(".lens-canvas img")
    # Of a picture that is still on its way gradio takes no click: it has no size to count in.
    page.wait_for_function("() => document.querySelector('.lens-canvas img').naturalWidth > 0")
    before, box = picture.get_attribute("src"), picture.bounding_box()
    side = min(box["width"], box["height"])
    place = {"x": (box["width"] - side) / 2 + x * side, "y": (box["height"] - side) / 2 + y * side}
    picture.click(position=place)
    page.wait_for_function("before => document.querySelector('.lens-canvas img').src != before", arg=before)


def test_teach_by_clicking(visit, taught, tmp_path):
    with visit(accept_downloads=True) as page:
        page.get_by_role("tab", name="Teach").click()
        page.get_by_role("button", name="Fit", exact=True).click()
        playwright.expect(page.locator(".lens-refused")).to_contain_text("at least 4 pictures")
        page.get_by_role("button", name="Keep").click()
        assert "Open a picture first" in message(page)

        clicked = 0
        for number, shown in enumerate(EXAMPLES):
            open_to_teach(page, number)
            clean = page.locator(".lens-canvas img").get_attribute("src")
            things = shown.scene().objects
            for prompt, targets in list(shown.prompts.items())[: 1 if number else 2]:
                for target in targets:
                    click_at(page, things[target].x, things[target].y)
                page.get_by_label("What would you ask for").fill(prompt)
                page.get_by_role("button", name="Keep").click()
                clicked += 1
                playwright.expect(page.locator(".lens-kept .caption-label")).to_have_count(clicked)
                # The strip may come before the rest of the answer: a click now would count for what was kept.
                playwright.expect(page.locator(".lens-canvas img")).to_have_attribute("src", clean)
                playwright.expect(page.get_by_label("What would you ask for")).to_have_value("")
        records = read_folder(taught)
        assert [record.prompts[0] for record in records[:2]] == list(EXAMPLES[0].prompts)[:2]
        for record in records[:2]:
            mask = EXAMPLES[0].scene().masks(PICTURE_SIZE)[list(EXAMPLES[0].prompts[record.prompts[0]])].any(0)
            assert overlap(record.load()[0].mask, mask).iou > 0.6

        page.locator(".lens-kept button").first.click()  # the newest
        page.get_by_role("button", name="Remove the selected one").click()
        playwright.expect(page.locator(".lens-kept .caption-label")).to_have_count(clicked - 1)
        assert len(read_folder(taught)) == clicked - 1

        page.get_by_role("button", name="Use drawn scenes").click()
        playwright.expect(page.locator(".lens-table").last).to_contain_text("On pictures it had not seen")
        page.get_by_label("What to find in the open picture").fill("the red car\nthe donut")
        page.get_by_role("button", name="Try").click()
        page.locator(".lens-tried img").wait_for()
        playwright.expect(page.locator(".lens-table").last.locator("tbody tr")).to_have_count(2)
        page.get_by_label("What to find in the open picture").fill("<image>")
        page.get_by_label("What to find in the open picture").press("Control+Enter")
        assert "special" in message(page)
        page.locator(".lens-tried img").wait_for(state="detached")  # no old result passes for one
        playwright.expect(page.locator(".lens-table").last).to_contain_text("On pictures it had not seen")
        playwright.expect(page.locator(".wrap .error:visible")).to_have_count(0)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the head").click()
        download.value.save_as(tmp_path / "head.zip")
        with ZipFile(tmp_path / "head.zip") as archive:
            assert "lens-readout/model.safetensors" in archive.namelist()
        page.get_by_role("button", name="Push it to the Hub").click()
        page.get_by_role("button", name="Push", exact=True).click()
        assert "you/name" in message(page)
    with visit(viewport=PHONE, has_touch=True, is_mobile=True) as page:  # opened again: what was kept is there
        page.get_by_role("tab", name="Teach").click()
        playwright.expect(page.locator(".lens-kept .caption-label")).to_have_count(clicked - 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_clicks_are_taken_back_and_pictures_come_along(visit, tmp_path):
    for seed in (0, 1):
        noise_image(300, 400, seed).save(tmp_path / f"mine-{seed}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    with visit() as page:
        page.get_by_role("tab", name="Teach").click()
        open_to_teach(page, 0)
        clean = page.locator(".lens-canvas img").get_attribute("src")
        click_at(page, 0.5, 0.5)
        page.get_by_label("Remove", exact=True).click()
        click_at(page, 0.2, 0.2)
        for _ in range(2):
            before = page.locator(".lens-canvas img").get_attribute("src")
            page.get_by_role("button", name="Undo").click()
            page.wait_for_function("before => document.querySelector('.lens-canvas img').src != before", arg=before)
        assert page.locator(".lens-canvas img").get_attribute("src") == clean  # named by its content
        files = page.locator("input[type=file][multiple]")
        files.set_input_files([tmp_path / "broken.png"])
        said = message(page)
        assert "broken.png" in said and "cannot be read" in said and "/tmp" not in said
        files.set_input_files([tmp_path / "mine-0.png", tmp_path / "mine-1.png"])
        playwright.expect(page.locator(".lens-pictures .thumbnail-item")).to_have_count(len(EXAMPLES) + 2)
        page.wait_for_function("before => document.querySelector('.lens-canvas img').src != before", arg=clean)


def check_contrast(page) -> None:
    for words in (".lens-head p", ".lens-head .quiet", ".lens-step", ".lens-table td", ".lens-note"):
        assert contrast(page, words) >= 4.5, words  # WCAG AA


def contrast(page, selector: str) -> float:
    """WCAG contrast of a text's color and that of the page behind it."""
    colors = page.locator(selector).first.evaluate(
        """e => [getComputedStyle(e).color,
                 getComputedStyle(document.body).backgroundColor]"""
    )
    dark, light = sorted(luminance([int(v) for v in c[c.index("(") + 1 : -1].split(",")[:3]]) for c in colors)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb: list[int]) -> float:
    linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
