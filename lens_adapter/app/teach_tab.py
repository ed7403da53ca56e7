"""The page's second tab: click things, name them, fit a head, try it, take it along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL.Image import Image

from lens_adapter.app import looks
from lens_adapter.app.bounds import MOST_PICTURES
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.app.findings import KEYPOINTS, MASKS, Source
from lens_adapter.app.handling import (
    AS_UPLOADED,
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
from lens_adapter.app.kept import THUMBNAIL, Kept
from lens_adapter.app.loopback import is_asked_here
from lens_adapter.app.point_tab import LINES
from lens_adapter.app.teaching import Click, Drawing, Taught, Teacher, fitted
from lens_adapter.errors import FitError, InputError

ADD, REMOVE = "Add", "Remove"  # what a click does
SHOWN_KEPT = 60  # the newest ones


def teach_tab(teacher: Teacher) -> None:
    """Lay it out in the page that is being built."""
    scenes = [shown.scene().draw(PICTURE_SIZE) for shown in EXAMPLES]

    @said_plainly
    def strip() -> tuple[Any, ...]:
        """What is kept, newest first: for the state, the gallery, the line above it, and the button below."""
        everything = teacher.folder.all()
        newest = everything[::-1][:SHOWN_KEPT]
        shown = []
        for kept in newest:
            try:
                shown.append((kept, (teacher.folder.thumbnail(kept), kept.prompt)))
            except InputError:  # its files are damaged: it is not fitted on, either
                continue
        gallery = gr.Gallery([pair for _, pair in shown], selected_index=None, visible=bool(shown))
        words = looks.kept(everything, teacher.folder.path, len(shown))
        return [kept for kept, _ in shown], gallery, words, None, gr.Button(interactive=False)

    @said_plainly
    def upload(files: list[Upload], uploads: dict[Path, Image]) -> tuple[Any, ...]:
        new = {file: None for upload in files if (file := file_of(upload)) not in uploads}
        if len(uploads) + len(new) > MOST_PICTURES:
            raise InputError(f"At most {MOST_PICTURES} pictures of your own at a time; these would be more.")
        small = {file: fitted(Drawing.of(file).small, THUMBNAIL) for file in new if file is not None}
        uploads = {**small, **uploads}
        drawing = Drawing.of(next(iter(small))) if small else None
        return uploads, gr.Gallery([*uploads.values(), *scenes], selected_index=None), *opened(drawing)

    def untried() -> tuple[gr.Image, str]:
        return gr.Image(value=None, visible=False), ""

    def opened(drawing: Drawing | None) -> tuple[Any, ...]:
        """What another picture changes: also results, which would mislead."""
        return drawing, None if drawing is None else drawing.show(), ADD, "", *untried()

    @said_plainly
    def choose(uploads: dict[Path, Image], event: gr.SelectData) -> tuple[Any, ...]:
        sources: list[Source] = [*uploads, *scenes]
        return opened(Drawing.of(chosen(sources, event.index)))

    @said_plainly
    def click(drawing: Drawing | None, how: str, event: gr.SelectData) -> tuple[Drawing, Image]:
        if drawing is None:
            raise InputError("Open a picture first.")
        x, y = event.index if isinstance(event.index, list) and len(event.index) == 2 else (None, None)
        if not isinstance(x, int | float) or not isinstance(y, int | float):
            raise InputError("Click inside the picture.")
        place = ((x + 0.5) / drawing.small.width, (y + 0.5) / drawing.small.height)
        drawing = teacher.click(drawing, Click(*place, how == ADD))
        return drawing, drawing.show()

    @said_plainly
    def undo(drawing: Drawing | None) -> tuple[Any, ...]:
        drawing = teacher.undo(drawing) if drawing else None
        return drawing, drawing.show() if drawing else None

    def clear(drawing: Drawing | None) -> tuple[Any, ...]:
        drawing = drawing.cleared() if drawing else None
        return drawing, drawing.show() if drawing else None

    @said_plainly
    def keep(drawing: Drawing | None, name: str) -> tuple[Any, ...]:
        drawing = teacher.keep(drawing, name)
        return drawing, drawing.show(), ADD, "", *strip()

    @said_plainly
    def mark(kept: list[Kept], event: gr.SelectData) -> tuple[Kept, gr.Button]:
        return chosen(kept, event.index), gr.Button(interactive=True)

    @said_plainly
    def remove(kept: Kept | None) -> tuple[Any, ...]:
        if kept is not None:
            teacher.folder.remove(kept)
        return strip()

    def learn(earlier: Taught | None, drawn_scenes: bool) -> tuple[Any, ...]:
        try:
            taught = teacher.fit(drawn_scenes=drawn_scenes)
        except (FitError, InputError) as error:
            return gr.skip(), looks.refusal(error, earlier is not None), *[gr.skip()] * 4
        archive = gr.DownloadButton(value=taught.archive)
        return taught, looks.fit_table(taught), gr.Column(visible=True), archive, *untried()

    progress: Any = gr.Progress(track_tqdm=True)  # gradio looks for it among the defaults

    @said_plainly
    def fit(earlier: Taught | None, progress: Any = progress) -> tuple[Any, ...]:
        return learn(earlier, drawn_scenes=False)

    @said_plainly
    def fit_scenes(earlier: Taught | None, progress: Any = progress) -> tuple[Any, ...]:
        return learn(earlier, drawn_scenes=True)

    @said_plainly
    def attempt(taught: Taught | None, drawing: Drawing | None, lines: str) -> tuple[gr.Image, str]:
        if taught is None:
            raise InputError("Fit a head first.")
        result = taught.find(drawing, lines)
        return gr.Image(value=result.draw([MASKS, KEYPOINTS]), visible=True), looks.table(result)

    @said_plainly
    def push(taught: Taught | None, repository: str, private: bool, request: gr.Request) -> str:
        if not is_asked_here(request.headers):
            raise InputError("Heads are pushed with this machine's own token: only from a browser on this machine.")
        if taught is None:
            raise InputError("Fit a head first.")
        return looks.pushed(taught.push(repository, private=private))

    uploads, drawing, kept, marked, taught = state({}), state(), state([]), state(), state()
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            text(looks.step("1. Open a picture"))
            pictures = gr.Gallery(
                scenes,
                show_label=False,
                format="png",
                allow_preview=False,
                buttons=[],
                height="auto",
                container=False,
                elem_classes="lens-pictures",
            )
            several = gr.UploadButton("Upload pictures", file_count="multiple", file_types=["image"], size="md")
            text(looks.step("Kept so far"))
            words = text("")
            gallery = gr.Gallery(
                show_label=False,
                format="webp",
                columns=3,
                allow_preview=False,
                buttons=[],
                height="auto",
                container=False,
                visible=False,
                elem_classes="lens-kept",
            )
            removal = gr.Button("Remove the selected one", interactive=False, size="md")
        with gr.Column(scale=5, min_width=320):
            text(looks.step("2. Click a thing, name it, keep it"))
            canvas = gr.Image(show_label=False, interactive=False, buttons=[], elem_classes="lens-canvas")
            with gr.Row(equal_height=True):
                how = gr.Radio([ADD, REMOVE], value=ADD, label="A click", container=False, min_width=150, scale=3)
                undoing = gr.Button("Undo", min_width=60, size="md")
                clearing = gr.Button("Clear", min_width=60, size="md")
            name = gr.Textbox(
                label="What would you ask for, to get this mask and no other?",
                placeholder="the dog on the left",
                max_lines=1,
            )
            keeping = gr.Button("Keep", variant="primary")
        with gr.Column(scale=4, min_width=300):
            text(looks.step("3. Fit a head, and try it"))
            fitting = gr.Button("Fit", variant="primary")
            drawn = gr.Button("Use drawn scenes instead", size="md")
            figures = text(looks.FIRST)
            with gr.Column(visible=False) as trial:
                with gr.Column(elem_classes="lens-asks"):
                    prompts = gr.Textbox(
                        label="What to find in the open picture, one prompt per line",
                        placeholder="the dog on the left",
                        lines=2,
                        max_lines=LINES,
                    )
                    trying = gr.Button("Try (Ctrl+Enter)", variant="primary", elem_classes="lens-runs")
                result = gr.Image(
                    show_label=False,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    visible=False,
                    elem_classes="lens-tried",
                )
                table = text("")
                archive = gr.DownloadButton("Download the head (zip)", size="md")
                if teacher.publishes:
                    with gr.Accordion("Push it to the Hub", open=False):
                        repository = gr.Textbox(label="Repository", placeholder="you/name", max_lines=1)
                        private = gr.Checkbox(value=True, label="Private, if it has to be made")
                        pushing = gr.Button("Push", size="md")
                        address = text(looks.TOKEN)

    opening = [drawing, canvas, how, name, result, table]
    keepsake = [kept, gallery, words, marked, removal]
    several.upload(upload, [several, uploads], [uploads, pictures, *opening], show_progress="hidden", **AS_UPLOADED)
    pictures.select(choose, uploads, opening, show_progress="hidden", **HIDDEN)
    clicked = canvas.select(
        click, [drawing, how], [drawing, canvas], show_progress="minimal", show_progress_on=how, **HIDDEN, **MODEL
    )
    undone = undoing.click(
        undo, drawing, [drawing, canvas], show_progress="minimal", show_progress_on=how, **HIDDEN, **MODEL
    )
    then_at_once(lambda: gr.skip(), None, how, clicked.failure, undone.failure)
    clearing.click(clear, drawing, [drawing, canvas], show_progress="minimal", show_progress_on=how, **HIDDEN)
    for event in (keeping.click, name.submit):
        event(keep, [drawing, name], [drawing, canvas, how, name, *keepsake], show_progress="hidden", **HIDDEN)
    gallery.select(mark, kept, [marked, removal], **HIDDEN)
    removal.click(remove, marked, keepsake, show_progress="hidden", **HIDDEN)
    for button, handler in ((fitting, fit), (drawn, fit_scenes)):
        outputs = [taught, figures, trial, archive, result, table]
        button.click(handler, taught, outputs, show_progress_on=figures, **HIDDEN, **MODEL)
    tried = trying.click(
        attempt, [taught, drawing, prompts], [result, table], show_progress_on=prompts, **HIDDEN, **MODEL
    )
    then_at_once(untried, None, [result, table], tried.failure)
    then_at_once(lambda: gr.skip(), None, prompts, tried.failure)
    if teacher.publishes:
        pushed = pushing.click(push, [taught, repository, private], address, show_progress_on=address, **HIDDEN)
        then_at_once(lambda: looks.TOKEN, None, address, pushed.failure)
    gr.on(None, strip, None, keepsake, show_progress="hidden", **HIDDEN)  # as the page opens
