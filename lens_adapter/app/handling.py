"""What the tabs of the page have in common: how handlers are called, and how they say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any

import gradio as gr

from lens_adapter.errors import LensError

MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # who asks the models queues up
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
# Handlers get a picture as it was uploaded ({"path": ...}): what is wrong with it, the package says in its own words.
AS_UPLOADED: dict[str, Any] = {"preprocess": False, **HIDDEN}

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


def text(html: str) -> gr.HTML:
    return gr.HTML(html, apply_default_css=False, elem_classes="lens-bare")


def file_of(upload: Upload) -> str | None:
    return None if upload is None else upload["path"]
