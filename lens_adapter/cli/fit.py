"""`lens-adapter fit`."""

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
    add_sam_option,
    add_template_option,
    count,
    require_data,
    require_name,
    sam_of,
)
from lens_adapter.cli.loading import base_by_name, checked_device
from lens_adapter.cli.outputs import require_files, require_folder_for
from lens_adapter.cli.result import Result, note

UNKNOWN = (
    "Seen on drawn scenes: whether that carries over to photographs is not known. Give photographs with masks by "
    "--data to see figures for them."
)


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fit",
        run,
        help="a head in seconds: choose the attention heads that point",
        description="""
        Fits a readout: a few attention heads of the frozen model, and weights for them, chosen on some pictures and
        judged on others; an untouched SAM is clicked where they point. Only forwards of the model are run. Writes a
        checkpoint of some kilobytes that `segment`, `evaluate` and `push` take like any other.

        Prints what was chosen, and how well it points on pictures that had no part in it. Points no better than chance:
        nothing is written, and the exit code is 1.""",
        examples="""
        lens-adapter fit --model Qwen/Qwen2.5-VL-7B-Instruct -o my-readout
        lens-adapter fit --model llava-hf/llava-1.5-7b-hf --data my-pictures --sam sam2.1-small -o my-readout
        lens-adapter fit --model builtin -o builtin-readout --json

        Without --data: drawn scenes with exact masks, which come with the package. Whether
        heads chosen on them point as well in photographs is not known.""",
    )
    parser.add_argument(
        "--model", required=True, metavar="ID_OR_FOLDER", help=f'the frozen model; "{BUILTIN}": the one that ships'
    )
    add_data_option(parser, "--data", "to fit on; twenty to two hundred prompts; default: drawn scenes")
    parser.add_argument(
        "--examples", type=count, default=50, metavar="N", help="drawn scenes, without --data; default: %(default)s"
    )
    add_sam_option(parser)
    add_template_option(parser)
    add_device_options(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the head goes")
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result:
    require_data(args.data)
    require_name("--model", args.model)
    require_folder_for("--output", args.output, args.data, args.model)
    require_files({"--json": args.json}, args.data, args.model)
    from lens_adapter import LensAdapter, LensConfig, builtin
    from lens_adapter.data.formats import DataSource

    data = DataSource.of(args.data).examples() if args.data else None  # before anything large is loaded
    fields: dict[str, Any] = {"fusion": "readout", **sam_of(args)}
    if args.model == BUILTIN:
        fields |= builtin.QUESTIONS
    if args.template:
        fields["prompt_template"] = args.template
    LensConfig(**fields)  # a name or a template that cannot be used is said now
    device = checked_device(args.device)
    model, processor = base_by_name(args.model, args.dtype, device)
    adapter = LensAdapter.from_model(model, processor, load_sam=False, **fields)
    report = adapter.fit(data, count=args.examples)
    adapter.save_pretrained(args.output)
    if data is None and args.model != BUILTIN:
        note(UNKNOWN)
    note(f"Wrote {args.output}")
    return Result(report.summary(), {"output": str(args.output), "model": args.model, **report.to_dict()})
