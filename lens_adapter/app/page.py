"""The page itself. Each visitor's picture, prompts and results are their own; the models are shared and take turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from PIL.Image import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.app import looks
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.app.findings import (
    ALL,
    KEYPOINTS,
    LAYERS,
    MASKS,
    MOST_PROMPTS,
    Files,
    PageResult,
    answer,
    find,
    open_picture,
)
from lens_adapter.errors import LensError

HOUR = 3600  # seconds
LARGEST_UPLOAD = "40mb"
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # who asks the models queues up
# Handlers get a picture as it was uploaded ({"path": ...}): what is wrong with it, the package says in its own words.
AS_UPLOADED: dict[str, Any] = {"preprocess": False, "api_visibility": "private"}
HIDDEN: dict[str, Any] = {"api_visibility": "private"}

Upload = dict[str, Any] | None


def said_plainly(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of the package become messages on the page."""

    @wraps(handler)
    def handle(*values: Any) -> Any:
        try:
            return handler(*values)
        except LensError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    return handle


def build_page(adapter: LensAdapter) -> gr.Blocks:
    """The page for an attached adapter; `launch` serves it."""
    pictures = [shown.scene().draw(PICTURE_SIZE) for shown in EXAMPLES]

    @said_plainly
    def segment(upload: Upload, lines: str, layers: list[str]) -> tuple[Any, ...]:
        result = find(adapter, file_of(upload), lines)
        files = Files(result)
        choices = [("All prompts", ALL), *((prompt, k) for k, prompt in enumerate(result.output.prompts))]
        return (
            (result, files),
            result.draw(layers),
            gr.Dropdown(choices, value=ALL, interactive=True),
            looks.table(result),
            gr.DownloadButton(value=files.masks, interactive=True),
            gr.DownloadButton(value=files.rle, interactive=True),
        )

    @said_plainly
    def ask(upload: Upload, question: str, chat: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        said = answer(adapter, file_of(upload), question)
        return [*chat, {"role": "user", "content": question}, {"role": "assistant", "content": said}], ""

    def pick(event: gr.SelectData) -> tuple[Image, str, str]:
        return pictures[event.index], "\n".join(EXAMPLES[event.index].prompts), EXAMPLES[event.index].question

    with gr.Blocks(title=looks.TITLE, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
        text(looks.head(adapter))
        found = gr.State()
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                text(looks.step("Pick or upload a picture"))
                examples = gr.Gallery(
                    pictures,
                    show_label=False,
                    format="png",
                    allow_preview=False,
                    buttons=[],
                    height="auto",
                    container=False,
                    elem_classes="lens-examples",
                )
                picture = gr.Image(
                    show_label=False,
                    format="png",
                    sources=["upload", "clipboard"],
                    buttons=[],
                    elem_classes="lens-picture",
                )
                prompts = gr.Textbox(
                    label="What to find, one prompt per line",
                    placeholder="the dog on the left\nevery red cup",
                    lines=3,
                    max_lines=MOST_PROMPTS,
                )
                button = gr.Button("Segment", variant="primary")
            with gr.Column(scale=5, min_width=320):
                text(looks.step("What the head finds"))
                overlay = gr.Image(
                    show_label=False,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes="lens-result",
                )
                layers = gr.CheckboxGroup(LAYERS, value=[MASKS, KEYPOINTS], label="Layers")
                only = gr.Dropdown([("All prompts", ALL)], value=ALL, label="Show", filterable=False)
                table = text(looks.LEGEND)
                with gr.Row():
                    masks = gr.DownloadButton("Masks (PNG)", interactive=False, min_width=140, size="md")
                    rle = gr.DownloadButton("COCO (JSON)", interactive=False, min_width=140, size="md")
            with gr.Column(scale=3, min_width=280):
                text(looks.step("Chat with the same frozen model"))
                chat = gr.Chatbot(
                    show_label=False,
                    placeholder="Its answers are its own: the head has no part in them.",
                    height=400,
                    buttons=[],
                    elem_classes="lens-chat",
                )
                question = gr.Textbox(
                    label="Question about the picture",
                    placeholder="what is on the left?",
                    submit_btn="Ask",
                    max_lines=3,
                )

        results = [found, overlay, only, table, masks, rle]
        examples.select(pick, None, [picture, prompts, question], **HIDDEN)
        picture.upload(check, picture, None, **AS_UPLOADED).failure(lambda: None, None, picture, **HIDDEN)
        picture.change(forget, None, [*results, chat], queue=False, **HIDDEN)
        button.click(segment, [picture, prompts, layers], results, show_progress_on=overlay, **AS_UPLOADED, **MODEL)
        for control in (layers, only):
            control.input(redraw, [found, layers, only], overlay, show_progress="minimal", **HIDDEN)
        asking = [picture, question, chat]
        question.submit(ask, asking, [chat, question], show_progress_on=chat, **AS_UPLOADED, **MODEL)
    return page


def text(html: str) -> gr.HTML:
    return gr.HTML(html, apply_default_css=False, elem_classes="lens-bare")


@said_plainly
def check(upload: Upload) -> None:
    """Say at once what is wrong with a picture."""
    open_picture(file_of(upload))


def file_of(upload: Upload) -> str | None:
    return None if upload is None else upload["path"]


def redraw(found: tuple[PageResult, Files] | None, layers: list[str], prompt: int) -> Image | None:
    """Other layers of what was found before; no model runs."""
    return None if found is None else found[0].draw(layers, prompt)


def forget() -> tuple[Any, ...]:
    """Results of another picture would mislead."""
    closed = gr.DownloadButton(value=None, interactive=False)
    return None, None, gr.Dropdown([("All prompts", ALL)], value=ALL), looks.LEGEND, closed, closed, []


def launch(page: gr.Blocks, *, host: str, port: int | None = None, share: bool = False, **options: Any) -> None:
    """Serve a page until it is interrupted.

    Args:
        host, port: where; without a port, the first free one from 7860.
        share: also through a public link of gradio's.
        options: any other of `gradio.Blocks.launch`.

    Raises:
        OSError: the port is taken.
    """
    page.queue(default_concurrency_limit=4).launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=looks.THEME,
        css=looks.CSS,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        footer_links=["settings", "gradio"],
        **options,
    )
