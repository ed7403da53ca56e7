"""Large photographs: what decoding them smaller (`draft_side`) changes, and where the CPU's seconds of `annotate` go.

    python -m benchmarks.large_pictures             # into results/large_pictures.json and two pages of the docs
    python -m benchmarks.large_pictures --render    # only write the tables of the pages again

Validation scenes of the built-in world, drawn large, saved as JPEGs of 12 megapixels at quality 90; every second one
has odd sides, every third is stored turned, as telephones do. The heads that ship are asked, on one thread, about a
thing in each scene and about one that is not there.

What changes is measured against the same file at full size, for each size that libjpeg can decode; and, to have
something to compare it with, for the same picture saved once more, at quality 80. Where the seconds go is measured in
whole runs of `annotate`: CPU seconds of its parts on all threads, each without those of the parts within it.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from io import BytesIO
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from threading import Lock, local
from time import process_time, thread_time
from typing import Any
from unittest.mock import patch

import numpy as np
import PIL
import torch
import transformers
from PIL import ExifTags, Image
from tqdm import tqdm

import lens_adapter.annotation.folder
import lens_adapter.annotation.local
import lens_adapter.annotation.run
import lens_adapter.sam.embeddings
import lens_adapter.vlm.base
from benchmarks.pages import between
from lens_adapter import LensAdapter, LensOutput, __version__, annotate, builtin
from lens_adapter.builtin.world import sample_scene
from lens_adapter.builtin.world.labelled import labelled_scenes
from lens_adapter.evaluation.metrics import Finding, measure, overlap
from lens_adapter.output import is_found
from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.vlm.base import FrozenBase
from lens_adapter.vlm.images import load_draft

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "large_pictures.json"
CHANGES_PAGE, PROFILE_PAGE = ROOT / "docs" / "annotate.md", ROOT / "docs" / "ten-million-pictures.md"
CHANGES_MARKS = "<!-- drafts: begin -->", "<!-- drafts: end -->"
PROFILE_MARKS = "<!-- large-pictures: begin -->", "<!-- large-pictures: end -->"
HEADS = ("lite", "lite-sam2")
SPLIT = "validation"
SIZES = ((3000, 4000), (3001, 4003))  # (H, W), in turn
FULL, AGAIN = "full size", "saved again at quality 80"
SIDES = {"1/2": 1024, "1/4": 700, "1/8": 350}  # what is decoded of pictures of these sizes, by which draft side
PROMPTS = ["a dog", "something you can eat"]  # of the runs
OPEN = "open and decode"
MODELS = ("base", "head and mask decoder", "SAM's image encoder")


@dataclass(frozen=True)
class Asked:
    """A picture's file, its (H, W) as shown, what is asked, and the true masks (N, h, w), at any size."""

    file: Path
    size: tuple[int, int]
    prompts: list[str]
    truth: np.ndarray


def draw(folder: Path, count: int) -> list[Asked]:
    """So many scenes as JPEGs."""
    folder.mkdir()
    said = defaultdict(list)
    for one in labelled_scenes(count, split=SPLIT):
        said[one.image_id].append(one)
    asked = []
    for number, (name, ones) in enumerate(tqdm(said.items(), desc="drawing")):
        height, width = size = SIZES[number % len(SIZES)]
        scene = sample_scene(int(name.removeprefix(f"{SPLIT}-")), SPLIT)
        picture = scene.draw(min(size)).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if number % 3 == 2:
            exif[ExifTags.Base.Orientation] = 6
            picture = picture.transpose(Image.Transpose.ROTATE_90)  # which a viewer undoes
        file = folder / f"{number:05d}.jpg"
        picture.save(file, quality=90, exif=exif)
        asked.append(Asked(file, size, [one.prompt for one in ones], np.stack([one.mask for one in ones])))
    return asked


# -- what drafts change ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One prompt: IoU of its mask with that at full size, whether it is found in both, and what it is worth."""

    iou: float
    found: bool
    found_at_full_size: bool
    finding: Finding


