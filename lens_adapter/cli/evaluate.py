"""`lens-adapter evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lens_adapter.cli.arguments import (
    Commands,
    add_command,
    add_data_option,
    add_device_options,
    add_json_option,
    add_model_options,
    add_threshold_options,
    count,
    is_builtin_head,
    pair_of,
    require_data,
    require_name,
)
from lens_adapter.cli.loading import base_by_name, checked_device, head_by_name
from lens_adapter.cli.outputs import require_files
from lens_adapter.cli.result import Result, note

SCENES = 1000  # of the published figures


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run,
        help="measure a head on labelled images, or the shipped models on their test split",
        description="""
        Measures gIoU, cIoU, precision, keypoints on the target, what is refused, and how well scores know it: each with
        its interval, for all prompts and by subset, as a table in Markdown.

        With --builtin: everything the package ships, as tables; first it says how long that will take. --json has every
        figure by its name, e.g. heads.lite.giou.attribute, and under `records` what `push --results` takes. All are
        fractions.""",
        examples="""
        lens-adapter evaluate --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b \\
            --data refer_seg format=refer dataset=refcoco+ split=testA \\
            --json testA.json --gallery testA.html
        lens-adapter evaluate --model Qwen/Qwen2.5-VL-7B-Instruct --adapter my-head --data my-pictures
        lens-adapter evaluate --builtin --json builtin.json

        Several devices share the work:
        accelerate launch -m lens_adapter evaluate --model ... --adapter ... --data ...

        How each figure is counted:
        python -m pydoc lens_adapter.evaluation""",
    )
    add_model_options(parser)
    add_data_option(parser, "--data", "to measure on")
    parser.add_argument(
        "--batch-size", type=count, default=8, metavar="N", help="prompts at a time; default: %(default)s"
    )
    add_threshold_options(parser)
    add_device_options(parser, more=" (under accelerate launch: one each)")
    parser.add_argument("--gallery", type=Path, metavar="FILE.html", help="a page of the best, median and worst")
    parser.add_argument("--builtin", action="store_true", help="everything that ships with the package, instead")
    parser.add_argument(
        "--scenes",
        type=count,
        default=SCENES,
        metavar="N",
        help="of the test split, with --builtin; default: %(default)s",
    )
    parser.add_argument(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="processes that share the scenes of --builtin; default: %(default)s",
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result | None:
    one_head = (args.model or is_builtin_head(args.adapter)) and args.data
    if any([args.model, args.adapter, args.data, args.gallery]) if args.builtin else not one_head:
        args.parser.error("give --builtin alone, or all of --model, --adapter and --data")
    require_files({"--json": args.json, "--gallery": args.gallery}, args.data, args.model, args.adapter)
    if not args.builtin:
        return _evaluate_head(args)
    from lens_adapter.builtin.figures import VALIDATION_SCENES, evaluate_builtin

    def foresee(seconds: float) -> None:
        duration = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
        note(
            f"{args.scenes} test scenes, about {duration} by the pace of one, and before them {VALIDATION_SCENES} to "
            "tune the baselines; --scenes N takes fewer or more."
        )

    measured = evaluate_builtin(args.scenes, foresee, args.workers)
    return Result(measured.to_markdown(), measured.to_dict())


def _evaluate_head(args: argparse.Namespace) -> Result | None:
    args.model, head = pair_of(args)
    require_data(args.data)
    require_name("--model", args.model)
    require_name("--adapter", args.adapter)
    from lens_adapter.data.formats import DataSource
    from lens_adapter.evaluation import evaluate, this_process
    from lens_adapter.evaluation.gallery import save_gallery

    source = DataSource.of(args.data)
    examples = source.examples()  # before anything large is loaded
    if args.device:
        checked_device(args.device)
    process = this_process(args.device)
    device = process.device if process and not args.device else checked_device(args.device)
    thresholds = {"mask_threshold": args.mask_threshold, "score_threshold": args.score_threshold}
    with head_by_name(head).attach(*base_by_name(args.model, args.dtype, device)) as adapter:
        result = evaluate(adapter, examples, dataset=source.describe(), batch_size=args.batch_size, **thresholds)
        if process and not process.is_main_process:
            return None
        if args.gallery:
            save_gallery(args.gallery, result, adapter, examples)
            note(f"Wrote {args.gallery}")
    return Result(result.to_markdown(), result.to_dict())
