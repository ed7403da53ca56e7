"""What `lens-adapter demo` shows: the shipped models at work, on scenes of their world or on a picture of yours."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from lens_adapter import builtin
from lens_adapter.adapter import LensAdapter
from lens_adapter.builtin.names import ONLY_ITS_WORLD
from lens_adapter.builtin.world import Scene, sample_scene
from lens_adapter.evaluation import overlap
from lens_adapter.output import LensOutput
from lens_adapter.pictures.contact_sheet import contact_sheet
from lens_adapter.pictures.saving import save_picture
from lens_adapter.sam.families import family_title
from lens_adapter.vlm.images import load_image

PICTURE_SIZE = 480


@dataclass(frozen=True)
class Shown:
    """A test scene of the contact sheet.

    Attributes:
        index: of the scene in the test split.
        prompts: text -> the objects it names.
        question: what the frozen model is asked, before and after attaching.
    """

    index: int
    prompts: dict[str, tuple[int, ...]]
    question: str

    def scene(self) -> Scene:
        return sample_scene(self.index, "test")


# Chosen, from scenes behind those of the published figures: few things, read at a glance, prompts of many kinds that
# work. How often they do, the figures say.
SHOWN = (
    Shown(
        index=148846,
        prompts={"the dog left of the pizza": (1,), "something you can eat": (4,), "the animal that gives wool": (0,)},
        question="how many animals ?",
    ),
    Shown(
        index=4918,
        prompts={
            "what you would use to cut paper": (3,),
            "everything that has wheels": (0, 1, 2),
            "both cars": (1, 2),
        },
        question="can you eat the watermelon ?",
    ),
    Shown(
        index=27603,
        prompts={
            "the second cat from the left": (3,),
            "everything that makes music": (0, 1),
            "something you can eat": (),
        },
        question="how many cats ?",
    ),
)


@dataclass(frozen=True)
class DemoPicture:
    """A picture, what to find in it with the true masks (bool (H, W), or None), and a question about it."""

    picture: Image
    truths: Mapping[str, np.ndarray | None]
    question: str

    @property
    def prompts(self) -> list[str]:
        return list(self.truths)


@dataclass(frozen=True)
class Demonstration:
    """What the demo found.

    Attributes:
        requests: what was asked.
        outputs: what the head found, one per request.
        ious: per request and prompt, the overlap with the true mask; None where that is not known.
        before, after: the frozen model's answers, without a head and with one attached.
        seconds: part of a call -> what it takes, for the first request.
    """

    requests: list[DemoPicture]
    outputs: list[LensOutput]
    ious: list[list[float | None]]
    before: list[str]
    after: list[str]
    seconds: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{'prompt':<42} {'keypoints (x, y)':<34} {'score':>5} {'IoU':>5}"]
        for out, values in zip(self.outputs, self.ious, strict=True):
            lines += _table_lines(out, values)
        lines.append("\nThe frozen model's answers, before attaching and while attached:")
        for request, first, second in zip(self.requests, self.before, self.after, strict=True):
            verdict = "identical" if first == second else "DIFFERENT: please report this"
            lines.append(f"  {request.question:<42} {first!r}, {second!r} ({verdict})")
        count = len(self.requests[0].prompts)
        lines.append(f"\nWhere the time of one call goes, an image with {count} prompt{'s' * (count > 1)}:")
        for part, spent in self.seconds.items():
            share = spent / sum(self.seconds.values())
            lines.append(f"  {part:<42} {1000 * spent:6.1f} ms {share:5.0%}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: per image what was found, with the overlap, and both answers; seconds per part."""
        rows = zip(self.requests, self.outputs, self.ious, self.before, self.after, strict=True)
        images = [
            {
                "prompts": [{**record, "iou": iou} for record, iou in zip(out.to_records(), ious, strict=True)],
                "question": request.question,
                "answer_before": before,
                "answer_attached": after,
            }
            for request, out, ious, before, after in rows
        ]
        return {"images": images, "seconds": self.seconds}


