"""The page itself. Each visitor's picture, prompts and results are their own; the models are shared and take turns."""

from __future__ import annotations

import os
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from lens_adapter.adapter import LensAdapter
from lens_adapter.app import bounds, looks
from lens_adapter.app.gate import Gate
from lens_adapter.app.handling import text
from lens_adapter.app.point_tab import point_tab
from lens_adapter.app.teach_tab import teach_tab
from lens_adapter.app.teaching import Teacher


def build_page(adapter: LensAdapter, teacher: Teacher | None = None) -> gr.Blocks:
    """The page for an attached adapter; `launch` serves it, both inside of `visitors.visitors_folder`.

    Args:
        adapter: a readout that was not fitted: there is nothing to point with yet.
        teacher: None: there is no tab to teach in.
    """
    with gr.Blocks(title=looks.TITLE, analytics_enabled=False, delete_cache=(bounds.SWEEP, bounds.EXPIRY)) as page:
        text(looks.head(adapter))
        if teacher is None:
            point_tab(adapter)
        else:
            with gr.Tabs():
                with gr.Tab("Point"):
                    point_tab(adapter)
                with gr.Tab("Teach"):
                    teach_tab(teacher)
    return page


def launch(page: gr.Blocks, *, host: str, port: int | None = None, share: bool = False, **options: Any) -> None:
    """Serve a page until it is interrupted.

    Args:
        host, port: where; without a port, the first free one from 7860.
        share: also through a public link of gradio's.
        options: any other of `gradio.Blocks.launch`.

    Raises:
        OSError: the port is taken.
    """

    def waiting(address: str) -> int:
        queues = page._queue.event_queue_per_concurrency_id.values()
        clients = [event.request.client for queue in queues for event in queue.queue]
        return sum(client is not None and client.host == address for client in clients)

    def used(session: str) -> None:
        # gradio forgets the session that came first, though it may be the one that waits just now.
        sessions = page._queue.pending_messages_per_session
        if session in sessions:
            sessions.move_to_end(session)

    # gradio counts its last requests anew after each: let it be a few.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    # How long one waits is told at intervals. gradio can tell it at once, too, from the loop that serves the queue; but
    # then that loop stops for good where somebody has just left.
    queued = page.queue(
        max_size=bounds.MOST_WAITING,
        default_concurrency_limit=bounds.AT_ONCE,
        api_open=False,
        status_update_rate=bounds.STATUS_EVERY,
    )
    queued.launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=looks.THEME,
        css=looks.CSS,
        js=looks.SCRIPT,
        max_file_size=bounds.LARGEST_UPLOAD,
        state_session_capacity=bounds.MOST_SESSIONS,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(Gate, waiting=waiting, used=used)]},
        ssr_mode=False,
        footer_links=["settings", "gradio"],
        **options,
    )
