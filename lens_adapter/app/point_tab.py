"""The page's first tab: a picture, prompts, what the head finds, and a chat with the same frozen model."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL.Image import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.app import looks
from lens_adapter.app.bounds import MOST_PROMPTS, MOST_TURNS
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.app.findings import (
    ALL,
    KEYPOINTS,
    LAYERS,
    MASKS,
    Files,
    PageResult,
    answer,
    find,
    open_picture,
)
from lens_adapter.app.handling import AS_UPLOADED, HIDDEN, MODEL, Upload, chosen, file_of, said_plainly, state, text


def point_tab(adapter: LensAdapter) -> None:
    """Lay it out, for an attached adapter, in the page that is being built."""
    pictures = [shown.scene().draw(PICTURE_SIZE) for shown in EXAMPLES]

    @said_plainly
    def segment(upload: Upload, lines: str, layers: Any) -> tuple[Any, ...]:
        result = find(adapter, file_of(upload), lines)
        files = Files(result)
        choices = [("All prompts", ALL), *((record["prompt"], k) for k, record in enumerate(result.records))]
        return (
            (result, files),
            result.draw([layer for layer in LAYERS if isinstance(layers, list) and layer in layers]),
            gr.Dropdown(choices, value=ALL, interactive=True),
            looks.table(result),
            gr.DownloadButton(value=files.masks, interactive=True),
            gr.DownloadButton(value=files.rle, interactive=True),
        )

    @said_plainly
    def ask(upload: Upload, question: str, turns: list[dict[str, str]]) -> tuple[Any, ...]:
        said = answer(adapter, file_of(upload), question)
        turns = [*turns, {"role": "user", "content": question}, {"role": "assistant", "content": said}]
        turns = turns[-2 * MOST_TURNS :]
        return turns, turns, ""

    @said_plainly
    def pick(event: gr.SelectData) -> tuple[Image, str, str]:
        picture, shown = chosen([*zip(pictures, EXAMPLES, strict=True)], event.index)
        return picture, "\n".join(shown.prompts), shown.question

    # What was said is the server's own word: a chat that a visitor sends could name files in it.
    found, turns = state(), state([])
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
    picture.change(forget, None, [*results, turns, chat], queue=False, **HIDDEN)
    button.click(segment, [picture, prompts, layers], results, show_progress_on=overlay, **AS_UPLOADED, **MODEL)
    for control in (layers, only):
        control.input(redraw, [found, layers, only], overlay, show_progress="minimal", **HIDDEN)
    asking = [picture, question, turns]
    question.submit(ask, asking, [turns, chat, question], show_progress_on=chat, **AS_UPLOADED, **MODEL)


@said_plainly
def check(upload: Upload) -> None:
    """Say at once what is wrong with a picture."""
    open_picture(file_of(upload))


@said_plainly
def redraw(found: tuple[PageResult, Files] | None, layers: list[str], prompt: int) -> Image | None:
    """Other layers of what was found before; no model runs."""
    if found is None:
        return None
    result = found[0]
    return result.draw(layers, ALL if prompt == ALL else chosen(range(len(result.records)), prompt))


def forget() -> tuple[Any, ...]:
    """Results of another picture would mislead."""
    closed = gr.DownloadButton(value=None, interactive=False)
    return None, None, gr.Dropdown([("All prompts", ALL)], value=ALL), looks.LEGEND, closed, closed, [], []