def run_demo(image: str | Path | None, prompts: Sequence[str], output: Path, head: str) -> Demonstration:
    """Segment, ask before and after attaching, measure where the time goes; write a contact sheet.

    Args:
        image: a picture of the user's own, or None for three test scenes.
        prompts: what to find in it; needed with `image`.
        output: where the contact sheet goes.
        head: a key of `builtin.HEADS`.

    Raises:
        LensError: the picture or a prompt cannot be used, or the models are not there.
    """
    if image is None:
        requests = [_scene_request(shown) for shown in SHOWN]
    else:
        print(ONLY_ITS_WORLD, file=sys.stderr)
        requests = [DemoPicture(load_image(image), dict.fromkeys(prompts), "how many objects ?")]
    pictures = [request.picture for request in requests]
    questions = [request.question for request in requests]
    model, processor = builtin.load_base()
    before = builtin.ask(model, processor, pictures, questions)
    with builtin.load_head(head).attach(model, processor) as adapter:
        outputs = adapter.segment(pictures, [request.prompts for request in requests])
        after = builtin.ask(model, processor, pictures, questions)
        seconds = time_parts(adapter, requests[0].picture, requests[0].prompts)
        sam = family_title(adapter.config.sam)
    ious = [_ious(out, request) for out, request in zip(outputs, requests, strict=True)]
    panels = [
        out.to_panel(ious=values, question=request.question.replace(" ?", "?"), answer=answer)
        for out, values, request, answer in zip(outputs, ious, requests, after, strict=True)
    ]
    sheet = contact_sheet(
        panels,
        title="A frozen vision-language model points",
        subtitle=f"Shipped tiny LLaVA (never trained on masks) + LENS head “{head}” + tiny {sam}",
    )
    save_picture(sheet, output)
    return Demonstration(requests, outputs, ious, before, after, seconds)


def time_parts(adapter: LensAdapter, picture: Image, prompts: Sequence[str], repeats: int = 5) -> dict[str, float]:
    """Part -> seconds it takes in one `segment` of a picture with all prompts at once, the median of several."""
    runs = [_timed_parts(adapter, picture, prompts) for _ in range(repeats)]
    return {part: median(run[part] for run in runs) for part in runs[0]}


@torch.no_grad()
def _timed_parts(adapter: LensAdapter, picture: Image, prompts: Sequence[str]) -> dict[str, float]:
    count, decoder = len(prompts), adapter.decoder
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        start = perf_counter()
        yield
        seconds[part] = perf_counter() - start

    with timed("frozen model: inputs, prefill with early exit"):
        reading = adapter.base.read([picture] * count, prompts)
    with timed("LENS head"):
        found = adapter.head(reading)
    with timed("SAM image encoder, once per image"):
        embedding = decoder.encode_images([picture])
    with timed("SAM mask decoder"):
        sparse = decoder.sparse_prompts(found, reading.image_sizes)
        logits, *_ = decoder(embedding, torch.zeros(count, dtype=torch.long, device=adapter.device), sparse)
        decoder.masks(logits, (picture.height, picture.width), adapter.config.mask_threshold)
    return seconds


def _scene_request(shown: Shown) -> DemoPicture:
    scene = shown.scene()
    masks = scene.masks(PICTURE_SIZE)
    truths = {text: np.asarray(masks[list(targets)].any(axis=0)) for text, targets in shown.prompts.items()}
    return DemoPicture(scene.draw(PICTURE_SIZE), truths, shown.question)


def _ious(out: LensOutput, request: DemoPicture) -> list[float | None]:
    """IoU per prompt, None where the truth is not known."""
    pairs = zip(out.masks.numpy(), request.truths.values(), strict=True)
    return [None if truth is None else overlap(mask, truth).iou for mask, truth in pairs]


def _table_lines(out: LensOutput, ious: Sequence[float | None]) -> Iterator[str]:
    for k, prompt in enumerate(out.prompts):
        points = " ".join(f"({x:.0f}, {y:.0f})" for x, y in out.keypoints[k].tolist()[:3]) or "none"
        iou = "" if ious[k] is None else f"{ious[k]:.2f}"
        yield f"{prompt:<42.42} {points:<34.34} {out.scores[k].item():5.2f} {iou:>5}"
