"""`lens-adapter app`."""

from __future__ import annotations

import argparse

from lens_adapter.cli.arguments import (
    BUILTIN,
    Commands,
    add_adapter_option,
    add_command,
    add_device_options,
    add_sam_option,
    port,
    require_name,
    sam_of,
)
from lens_adapter.cli.loading import base_by_name, checked_device, head_by_name
from lens_adapter.cli.ports import ANOTHER_PORT, free_port
from lens_adapter.errors import InputError, LensError, one_line

TEACH = "lens-teach"


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "app",
        run,
        help="open a web page: pictures, prompts, masks, chat",
        description="""
        Serves a page where visitors segment pictures and chat with the frozen model, until it is interrupted (Ctrl-C).
        Needs gradio: pip install 'lens_adapter[app]'.

        In its tab "Teach" a head is fitted by clicking: open pictures, click things, name them. It is there where only
        this machine reaches the page; with --teach, for whoever does. Any model can be taught: without --adapter, the
        page begins without a head.""",
        examples="""
        lens-adapter app
        lens-adapter app --model Qwen/Qwen2.5-VL-7B-Instruct --sam slimsam_77 --teach my-things
        lens-adapter app --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b --port 8080""",
    )
    parser.add_argument(
        "--model", default=BUILTIN, metavar="ID_OR_FOLDER", help="the frozen model; default: the one that ships"
    )
    add_adapter_option(parser)
    parser.add_argument(
        "--teach",
        metavar="FOLDER",
        help=f"where what is taught by clicking is kept, as a data folder for `fit --data`; default: {TEACH}",
    )
    add_sam_option(parser, " that draws what is clicked")
    add_device_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines, too; default: %(default)s")
    parser.add_argument(
        "--port", type=port, metavar="N", help="default: the first free one from 7860; 0: any that is free"
    )
    parser.add_argument("--share", action="store_true", help="also through a public link of gradio's")


def run(args: argparse.Namespace) -> None:
    from lens_adapter.app.loopback import is_loopback

    local = is_loopback(args.host) and not args.share
    folder = args.teach or (TEACH if local else None)
    name = args.adapter or (BUILTIN if args.model == BUILTIN else None)
    require_name("--model", args.model)
    require_name("--adapter", name)
    if name is None and folder is None:
        args.parser.error("--model needs --adapter, a head that was trained for it, or --teach, to make one")
    try:
        from lens_adapter.app.page import build_page, launch
    except ModuleNotFoundError as error:
        raise LensError(f"The page needs {error.name}. Install it: pip install 'lens_adapter[app]'") from error
    from lens_adapter import LensAdapter, LensConfig, builtin
    from lens_adapter.app.teaching import Teacher
    from lens_adapter.app.visitors import ended_by_signals, visitors_folder

    sam = sam_of(args)
    LensConfig(**sam)  # a name that cannot be used is said now
    device, number = checked_device(args.device), free_port(args.host, args.port, "The page")
    head = None if name is None else head_by_name(name)  # before anything large is loaded
    model, processor = base_by_name(args.model, args.dtype, device)
    if head is None:
        head = LensAdapter.from_model(model, processor, load_sam=False, fusion="readout", **sam)
    with head.attach(model, processor) as adapter:
        asked = builtin.QUESTIONS if args.model == BUILTIN else {}
        teacher = None if folder is None else Teacher(adapter, folder, publishes=local, **sam, **asked)
        with ended_by_signals(), visitors_folder():
            try:
                launch(build_page(adapter, teacher), host=args.host, port=number, share=args.share)
            except OSError as error:  # also gradio's own search for a free one may find none
                raise InputError(f"The page cannot be served: {one_line(error)} {ANOTHER_PORT}") from error
