"""`lens-adapter probe`."""

from __future__ import annotations

import argparse
from typing import Any

from lens_adapter.cli.arguments import (
    BUILTIN,
    Commands,
    add_command,
    add_data_option,
    add_device_options,
    add_json_option,
    add_picture_option,
    add_template_option,
    count,
    require_data,
    require_name,
)
from lens_adapter.cli.fit import UNKNOWN
from lens_adapter.cli.loading import base_by_name, checked_device
from lens_adapter.cli.outputs import require_files
from lens_adapter.cli.result import Result, note


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "probe",
        run,
        help="find the layer to tap, without any training",
        description="""
        Ranks the decoder layers and attention heads of a frozen model by how well the attention of the last token
        points at what a prompt names, and recommends the tap_layer of a new head.

        Prints, and draws layer by head: the pointing game (how often the hottest image token's centre lies in the mask)
        and the mass ratio (attention inside the mask, over that of an even spread: 1 means it does not know).""",
        examples="""
        lens-adapter probe --model Qwen/Qwen2-VL-2B-Instruct --data my-pictures -o layers.png
        lens-adapter probe --model llava-hf/llava-1.5-7b-hf --data refer_seg format=refer split=val --json
        lens-adapter probe --model builtin

        Without --data: drawn scenes, as for fit. Whether layers that point there point as well
        in photographs is not known.
        Take some hundred examples of the kind that the head is for.""",
    )
    parser.add_argument(
        "--model", required=True, metavar="ID_OR_FOLDER", help=f'the frozen model; "{BUILTIN}": the one that ships'
    )
    add_data_option(parser, "--data", "to look at, some hundred prompts; default: drawn scenes")
    add_template_option(parser)
    parser.add_argument(
        "--examples",
        type=count,
        default=100,
        metavar="N",
        help="drawn scenes, without --data; default: %(default)s",
    )
    add_device_options(parser)
    add_picture_option(parser, "lens-probe.png")
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result:
    require_data(args.data)
    require_name("--model", args.model)
    require_files({"--output": args.output, "--json": args.json}, args.data, args.model)
    from lens_adapter.evaluation.probing import probe

    data, template = _labelled(args)  # before anything large is loaded
    device = checked_device(args.device)
    base = base_by_name(args.model, args.dtype, device)
    result = probe(*base, data, count=args.examples, prompt_template=template)
    result.save(args.output)
    if not args.data and args.model != BUILTIN:
        note(UNKNOWN)
    note(f"Wrote {args.output}")
    return Result(result.summary(), result.to_dict())


def _labelled(args: argparse.Namespace) -> tuple[Any, str | None]:
    """Examples (None: drawn scenes), and what is to be asked; the built-in model brings its own of both."""
    from lens_adapter import builtin
    from lens_adapter.builtin.exam import labelled_cases
    from lens_adapter.data.formats import DataSource

    examples: Any = DataSource.of(args.data).examples() if args.data else None
    if args.model != BUILTIN:
        return examples, args.template
    return labelled_cases(args.examples) if examples is None else examples, args.template or builtin.QUESTIONS[
        "prompt_template"
    ]
