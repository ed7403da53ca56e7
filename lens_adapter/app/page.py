"""The page itself. Each visitor's picture, prompts and results are their own; the models are shared and take turns."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lens_adapter.adapter import LensAdapter
from lens_adapter.app import looks
from lens_adapter.app.handling import text
from lens_adapter.app.point_tab import point_tab
from lens_adapter.app.teach_tab import teach_tab
from lens_adapter.app.teaching import Teacher

HOUR = 3600  # seconds
LARGEST_UPLOAD = "40mb"


def build_page(adapter: LensAdapter, teacher: Teacher | None = None) -> gr.Blocks:
    """The page for an attached adapter; `launch` serves it.

    Args:
        adapter: a readout that was not fitted: there is nothing to point with yet.
        teacher: None: there is no tab to teach in.
    """
    with gr.Blocks(title=looks.TITLE, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
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
