"""The benchmarks by name, and what several of them ask about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from benchmarks.harness import Comparison, Stage
from lens_adapter import EmbeddingCache, LensAdapter, LensConfig
from lens_adapter.vlm.inputs import build_inputs

Benchmark = Callable[[Stage], Iterator[Comparison]]
BENCHMARKS: dict[str, Benchmark] = {}

PROMPTS = [f"the {color} {thing} on the {side}" for color in ("red", "small") for thing in ("car", "dog", "cup", "hat")
           for side in ("left", "right")]  # fmt: skip
PAPER_TAP = 14 / 32  # the layer that the paper's heads read, of those of LLaVA-1.5-7B
SEVERAL = (4, 16)  # prompts or images at once
PICTURE = (480, 640)  # (H, W), as in COCO


def benchmark(function: Benchmark) -> Benchmark:
    """Register a function under its name. It yields a `Comparison` for each of its tables; nothing has gradients."""
    BENCHMARKS[function.__name__] = torch.no_grad()(function)
    return BENCHMARKS[function.__name__]


def paper_tap(layers: int) -> int:
    """The layer of a decoder with so many that is read by a head like the paper's."""
    return round(PAPER_TAP * layers)


def picture(seed: int = 0, size: tuple[int, int] = PICTURE) -> Image.Image:
    """An RGB image of random patches."""
    cells = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size[::-1], Image.Resampling.NEAREST)


def segment(adapter: LensAdapter, images: Any, prompts: Any, **options: Any) -> Any:
    """`adapter.segment` with masks that cover whole images. Those of an untrained head are empty, and cost nothing to
    bring to an image's size; these cost the most there is."""
    return adapter.segment(images, prompts, mask_threshold=0.0, **options)


def know(adapter: LensAdapter, images: Sequence[Image.Image]) -> None:
    """Let the adapter have the embeddings of these images in its cache, and no others."""
    adapter.embedding_cache = EmbeddingCache(2**30)
    adapter.embedding_cache.encode(adapter.decoder, images)


def one_by_one(adapter: LensAdapter, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    """A call of `segment` for each pair."""
    for image, prompt in zip(images, prompts, strict=True):
        segment(adapter, image, prompt)


def ask(stage: Stage, prompts: Sequence[str] = PROMPTS[:1], tokens: int | None = None) -> BatchFeature:
    """What the stage's processor makes of prompts about one picture, on the device.

    Args:
        prompts: one per row.
        tokens: as many as these are to be, by words added to the only prompt.
    """
    model, processor = stage.pair
    template = LensConfig.from_model(model).prompt_template

    def built(texts: Sequence[str]) -> BatchFeature:
        return build_inputs(processor, [picture()] * len(texts), texts, template).to(stage.device)

    inputs = built(prompts)
    if tokens is None:
        return inputs
    (prompt,) = prompts
    return built([prompt + " please" * (tokens - inputs["input_ids"].shape[1])])
