"""What `lens-adapter demo` shows: the shipped models at work, on scenes of their world or on a picture of yours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from lens_adapter import builtin
from lens_adapter.adapter import LensAdapter
from lens_adapter.data.expressions import Expression, Speaker
from lens_adapter.data.scenes import Scene, sample_scene
from lens_adapter.evaluation import ask, overlap
from lens_adapter.signals import LensOutput
from lens_adapter.vlm.inputs import build_inputs, load_image
from lens_adapter.visualize import Panel, contact_sheet

PICTURE_SIZE = 480
# Test scenes with many objects; for each, the kinds of expression to show.
SHOWN = {
    4: ("attribute", "spatial", "several"),
    11: ("spatial", "ordinal", "attribute"),
    23: ("several", "spatial", "absent"),
}
ONLY_ITS_WORLD = (
    "The built-in model knows one small world only: colored shapes, and the words of lens_adapter/data. On other "
    "pictures its masks and answers mean little. For real photographs attach a head to a real model (see README)."
)


def run_demo(image: str | Path | None, prompts: Sequence[str], output: Path, head: str = "mirror") -> None:
    """Print a table of results, an answer before and after attaching and where the time went; write a contact sheet.

    Args:
        image: a picture of the user's own, or None for three test scenes.
        prompts: what to find in it; needed with `image`.
        output: where the PNG goes.
        head: "mirror" or "lite".
    """
    model, processor = builtin.load_base()
    if image is None:
        requests = [_scene_request(index, kinds) for index, kinds in SHOWN.items()]
    else:
        print(ONLY_ITS_WORLD, end="\n\n")
        requests = [(load_image(image), [(text, None) for text in prompts])]
    pictures = [picture for picture, _ in requests]
    question = "how many objects ?"
    before = ask(model, processor, pictures, [question] * len(pictures))
    adapter = builtin.load_head(head).attach(model, processor)
    outputs = adapter.segment(pictures, [[text for text, _ in wanted] for _, wanted in requests])
    after = ask(model, processor, pictures, [question] * len(pictures))
    panels = []
    print(f"{'prompt':<44} {'keypoints (x, y)':<36} {'score':>5} {'IoU':>5}")
    for out, (_, wanted), answer in zip(outputs, requests, after, strict=True):
        ious = [_iou(out, k, truth) for k, (_, truth) in enumerate(wanted)]
        panels.append(Panel(out, ious, question.replace(" ?", "?"), answer))
        for k, (text, _) in enumerate(wanted):
            points = " ".join(f"({x:.0f}, {y:.0f})" for x, y in out.keypoints[k].tolist()[:3]) or "none"
            print(f"{text:<44.44} {points:<36.36} {out.scores[k]:5.2f} {_shown(ious[k]):>5}")
    verdict = "identical" if before == after else "DIFFERENT: please report this"
    print(f"\nThe model's answers to {question!r} before attaching: {before}, while attached: {after} ({verdict}).")
    print("\nWhere the time goes (share of one call with three prompts or yours):")
    for part, share in time_split(adapter, pictures[0], [text for text, _ in requests[0][1]]).items():
        print(f"  {part:<34} {share:4.0%}")
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(
        panels,
        title="LENS: segmentation from the attention of a frozen vision-language model",
        subtitle=f"Shipped tiny LLaVA (never trained on masks) + LENS head “{head}” + tiny SAM",
    ).save(output)
    print(f"\nWrote {output}")


def time_split(adapter: LensAdapter, picture: Image, prompts: Sequence[str], repeats: int = 3) -> dict[str, float]:
    """Share of each part in one `segment` call, the median of several."""
    size = [(picture.height, picture.width)] * len(prompts)
    config, decoder = adapter.config, adapter.decoder
    index = torch.zeros(len(prompts), dtype=torch.long, device=adapter.device)
    spent: dict[str, list[float]] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = work()
        spent.setdefault(part, []).append(perf_counter() - start)
        return result

    with torch.no_grad():
        for _ in range(repeats):
            images = [picture] * len(prompts)
            inputs = timed("inputs (processor)", lambda: build_inputs(adapter.processor, images, prompts, config.prompt_template))
            layouts = timed("layout", lambda: adapter.layout(inputs, size))
            signals = timed("prefill of the base (early exit)", lambda: adapter.prefill(inputs))
            encode_points = lambda points: decoder.point_encoding(points, size)  # noqa: E731
            found = timed("LENS head", lambda: adapter.head(signals, layouts, encode_points, decoder.not_a_point))
            embedding = timed("SAM image encoder (once per image)", lambda: decoder.encode_images([picture]))
            timed("SAM mask decoder", lambda: decoder(embedding, index, found.sparse))
    medians = {part: float(np.median(seconds)) for part, seconds in spent.items()}
    return {part: seconds / sum(medians.values()) for part, seconds in medians.items()}


def _scene_request(index: int, kinds: Sequence[str]) -> tuple[Image, list[tuple[str, np.ndarray | None]]]:
    """The picture of a test scene and expressions about it with their true masks."""
    scene = sample_scene(index, "test", count=(5, 8))
    masks = scene.masks(PICTURE_SIZE)
    wanted = [(e.text, masks[list(e.targets)].any(axis=0)) for e in _say(scene, kinds)]
    return scene.draw(PICTURE_SIZE), wanted


def _say(scene: Scene, kinds: Sequence[str]) -> list[Expression]:
    """One expression of each kind that the scene has any of; always the same ones."""
    speaker = Speaker(scene, np.random.default_rng([scene.seed, 10]))
    tries = [next((e for _ in range(200) if (e := speaker.expression(kind))), None) for kind in kinds]
    return [expression for expression in tries if expression is not None]


def _iou(out: LensOutput, index: int, truth: np.ndarray | None) -> float | None:
    return None if truth is None else overlap(out.masks[index].numpy(), truth).iou


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
