"""Images: encoding them once, several at a time, with smaller encoders, and bringing masks back to their size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image

from benchmarks.harness import Comparison, Stage, Work
from benchmarks.memory import in_words
from benchmarks.suite.registry import PICTURE, PROMPTS, SEVERAL, benchmark, know, one_by_one, picture, segment
from lens_adapter import EmbeddingCache, LensAdapter, LensConfig, LensOutput
from lens_adapter.config import SAM_VARIANTS
from lens_adapter.sam.segment_anything import SamDecoder

SIZE_4K = (2160, 3840)  # (H, W)


@benchmark
def batches(stage: Stage) -> Iterator[Comparison]:
    """Several images at once, or call after call. One by one has the same work to do: a ratio below 1 is what a batch
    saves. Of known images the embeddings are in the cache; new ones are encoded."""
    adapter, images = stage.adapter(), [picture(seed) for seed in range(max(SEVERAL))]
    for kind, counts in (("known", (1, *SEVERAL)), ("new", SEVERAL[:1])):
        if kind == "known":
            know(adapter, images)
        else:
            adapter.embedding_cache = None
        for count in counts:
            some, prompts = images[:count], PROMPTS[:count]
            ways: dict[str, Work] = {
                "one by one": partial(one_by_one, adapter, some, prompts),
                f"batch_size={count}": partial(segment, adapter, some, prompts, batch_size=count),
            }
            yield stage.compare(f"Images: {count} {kind}, a prompt each; lite head", ways, "one by one")
    know(adapter, images)
    count = min(SEVERAL)
    some, prompts = images[:count], [PROMPTS[count * k : count * (k + 1)] for k in range(count)]
    pairs = [(image, prompt) for image, each in zip(some, prompts, strict=True) for prompt in each]
    ways = {
        "one by one": partial(one_by_one, adapter, *zip(*pairs, strict=True)),
        "image by image": partial(segment, adapter, some, prompts),
        f"batch_size={count**2}": partial(segment, adapter, some, prompts, batch_size=count**2),
    }
    yield stage.compare(f"Images: {count} known, {count} prompts each; lite head", ways, "one by one")


@benchmark
def embedding_cache(stage: Stage) -> Iterator[Comparison]:
    """Asking about an image that was segmented before, and what the cache costs for one that was not."""
    adapter = stage.adapter()
    for size in (PICTURE, SIZE_4K):
        image, full = picture(size=size), EmbeddingCache()
        full.encode(adapter.decoder, [image])
        ways: dict[str, Work] = {
            "no cache": partial(_segment, adapter, image, None),
            "an image it has": partial(_segment, adapter, image, full),
            "an image it has not": partial(_segment, adapter, image, EmbeddingCache(max_bytes=0)),
        }
        yield stage.compare(f"`segment` of an image of {size[0]} x {size[1]}, lite head", ways, "no cache")


def _segment(adapter: LensAdapter, image: Image.Image, cache: EmbeddingCache | None) -> None:
    adapter.embedding_cache = cache
    adapter.segment(image, PROMPTS[0])


@benchmark
def encoders(stage: Stage) -> Iterator[Comparison]:
    """SAM's image encoder takes most of what an image costs; its smaller relatives fit the same head. Random weights:
    what a smaller one costs in quality is not measured here."""
    image, ways = picture(), {}
    for name in sorted(SAM_VARIANTS, key=lambda name: SAM_VARIANTS[name]["embed_dim"] * SAM_VARIANTS[name]["depth"]):
        torch.manual_seed(0)
        sam = SamDecoder({**LensConfig(fusion="lite", sam=name).sam, "include_image_encoder": True})
        ways[name] = partial(sam.to(stage.device).eval().encode_images, [image])
    yield stage.compare("SAM's image encoder, one image", ways, "vit_b")


@benchmark
def postprocess(stage: Stage) -> Iterator[Comparison]:
    """From the mask decoder's logits to masks of 4K images."""
    adapter = stage.adapter()
    decoder, sam = adapter.decoder, adapter.config.sam
    grid, count = sam["image_size"] // sam["patch_size"], 16
    embedding = torch.randn(1, sam["out_channels"], grid, grid, device=stage.device)
    index = torch.zeros(count, dtype=torch.long, device=stage.device)
    sparse = torch.randn(count, 17, sam["out_channels"], device=stage.device)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 4 * grid, device=stage.device)] * 2, indexing="ij")
    radii = torch.linspace(0.1, 0.5, count, device=stage.device)[:, None, None]
    noise = torch.randn(count, 4 * grid, 4 * grid, device=stage.device)
    logits = 20 * (radii - (x**2 + (2 * y + 1) ** 2).sqrt()) + 0.5 * noise
    masks = decoder.masks(logits, SIZE_4K, 0.6)
    points, none = [torch.zeros(0, 2)] * count, [torch.zeros(0)] * count

    def run_lengths() -> list[dict[str, Any]]:
        found = decoder.masks(logits, SIZE_4K, 0.6)
        texts, maps = PROMPTS[:count], torch.zeros(count, 1, 1)
        return LensOutput(texts, SIZE_4K, found, torch.zeros(count), points, none, maps).to_coco_rle()

    ways: dict[str, Work] = {
        "SAM's mask decoder": partial(decoder, embedding, index, sparse),
        "masks": partial(decoder.masks, logits, SIZE_4K, 0.6),
        "masks and their run lengths": run_lengths,
        "logits, then masks": lambda: (decoder.upsample(logits, SIZE_4K) > 0.4).cpu(),
    }
    title = "From low-resolution logits to masks on the CPU"
    notes = [f"{count} prompts at 2160 x 3840, the objects cover {masks.float().mean():.0%} on average."]
    yield stage.compare(title, ways, "SAM's mask decoder", notes, goals={"masks and their run lengths": 0.1})
    found, peaks = stage.compare_memory(title, ways, "SAM's mask decoder")
    found.notes.append(
        f"masks: {in_words(peaks['masks'])}, beside the result, {in_words(masks.nbytes)}, held by NumPy."
    )
    yield found
