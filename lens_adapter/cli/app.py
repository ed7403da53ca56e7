"""`lens-adapter app`."""

from __future__ import annotations

import argparse

from lens_adapter.cli.arguments import (
    BUILTIN,
    Commands,
    adapter_of,
    add_adapter_option,
    add_command,
    add_device_options,
    count,
)
from lens_adapter.cli.loading import base_by_name, checked_device, head_by_name
from lens_adapter.errors import LensError


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "app",
        run,
        help="open a web page: pictures, prompts, masks, chat",
        description="""
        Serves a page where visitors segment pictures and chat with the frozen model, until it is interrupted (Ctrl-C).
        Needs gradio: pip install 'lens_adapter[app]'.""",
        examples="""
        lens-adapter app
        lens-adapter app --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b --port 8080""",
    )
    parser.add_argument(
        "--model", default=BUILTIN, metavar="ID_OR_FOLDER", help="the frozen model; default: the one that ships"
    )
    add_adapter_option(parser)
    add_device_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines, too; default: %(default)s")
    parser.add_argument("--port", type=count, metavar="N", help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="also through a public link of gradio's")


def run(args: argparse.Namespace) -> None:
    head = adapter_of(args)
    try:
        from lens_adapter.app.page import build_page, launch
    except ModuleNotFoundError as error:
        raise LensError(f"The page needs {error.name}. Install it: pip install 'lens_adapter[app]'") from error
    device = checked_device(args.device)
    with head_by_name(head).attach(*base_by_name(args.model, args.dtype, device)) as adapter:
        launch(build_page(adapter), host=args.host, port=args.port, share=args.share)
