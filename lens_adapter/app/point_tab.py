"""The page's first tab: a picture, prompts, what the head finds, and a chat with the same frozen model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
from PIL.Image import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.app import looks
from lens_adapter.app.bounds import MOST_TURNS
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.app.findings import (
    ALL,
    KEYPOINTS,
    LAYERS,
    MASKS,
    Files,
    PageResult,
    Turn,
    answer,
    find,
    open_picture,
    point_at,
)
from lens_adapter.app.handling import (
    AS_UPLOADED,
    DRAWS,
    HIDDEN,
    MODEL,
    Upload,
    chosen,
    file_of,
    said_plainly,
    state,
    text,
    then_at_once,
)

STEP = 0.001  # of the slider of thresholds


def point_tab(adapter: LensAdapter) -> None:
    """Lay it out, for an attached adapter, in the page that is being built."""
    pictures = [example.scene().draw(PICTURE_SIZE) for example in EXAMPLES]
    own = min(round(adapter.config.score_threshold, 3), 1 - STEP)

    def of_slider(threshold: Any) -> Any:
        """A score threshold; where the slider was left alone the head's own, which may have more digits."""
        return None if threshold == own else threshold

    @said_plainly
    def segment(upload: Upload, lines: str, layers: Any, threshold: Any) -> tuple[Any, ...]:
        return shown(find(adapter, file_of(upload), lines, of_slider(threshold)), layers)

    @said_plainly
    def ask(
        upload: Upload, question: str, turns: list[Turn], points: Any, layers: Any, threshold: Any
    ) -> tuple[Any, ...]:
        source = file_of(upload)
        turn, result = Turn(question, answer(adapter, source, question)), None
        if points is True:
            turn, result = point_at(adapter, source, turn, of_slider(threshold))
        if result is not None:  # names of earlier answers are not those that are marked in the picture now
            turns = without_marks(turns)
        turns = [*turns, turn][-MOST_TURNS:]
        return turns, looks.conversation(turns), "", *(shown(result, layers) if result else [gr.skip()] * RESULTS)

    @said_plainly
    def judge(
        found: tuple[PageResult, Files] | None, layers: list[str], prompt: int, threshold: float
    ) -> tuple[Any, ...]:
        """What was found before by another threshold; no model runs."""
        score = adapter.config.thresholds(None, of_slider(threshold)).score
        if found is None:
            return (gr.skip(),) * RESULTS
        result = found[0].judged(score)
        unchanged = bool(result.shown()) and result.shown() == found[0].shown()
        return (gr.skip(),) * RESULTS if unchanged else shown(result, layers, prompt)

    @said_plainly
    def pick(event: gr.SelectData) -> tuple[Image, str, str]:
        picture, example = chosen([*zip(pictures, EXAMPLES, strict=True)], event.index)
        return picture, "\n".join(example.prompts), example.question

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
            with gr.Column(elem_classes="lens-asks"):
                prompts = gr.Textbox(
                    label="What to find, one prompt per line",
                    placeholder="the dog on the left\nevery red cup",
                    lines=3,
                    max_lines=LINES,
                )
                button = gr.Button("Segment (Ctrl+Enter)", variant="primary", elem_classes="lens-runs")
        with gr.Column(scale=5, min_width=320):
            text(looks.step("What the head finds"), "lens-seen")
            overlay = gr.Image(
                show_label=False,
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_classes="lens-result",
            )
            table = text("")
            layers = gr.CheckboxGroup(LAYERS, value=[MASKS, KEYPOINTS], label="Layers")
            only = gr.Dropdown([("All prompts", ALL)], value=ALL, label="Show", filterable=False)
            threshold = gr.Slider(
                0,
                1 - STEP,
                value=own,
                step=STEP,
                label="Found from this score on",
            )
            with gr.Row():
                masks = gr.DownloadButton("Masks (PNG)", interactive=False, min_width=140, size="md")
                rle = gr.DownloadButton("COCO (JSON)", interactive=False, min_width=140, size="md")
        with gr.Column(scale=3, min_width=280):
            text(looks.step("Chat with the same frozen model"))
            chat = text(looks.conversation([]))
            question = gr.Textbox(
                label="Question about the picture",
                placeholder="what is on the left?",
                submit_btn="Ask",
                max_lines=3,
                elem_classes="lens-asks",
            )
            points = gr.Checkbox(label="Point at what the answer names")
            clearing = gr.Button("Clear the chat", size="sm")

    results = [found, overlay, only, table, masks, rle]
    talk = [turns, chat]
    examples.select(pick, None, [picture, prompts, question], **HIDDEN)
    checked = picture.upload(check, picture, None, preprocess=False, **DRAWS)
    checked.failure(lambda: None, None, picture, **HIDDEN)
    then_at_once(forget, None, [*results, *talk], picture.change)

    looking = [picture, prompts, layers, threshold]
    segmented = button.click(segment, looking, results, show_progress_on=overlay, **AS_UPLOADED, **MODEL)
    segmented.success(None, None, None, js=looks.SEEN)
    redrawn = [
        control.input(redraw, [found, layers, only], [overlay, table], show_progress="minimal", **DRAWS)
        for control in (layers, only)
    ]
    judged = threshold.change(
        judge,
        [found, layers, only, threshold],
        results,
        trigger_mode="always_last",
        show_progress="minimal",
        show_progress_on=overlay,
        **DRAWS,
    )
    # What was found before would pass for an answer.
    failures = [event.failure for event in (segmented, judged, *redrawn)]
    then_at_once(nothing, None, results, *failures)
    then_at_once(unmark, turns, talk, segmented.success, *failures)

    asking = [picture, question, turns, points, layers, threshold]
    asked = question.submit(ask, asking, [*talk, question, *results], show_progress_on=chat, **AS_UPLOADED, **MODEL)
    then_at_once(looks.conversation, turns, chat, asked.failure)
    then_at_once(lambda: ([], looks.conversation([])), None, talk, clearing.click)


