"""What the tabs of the page have in common: how handlers are called, and how they say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.events import Dependency

from lens_adapter.app.bounds import AT_ONCE, EXPIRY
from lens_adapter.app.visitors import uploaded
from lens_adapter.errors import InputError, LensError

MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # who asks the models queues up
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
DRAWS: dict[str, Any] = {"concurrency_id": "draws", "concurrency_limit": AT_ONCE, **HIDDEN}  # may hold a whole picture
# Handlers get a picture as it was uploaded ({"path": ...}): what is wrong with it, the package says in its own words.
AS_UPLOADED: dict[str, Any] = {"preprocess": False, **HIDDEN}

Upload = dict[str, Any] | None
Selected = TypeVar("Selected")


def said_plainly(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of the package become messages on the page."""

    @wraps(handler)
    def handle(*values: Any) -> Any:
        try:
            return handler(*values)
        except LensError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    return handle


def then_at_once(handler: Callable[..., Any], inputs: Any, outputs: Any, *after: Callable[..., Dependency]) -> None:
    """What the page shows after some events, such as `event.failure`, without queueing up.

    After a failure gradio covers the outputs of an event by the word "Error" and leaves them as they were; the outputs
    of a handler that is called then are uncovered again.
    """
    for event in after:
        event(handler, inputs, outputs, queue=False, show_progress="hidden", **HIDDEN)


def text(html: str, *classes: str) -> gr.HTML:
    return gr.HTML(html, apply_default_css=False, elem_classes=["lens-bare", *classes])


def state(value: Any = None) -> gr.State:
    """What the server keeps of a visitor for a while."""
    return gr.State(value, time_to_live=EXPIRY)


def file_of(upload: Upload) -> Path | None:
    """The picture that a visitor uploaded.

    Raises:
        InputError: this names no upload.
    """
    return None if upload is None else uploaded(upload.get("path") if isinstance(upload, dict) else None)


def chosen(things: Sequence[Selected], index: Any) -> Selected:
    """The one that a visitor selected.

    Raises:
        InputError: there is no such thing, or not any more.
    """
    if type(index) is not int or not 0 <= index < len(things):
        raise InputError("What was selected is not here, or not any more. Select it again.")
    return things[index]
