"""`lens-adapter segment`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_adapter.cli.arguments import (
    BUILTIN,
    Commands,
    add_command,
    add_device_options,
    add_json_option,
    add_model_options,
    add_threshold_options,
    pair_of,
    picture,
    require_name,
    require_prompts,
)
from lens_adapter.cli.loading import base_by_name, checked_device, head_by_name
from lens_adapter.cli.outputs import require_files, require_folder_for
from lens_adapter.cli.result import Result, note
from lens_adapter.errors import InputError

if TYPE_CHECKING:
    from lens_adapter.output import LensOutput


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "segment",
        run,
        help="segment one image, or a few, with any model and head",
        description="""
        Finds what each prompt names in an image, prints a score and an area per prompt, and draws the masks.

        A score is the head's own estimate of its mask's quality, in [0, 1]; below the head's score threshold what a
        prompt names is absent, and its mask is empty. Words that the model has no token for are named: what they mean
        it cannot know. With --masks: a PNG per prompt. With --json: masks as COCO RLE, and keypoints, too. With
        --instances: how many things each prompt names, an outline around each and, with --json, a mask.

        Without --model: the one that ships. For many pictures there is `lens-adapter annotate`.""",
        examples="""
        lens-adapter segment photo.jpg "the dog on the left" "every chair" -o out.png \\
            --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b
        lens-adapter segment picture.png "the leftmost object" --json
        lens-adapter segment picture.png "a dog" --score-threshold 0 --masks masks

        Several images, and the same prompts about each; overlays go to a folder:
        lens-adapter segment one.png "a dog" "a cat" --also two.png three.png -o overlays""",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a file")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to find, one or several")
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], metavar="IMAGE", help="more images, about which the same is asked"
    )
    parser.add_argument(
        "--instances", action="store_true", help='tell apart the things that a prompt names, as "both cars" does'
    )
    add_model_options(parser)
    add_threshold_options(parser)
    add_device_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="where the overlay goes; default: overlay.png. Of several images a folder; default: overlays",
    )
    parser.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="also write each mask there, as a PNG of 0 and 255"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result:
    if args.model is None and args.adapter is None:
        args.model = BUILTIN
    model, head = pair_of(args)
    images: list[Path] = [args.image, *args.also]
    overlays = _overlays(args, images)
    if files := [text for text in args.prompts if Path(text).suffix and Path(text).is_file()]:
        args.parser.error(f"{files[0]!r} is a file and stands where a prompt does; more images go behind --also")
    require_prompts(args.prompts)
    require_name("--model", model)
    require_name("--adapter", head)
    for image in images:  # a look that needs no import; what is wrong with a URL is said below
        if not image.exists() and ":/" not in str(image):
            raise InputError(f"There is no image file {str(image)!r}.")
    from lens_adapter.builtin.names import ONLY_ITS_WORLD
    from lens_adapter.vlm.images import load_image

    pictures = [load_image(image) for image in images]  # before anything large is loaded
    flags = ["--output"] if len(images) == 1 else [f"--output, for {image}," for image in images]
    require_files({**dict(zip(flags, overlays, strict=True)), "--json": args.json}, images, model, head)
    if args.masks:
        require_folder_for("--masks", args.masks, images, [image.parent for image in images], model, head)
    if model == BUILTIN:
        note(ONLY_ITS_WORLD)
    device = checked_device(args.device)
    thresholds: dict[str, Any] = {"mask_threshold": args.mask_threshold, "score_threshold": args.score_threshold}
    with head_by_name(head).attach(*base_by_name(model, args.dtype, device)) as adapter:
        used = adapter.config.thresholds(**thresholds)
        outputs = adapter.segment(pictures, [args.prompts] * len(pictures), instances=args.instances, **thresholds)
    lines, found = [], []
    for number, (image, overlay, out) in enumerate(zip(images, overlays, outputs, strict=True), 1):
        out.save(overlay)
        note(f"Wrote {overlay}")
        record = {"image": str(image), "image_size": list(out.image_size), "picture": str(overlay)}
        masks = []
        if args.masks:
            masks = out.save_masks(args.masks if len(images) == 1 else args.masks / _name(number, image))
            note(f"Wrote {len(masks)} mask{'s' * (len(masks) != 1)} to {masks[0].parent}")
        records = out.to_records()
        if args.masks:
            for one, file in zip(records, masks, strict=True):
                one["mask"] = str(file)
        found.append({**record, "prompts": records})
        lines += [line if len(images) == 1 else f"{image}\t{line}" for line in _lines(out, used.score)]
    facts = {"model": model, "adapter": head, "mask_threshold": used.mask, "score_threshold": used.score}
    return Result("\n".join(lines), {**facts, **(found[0] if len(found) == 1 else {"images": found})})


def _overlays(args: argparse.Namespace, images: Sequence[Path]) -> list[Path]:
    """Where the overlay of each image goes."""
    if len(images) > 1:
        folder = args.output or Path("overlays")
        if folder.suffix and not folder.is_dir():
            args.parser.error(f"argument -o/--output: overlays of several images go to a folder; got {str(folder)!r}")
        return [folder / f"{_name(number, image)}.png" for number, image in enumerate(images, 1)]
    try:
        overlay = picture(str(args.output or "overlay.png"))
    except argparse.ArgumentTypeError as error:
        args.parser.error(f"argument -o/--output: {error}")
    return [overlay]


def _name(number: int, image: Path) -> str:
    return f"{number}-{image.stem}"


def _lines(out: LensOutput, threshold: float) -> list[str]:
    """A line per prompt: score, and what that means."""
    import numpy as np

    lines = []
    for k, (prompt, unknown) in enumerate(zip(out.prompts, out.unknown_words, strict=True)):
        score, least = _told_apart(float(out.scores[k]), threshold)
        judged = [f"{np.count_nonzero(out.masks[k]) / out.masks[k].numel():.1%} of the image"] if out.found[k] else []
        judged += [f"not understood: {', '.join(unknown)}"] if unknown else []
        line = f"{prompt}\tscore {score}\t{', '.join(judged) or f'absent, below the threshold {least}'}"
        if out.instances is not None:
            count = len(out.instances[k])
            line += f"\t{count} instance{'s' * (count != 1)}"
        lines.append(line)
    return lines


def _told_apart(score: float, threshold: float) -> tuple[str, str]:
    """Both with as many digits, two at least, as it takes to see which is larger."""
    for digits in range(2, 7):
        texts = f"{score:.{digits}f}", f"{threshold:.{digits}f}"
        if texts[0] != texts[1] or score >= threshold:
            break
    return texts
