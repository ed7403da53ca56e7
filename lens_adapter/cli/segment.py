"""`lens-adapter segment`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lens_adapter.cli.arguments import (
    BUILTIN,
    Commands,
    adapter_of,
    add_command,
    add_device_options,
    add_json_option,
    add_model_options,
    add_picture_option,
    require_name,
    require_prompts,
)
from lens_adapter.cli.loading import base_by_name, checked_device, head_by_name
from lens_adapter.cli.outputs import require_files
from lens_adapter.cli.result import Result, note
from lens_adapter.errors import InputError


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "segment",
        run,
        help="segment one image with any model and head",
        description="""
        Finds what each prompt names in an image, prints a score and an area per prompt, and draws the masks.

        A score is the head's own estimate of its mask's quality, in [0, 1]; below the head's score threshold what a
        prompt names is absent, and its mask is empty. With --json: masks as COCO RLE, and keypoints, too.
        With --instances: how many things each prompt names, an outline around each and, with --json, a mask.""",
        examples="""
        lens-adapter segment photo.jpg "the dog on the left" "every chair" -o out.png \\
            --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b
        lens-adapter segment picture.png "the leftmost object" --model builtin --json""",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a file")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to find, one or several")
    parser.add_argument(
        "--instances", action="store_true", help='tell apart the things that a prompt names, as "both cars" does'
    )
    add_model_options(parser)
    add_device_options(parser)
    add_picture_option(parser, "overlay.png")
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result:
    head = adapter_of(args)
    require_prompts(args.prompts)
    require_name("--model", args.model)
    require_name("--adapter", args.adapter)
    if not args.image.is_file():
        raise InputError(f"There is no image file {str(args.image)!r}.")
    require_files({"--output": args.output, "--json": args.json}, args.image, args.model, args.adapter)
    import numpy as np

    from lens_adapter.builtin.demo import ONLY_ITS_WORLD
    from lens_adapter.vlm.images import load_image

    image = load_image(args.image)  # before anything large is loaded
    if args.model == BUILTIN:
        note(ONLY_ITS_WORLD)
    device = checked_device(args.device)
    with head_by_name(head).attach(*base_by_name(args.model, args.dtype, device)) as adapter:
        out = adapter.segment(image, args.prompts, instances=args.instances)
    out.save(args.output)
    note(f"Wrote {args.output}")
    lines = [
        f"{prompt}\tscore {score:.2f}\t"
        + (f"{np.count_nonzero(mask) / mask.numel():.1%} of the image" if found else "absent")
        for prompt, score, found, mask in zip(out.prompts, out.scores.tolist(), out.found, out.masks, strict=True)
    ]
    if out.instances is not None:
        counted = [len(instances) for instances in out.instances]
        lines = [f"{line}\t{count} instance{'s' * (count != 1)}" for line, count in zip(lines, counted, strict=True)]
    facts = {"image": str(args.image), "image_size": list(out.image_size), "model": args.model, "adapter": head}
    facts |= {key: getattr(adapter.config, key) for key in ("mask_threshold", "score_threshold")}
    return Result("\n".join(lines), {**facts, "picture": str(args.output), "prompts": out.to_records()})
