"""`lens-adapter annotate`."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lens_adapter.cli.arguments import (
    BUILTIN,
    Commands,
    add_command,
    add_data_argument,
    add_device_options,
    add_json_option,
    add_model_options,
    add_threshold_options,
    count,
    is_builtin_head,
    pair_of,
    require_name,
    require_prompts,
)
from lens_adapter.cli.loading import checked_device, loaded_adapter
from lens_adapter.cli.outputs import require_files, require_folder_for
from lens_adapter.cli.result import Result, note
from lens_adapter.errors import InputError, brief


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "annotate",
        run,
        help="masks for every picture and prompt of a folder, a list or a data set",
        description="""
        Segments every (picture, prompt) of some data and writes a row for each, with its mask as COCO run lengths, to
        Parquet files of some hundred pictures each; or also one COCO file. Prints how many rows there are, how many
        name something in their picture, and how many could not be annotated.

        A run that was stopped, however it was, goes on with --resume and gives the same rows. A picture that cannot be
        read is a row with its error.""",
        examples="""
        lens-adapter annotate photos --prompt "a dog" "a cat" -o annotations \\
            --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b --preview 50
        lens-adapter annotate list.jsonl -o annotations --model builtin --format coco
        lens-adapter annotate org/photos format=hub split=train --prompts prompts.txt -o annotations --model builtin

        Going on after a stop, and judging anew without any model:
        lens-adapter annotate list.jsonl -o annotations --model builtin --resume
        lens-adapter annotate -o annotations --rethreshold 0.4

        Several devices share the work:
        accelerate launch -m lens_adapter annotate ... --model ... --adapter ... -o ...
        lens-adapter annotate ... --model ... --adapter ... -o ... --engine ray

        What the rows hold:
        python -m pydoc lens_adapter.annotation""",
    )
    add_data_argument(
        parser,
        "a folder of pictures; a list of them (.jsonl, .csv, .parquet) with image and prompt or prompts; or a labelled "
        "data set as for evaluate, e.g. a path with format=coco and its options",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="where the rows go")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--prompt", nargs="+", metavar="TEXT", help="what to find in every picture, in the place of the data's prompts"
    )
    asked.add_argument("--prompts", type=Path, metavar="FILE", help="the same, one to a line of a text file")
    add_model_options(parser)
    parser.add_argument(
        "--format",
        choices=["parquet", "coco"],
        default="parquet",
        help="coco: also one COCO file of what was found; default: %(default)s",
    )
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="ray: the actors of a cluster; default: %(default)s"
    )
    parser.add_argument("--actors", type=count, metavar="N", help="with --engine ray; default: one per GPU, or per CPU")
    parser.add_argument("--resume", action="store_true", help="go on with what is in FOLDER")
    parser.add_argument(
        "--on-error",
        choices=["record", "stop"],
        default="record",
        help="what cannot be annotated: a row with its error, or the end of the run; default: %(default)s",
    )
    parser.add_argument(
        "--preview", type=count, default=0, metavar="N", help="a page of N masks of each kind, the least sure first"
    )
    parser.add_argument("--batch-size", type=count, metavar="N", help="prompts at a time; default: 8")
    parser.add_argument("--shard-size", type=count, metavar="N", help="pictures per Parquet file; default: 512")
    parser.add_argument(
        "--draft-side",
        type=count,
        metavar="N",
        help="decode JPEGs at 1/2, 1/4 or 1/8, the smallest of which both sides still have N pixels (most SAMs see "
        "1024); masks are at full size all the same; default: decode at full size",
    )
    add_threshold_options(parser)
    parser.add_argument(
        "--rethreshold",
        type=float,
        metavar="S",
        help="judge the finished annotations in FOLDER by another score threshold; no model is loaded, and DATA is for "
        "--preview alone",
    )
    add_device_options(parser, more=" (under accelerate launch: one each)")
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result | None:
    if args.rethreshold is not None:
        if args.model or args.adapter or args.prompt or args.prompts or args.resume:
            args.parser.error("--rethreshold is for annotations that are there; it takes no model and no prompts")
        if args.preview and not args.data:
            args.parser.error("--rethreshold with --preview needs DATA: where the pictures are")
        return _judge_anew(args)
    if not (args.data and (args.model or is_builtin_head(args.adapter))):
        args.parser.error("give DATA and --model, or --rethreshold")
    return _annotate(args)


def _annotate(args: argparse.Namespace) -> Result | None:
    args.model, head = pair_of(args)
    prompts = args.prompt or (_lines(args.prompts) if args.prompts else None)
    require_prompts(prompts or ())
    require_name("--model", args.model)
    require_name("--adapter", args.adapter)
    require_folder_for("--output", args.output, args.data, args.model, args.adapter)
    require_files({"--json": args.json}, args.data, args.prompts, args.model, args.adapter)
    from lens_adapter.annotation.folder import require_free
    from lens_adapter.annotation.inputs import tasks_of
    from lens_adapter.annotation.run import annotate, require_asked
    from lens_adapter.builtin.names import ONLY_ITS_WORLD
    from lens_adapter.evaluation import this_process

    tasks = tasks_of(_source(args.data))  # before anything large is loaded
    require_asked(tasks, prompts)
    if args.device:
        checked_device(args.device)
    process = this_process(args.device) if args.engine == "local" else None
    if process is None:  # else another one may have begun; the main process looks when all are there
        require_free(args.output, args.resume)
    main = process is None or process.is_main_process
    if args.model == BUILTIN and main:
        note(ONLY_ITS_WORLD)
    device = process.device if process and not args.device else checked_device(args.device)
    sizes = {name: getattr(args, name) for name in ("batch_size", "shard_size") if getattr(args, name)}
    load: Any = partial(loaded_adapter, args.model, head, args.dtype, device)
    local = args.engine == "local"
    with load() if local else nullcontext(load) as segmenter:
        report = annotate(
            segmenter,
            tasks if local else _source(args.data),
            args.output,
            prompts=prompts,
            format=args.format,
            engine=args.engine,
            actors=args.actors,
            mask_threshold=args.mask_threshold,
            score_threshold=args.score_threshold,
            resume=args.resume,
            on_error=args.on_error,
            preview=args.preview,
            draft_side=args.draft_side,
            **sizes,
        )
    return _told(report) if main else None


def _judge_anew(args: argparse.Namespace) -> Result:
    require_files({"--json": args.json}, args.data)
    from lens_adapter.annotation.run import rethreshold

    data = _source(args.data) if args.data else None
    return _told(rethreshold(args.output, args.rethreshold, format=args.format, preview=args.preview, data=data))


def _told(report: Any) -> Result:
    from lens_adapter.annotation.rows import read_rows, shards_in

    note(f"Wrote {report.output}")
    failure = ""
    if report.errors == report.rows:
        first = next(read_rows(shards_in(report.output), ["image", "prompt", "error"]))
        about = brief(first["image"], 300) + (f", prompt {brief(first['prompt'])}" if first["prompt"] else "")
        failure = f"Nothing was annotated: every row ({report.rows}) has an error. The first, {about}: {first['error']}"
    return Result(report.summary(), report.to_dict(), failure)


def _source(data: dict[str, Any]) -> Any:
    """A path alone is one; with options it is a mapping, as `DataSource.of` takes it."""
    return data if len(data) > 1 else data["path"]


def _lines(file: Path) -> list[str]:
    """The prompts of a file, one to a line; empty lines count for nothing.

    Raises:
        InputError: it cannot be read, or there is none.
    """
    try:
        prompts = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file} cannot be read as UTF-8: {error}.") from error
    if not prompts:
        raise InputError(f"--prompts {file} has no line that says what to find.")
    return prompts
