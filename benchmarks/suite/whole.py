"""`segment` as a whole: where its time goes, and how it grows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks.harness import Comparison, Stage, Work
from benchmarks.suite.registry import PROMPTS, benchmark, know, picture, segment
from benchmarks.suite.steps import Steps

FUSIONS = ("mirror", "lite")
SIDES = (8, 12, 24, 36, 48)  # image tokens along a side
COUNTS = (1, 2, 4, 8, 16)  # prompts, and images
LAYERS = (4, 8, 16, 32)
FEW = 8  # layers of the bases with more image tokens, of which there are several at a time


@benchmark
def profile(stage: Stage) -> Iterator[Comparison]:
    """Where the time of `segment` goes: one image that was not seen before, one prompt, a mask that covers the
    image; each part is run by itself and set against the whole."""
    for fusion in FUSIONS:
        adapter = stage.adapter(fusion)
        adapter.embedding_cache = None
        steps, sam = Steps(adapter), adapter.config.sam
        ways: dict[str, Work] = {
            "`segment`": steps.segment,
            "processor": steps.process,
            "base, as far as it is read": steps.read,
            "head": steps.point,
            "SAM's image encoder": steps.encode,
            "SAM's mask decoder": steps.decode,
            "masks at the image's size": steps.enlarge,
        }
        found = stage.compare(f"One image, {fusion} head", ways, "`segment`")
        together = sum(row.ratio for row in found.rows[1:])
        found.notes.append(
            f"SAM's encoder: {sam['depth']} layers of width {sam['embed_dim']}. The parts, each by itself, make up "
            f"{together:.0%} of the whole."
        )
        yield found


@benchmark
def growth(stage: Stage) -> Iterator[Comparison]:
    """How `segment` grows with what it is given, image embeddings cached. Memory is that of tensors at the peak, beyond
    weights. For the first two, bases are rebuilt with other numbers of image tokens (and 8 layers) or of layers; the
    tapped layer is the middle one."""
    for fusion in FUSIONS:
        sides = {side**2: {"side": side, "layers": FEW} for side in SIDES}
        yield from _grow(stage, fusion, "image tokens", sides)
        yield from _grow(stage, fusion, "layers of the base", {layers: {"layers": layers} for layers in LAYERS})
        adapter = stage.adapter(fusion)
        pictures = [picture(seed) for seed in range(max(COUNTS))]
        know(adapter, pictures)
        asked = {count: partial(segment, adapter, pictures[0], PROMPTS[:count]) for count in COUNTS}
        yield from _both(stage, fusion, "prompts about one image", asked)
        asked = {
            count: partial(segment, adapter, pictures[:count], PROMPTS[:count], batch_size=count) for count in COUNTS
        }
        yield from _both(stage, fusion, "images in one batch, a prompt each", asked)


def _grow(stage: Stage, fusion: str, axis: str, sizes: dict[int, dict[str, int]]) -> Iterator[Comparison]:
    """Over bases of several sizes."""
    adapters = {place: replace(stage, **size).adapter(fusion) for place, size in sizes.items()}
    for adapter in adapters.values():
        know(adapter, [picture()])
    asked = {place: partial(segment, adapter, picture(), PROMPTS[0]) for place, adapter in adapters.items()}
    yield from _both(stage, fusion, axis, asked)


def _both(stage: Stage, fusion: str, axis: str, asked: dict[int, Work]) -> Iterator[Comparison]:
    """Time and memory of `asked`, by place on the axis."""
    ways = {f"{place} {axis}": work for place, work in asked.items()}
    at, title, first = dict(zip(ways, asked, strict=True)), f"{fusion}: {axis}", next(iter(ways))
    yield stage.compare(title, ways, first).place(at)
    found, _ = stage.compare_memory(title, ways, first)
    yield found.place(at)