RESULTS = 6  # outputs of `shown`
LINES = 12  # of prompts that are seen at a time


def shown(result: PageResult, layers: Any, prompt: int = ALL) -> tuple[Any, ...]:
    """What there is to see of a result: its state, the picture, the prompts, the table, the files."""
    files = Files(result)
    choices = [("All prompts", ALL), *((record["prompt"], k) for k, record in enumerate(result.records))]
    picture, table = drawn(result, layers, prompt)
    return (
        (result, files),
        picture,
        gr.Dropdown(choices, value=prompt, interactive=True),
        table,
        gr.DownloadButton(value=files.masks, interactive=True),
        gr.DownloadButton(value=files.rle, interactive=True),
    )


def drawn(result: PageResult, layers: Any, prompt: Any) -> tuple[Image, str]:
    """The picture and the table.

    Raises:
        InputError: there is no such prompt.
    """
    layers = [layer for layer in LAYERS if isinstance(layers, list) and layer in layers]
    prompt = ALL if prompt == ALL else chosen(range(len(result.records)), prompt)
    return result.draw(layers, prompt), looks.legend(result, layers, prompt) + looks.table(result)


@said_plainly
def check(upload: Upload) -> None:
    """Say at once what is wrong with a picture."""
    open_picture(file_of(upload))


@said_plainly
def redraw(found: tuple[PageResult, Files] | None, layers: list[str], prompt: int) -> tuple[Image | None, str]:
    """Other layers of what was found before; no model runs."""
    return (None, "") if found is None else drawn(found[0], layers, prompt)


def nothing() -> tuple[Any, ...]:
    """No results."""
    closed = gr.DownloadButton(value=None, interactive=False)
    return None, None, gr.Dropdown([("All prompts", ALL)], value=ALL), "", closed, closed


def forget() -> tuple[Any, ...]:
    """Results of another picture would mislead."""
    return *nothing(), [], looks.conversation([])


def without_marks(turns: list[Turn]) -> list[Turn]:
    """Without marks."""
    return [replace(turn, names=()) for turn in turns]


def unmark(turns: list[Turn]) -> tuple[list[Turn], str]:
    """The chat when what is found is no longer about an answer."""
    return without_marks(turns), looks.conversation(without_marks(turns))