def changes(adapter: LensAdapter, asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """What becomes of masks, and of what is found, by how pictures were decoded."""
    ways: dict[str, list[Change]] = defaultdict(list)
    threshold = adapter.config.score_threshold
    for one in tqdm(asked, desc="changes"):
        whole = load_draft(one.file, None)
        again = BytesIO()
        whole[0].save(again, "JPEG", quality=80)
        opened = {name: load_draft(one.file, side) for name, side in SIDES.items()}
        before = _segmented(adapter, one, whole)
        ways[FULL] += _changes(before, before, one, threshold)
        for name, (picture, size) in {**opened, AGAIN: load_draft(again.getvalue(), None)}.items():
            assert size == one.size and (name == AGAIN or picture.width < whole[0].width)
            ways[name] += _changes(_segmented(adapter, one, (picture, size)), before, one, threshold)
    return {name: _summary(found, threshold) for name, found in ways.items()}


def _segmented(adapter: LensAdapter, one: Asked, opened: tuple[Image.Image, tuple[int, int]]) -> LensOutput:
    """With the masks of what is not found, as `annotate` keeps them."""
    return adapter.segment(opened[0], one.prompts, image_sizes=opened[1], score_threshold=0.0)


def _changes(after: LensOutput, before: LensOutput, one: Asked, threshold: float) -> Iterator[Change]:
    for k in range(len(one.prompts)):
        mask, other, score = after.masks[k].numpy(), before.masks[k].numpy(), after.scores[k].item()
        truth = np.asarray(Image.fromarray(one.truth[k]).resize(one.size[::-1], Image.Resampling.NEAREST))
        yield Change(
            overlap(mask, other).iou,
            is_found(score, threshold),
            is_found(before.scores[k].item(), threshold),
            Finding(overlap(mask, truth), score),
        )


def _summary(found: Sequence[Change], threshold: float) -> dict[str, float]:
    """Of all prompts; IoU of those found at full size."""
    ious = sorted(one.iou for one in found if one.found_at_full_size)
    return {
        "prompts": len(found),
        "found_at_full_size": len(ious),
        "mean_iou": mean(ious),
        "worst_iou": ious[0],
        "found_decisions_flipped": sum(one.found != one.found_at_full_size for one in found),
        "giou": measure([one.finding for one in found], threshold)["giou"],
    }


# -- where the seconds go ----------------------------------------------------------------------------------------------


class Parts:
    """CPU seconds of named parts of the program on all threads; of each without those of the parts within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock, self._thread = Lock(), local()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        within = self._thread.__dict__.setdefault("within", [])
        within.append(0.0)
        began = thread_time()
        try:
            yield
        finally:
            taken = thread_time() - began
            with self._lock:
                self.seconds[name] += taken - within.pop()
            if within:
                within[-1] += taken

    @contextmanager
    def watched(self, adapter: LensAdapter) -> Iterator[None]:
        """Inside, what `annotate` calls is counted."""
        decoder: Any = type(adapter.decoder)
        places = [
            (lens_adapter.annotation.local, "opened", OPEN),
            (lens_adapter.vlm.base, "build_inputs", "processor"),
            (lens_adapter.vlm.base, "share_inputs", "processor"),
            (lens_adapter.vlm.base, "token_layouts", "layout"),
            (FrozenBase, "read", "base"),
            (MaskDecoder, "shrink", "SAM's resizing"),
            (lens_adapter.sam.embeddings, "_content", "key of an embedding"),
            (MaskDecoder, "encode_images", "SAM's image encoder"),
            (type(adapter), "forward", "head and mask decoder"),
            (decoder, "masks", "masks at full size"),
            (lens_adapter.annotation.local, "rows_of", "run lengths and rows"),
            (lens_adapter.annotation.folder, "write_shard", "Parquet"),
            (lens_adapter.annotation.run, "facts_of", "digests, once a run"),
        ]
        with ExitStack() as stack:
            for owner, name, part in places:
                stack.enter_context(patch.object(owner, name, self._counting(getattr(owner, name), part)))
            yield

    def _counting(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        return counted


def profile(adapter: LensAdapter, folder: Path, output: Path, draft_side: int | None) -> dict[str, float]:
    """One run over a folder: CPU seconds for a picture, by part."""
    adapter.embedding_cache = None if adapter.embedding_cache is None else type(adapter.embedding_cache)()
    parts, began = Parts(), process_time()
    with parts.watched(adapter):
        report = annotate(adapter, folder, output, prompts=PROMPTS, draft_side=draft_side)
    assert report.errors == 0
    parts.seconds["all else"] = process_time() - began - sum(parts.seconds.values())
    parts.seconds.pop("digests, once a run")
    return {name: seconds / report.pictures for name, seconds in parts.seconds.items()}


# -- the pages ---------------------------------------------------------------------------------------------------------


def table_of_changes(results: dict[str, Any]) -> str:
    """Markdown: a row for each head and size."""
    lines = [
        "| head | decoded at | time to open | mean IoU | worst IoU | `found` changed | gIoU |",
        "|---" * 7 + "|",
    ]
    for head, ways in results["changes"].items():
        opening = {name: parts[OPEN] for name, parts in results["profile"][head].items()}
        for name, one in ways.items():
            time = f"{opening[name] / opening[FULL]:.2f}" if name in opening else ""
            ious = " | ".join(f"{one[key]:.3f}" for key in ("mean_iou", "worst_iou"))
            flipped = f"{one['found_decisions_flipped']} of {one['prompts']}"
            lines.append(f"| `{head}` | {name} | {time} | {ious} | {flipped} | {one['giou']:.3f} |")
    return "\n".join(lines)


def table_of_parts(results: dict[str, Any]) -> str:
    """Markdown: a row for each part, the largest first, in percent of all beside the models at full size."""
    runs = [(head, way) for head in results["profile"] for way in (FULL, "1/2")]
    columns = [results["profile"][head][way] for head, way in runs]
    whole = [_beside_the_models(results["profile"][head][FULL]) for head, _ in runs]

    def line(name: str, seconds: Iterable[float]) -> str:
        return f"| {name} | " + " | ".join(f"{one / all_:.1%}" for one, all_ in zip(seconds, whole, strict=True)) + " |"

    parts = sorted((part for part in columns[0] if part not in MODELS), key=lambda part: -columns[0][part])
    return "\n".join(
        [
            "| CPU time | " + " | ".join(f"`{head}`, {way}" for head, way in runs) + " |",
            "|---" * (len(runs) + 1) + "|",
            *(line(part, [one[part] for one in columns]) for part in parts),
            line("all beside the models", map(_beside_the_models, columns)),
            line("(the models, which are tiny)", [sum(one[part] for part in MODELS) for one in columns]),
        ]
    )


def _beside_the_models(parts: dict[str, float]) -> float:
    return sum(seconds for part, seconds in parts.items() if part not in MODELS)


def with_tables(changes_page: str, profile_page: str, results: dict[str, Any]) -> tuple[str, str]:
    """Both pages with their tables between their marks."""
    return (
        between(changes_page, *CHANGES_MARKS, table_of_changes(results)),
        between(profile_page, *PROFILE_MARKS, table_of_parts(results)),
    )


def measured(pictures: int) -> dict[str, Any]:
    """Everything."""
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": {
            "lens_adapter": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
        "pictures": pictures,
        "sizes": SIZES,
        "sides": SIDES,
        "changes": {},
        "profile": {},
    }
    with TemporaryDirectory() as place:
        folder = Path(place, "pictures")
        asked = draw(folder, pictures)
        for head in HEADS:
            with builtin.load_head(head).attach(*builtin.load_base()) as adapter:
                run = partial(profile, adapter, folder)
                found["changes"][head] = changes(adapter, asked)
                run(Path(place, head, "to warm up"), SIDES["1/2"])
                found["profile"][head] = {
                    name: run(Path(place, head, str(side)), side) for name, side in {FULL: None, **SIDES}.items()
                }
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m benchmarks.large_pictures")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="measure nothing")
    asked = parser.parse_args(arguments)
    if not asked.render:
        torch.set_num_threads(1)
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(measured(asked.pictures), indent=1) + "\n", encoding="utf-8")
    pages = [CHANGES_PAGE, PROFILE_PAGE]
    results = json.loads(asked.json.read_text(encoding="utf-8"))
    texts = with_tables(*(page.read_text(encoding="utf-8") for page in pages), results)
    for page, text in zip(pages, texts, strict=True):
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
