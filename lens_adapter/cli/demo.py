"""`lens-adapter demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lens_adapter.builtin.names import DEFAULT_HEAD, HEADS
from lens_adapter.cli.arguments import Commands, add_command, add_json_option, add_picture_option
from lens_adapter.cli.outputs import require_files
from lens_adapter.cli.result import Result, note


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        run,
        help="segment pictures with the models that ship with the package",
        description="""
        Shows a frozen vision-language model with a LENS head at work, offline: three test scenes with three prompts
        each, or a picture and prompts of yours.

        Prints what was found, what the frozen model answers before and while the head is attached, and where the time
        goes; draws a contact sheet.""",
        examples="""
        lens-adapter demo
        lens-adapter demo --head mirror -o sheet.png
        lens-adapter demo --image picture.png --prompt "the leftmost animal" --prompt "something you can eat\"""",
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="a picture of yours (the built-in model knows only its own world)"
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="what to find; may be repeated")
    parser.add_argument("--head", choices=list(HEADS), default=DEFAULT_HEAD, help="default: %(default)s")
    add_picture_option(parser, "lens-demo.png")
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result:
    if (args.image is None) != (not args.prompt):
        args.parser.error("--image and --prompt go together")
    from lens_adapter.builtin.demo import run_demo

    require_files({"--output": args.output, "--json": args.json}, args.image)
    shown = run_demo(args.image, args.prompt, args.output, args.head)
    note(f"Wrote {args.output}")
    return Result(str(shown), {"head": args.head, "picture": str(args.output), **shown.to_dict()})
