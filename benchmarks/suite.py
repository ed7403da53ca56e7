"""What is measured: one function per benchmark. A new one needs the decorator and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Comparison, Stage
from lens_adapter import EmbeddingCache, LensAdapter
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.prefix import share_inputs

Benchmark = Callable[[Stage], Iterator[Comparison]]
BENCHMARKS: dict[str, Benchmark] = {}

PROMPTS = [f"the {color} {thing} on the {side}" for color in ("red", "small") for thing in ("car", "dog", "cup", "hat")
           for side in ("left", "right")]  # fmt: skip
SIZE_4K = (2160, 3840)  # (H, W)


def benchmark(function: Benchmark) -> Benchmark:
    """Register a function under its name. It yields a `Comparison` for each of its tables."""
    BENCHMARKS[function.__name__] = function
    return function


def picture(seed: int = 0, size: tuple[int, int] = (480, 640)) -> Image.Image:
    """An RGB image of random patches."""
    cells = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size[::-1], Image.Resampling.NEAREST)


@benchmark
def shared_prefix(stage: Stage) -> Iterator[Comparison]:
    """Several prompts about one image: its tokens run through the base once, or with every prompt."""
    adapter, image = stage.adapter("mirror"), picture()
    _, processor = stage.pair
    template = adapter.config.prompt_template
    first = build_inputs(processor, [image], PROMPTS[:1], template)
    (layout,) = adapter.layout(first, [(image.height, image.width)])
    ways = {"1 prompt": lambda: adapter.prefill(first)}
    for count in (4, 16):
        shared = share_inputs(processor, first, int(layout.positions.max()), PROMPTS[:count], template)
        each = build_inputs(processor, [image] * count, PROMPTS[:count], template)
        assert shared is not None and adapter.prefill_shared(shared) is not None, "the base cannot share a prefix"
        ways[f"{count} prompts, image once"] = lambda shared=shared: adapter.prefill_shared(shared)
        ways[f"{count} prompts, image with each"] = lambda each=each: adapter.prefill(each)
    image_tokens, tokens = len(layout.positions), first["input_ids"].shape[1]
    note = f"{image_tokens} image tokens and {tokens - image_tokens} others for one prompt; the processor is not timed."
    yield stage.compare("Reading the base", ways, "1 prompt", [note])
    for fusion in ("mirror", "lite"):
        adapter = stage.adapter(fusion)
        ways = {
            "1 prompt": lambda adapter=adapter: adapter.segment(image, PROMPTS[0]),
            "16 prompts": lambda adapter=adapter: adapter.segment(image, PROMPTS),
            "16 prompts, one by one": lambda adapter=adapter: [adapter.segment(image, prompt) for prompt in PROMPTS],
        }
        yield stage.compare(f"`segment` with the {fusion} head, image embedding cached", ways, "1 prompt")


@benchmark
def batches(stage: Stage) -> Iterator[Comparison]:
    """Several images, one prompt each: all at once, or call after call. Each is encoded anew."""
    adapter = stage.adapter()
    adapter.embedding_cache = None
    images = [picture(seed) for seed in range(16)]
    ways = {"1 image": lambda: adapter.segment(images[0], PROMPTS[0])}
    for count in (4, 16):
        some, prompts = images[:count], PROMPTS[:count]
        ways[f"{count} images, batch_size={count}"] = lambda some=some, prompts=prompts, count=count: adapter.segment(
            some, prompts, batch_size=count
        )
        ways[f"{count} images, {count} calls"] = lambda some=some, prompts=prompts: [
            adapter.segment(image, prompt) for image, prompt in zip(some, prompts, strict=True)
        ]
    yield stage.compare("`segment` with the lite head", ways, "1 image")


@benchmark
def embedding_cache(stage: Stage) -> Iterator[Comparison]:
    """Asking about an image that was segmented before, and what the cache costs for one that was not."""
    for name, size in (("480 x 640", (480, 640)), ("2160 x 3840", SIZE_4K)):
        adapter, image = stage.adapter(), picture(size=size)
        full, none = EmbeddingCache(), EmbeddingCache(max_bytes=0)
        ways = {
            "no cache": lambda adapter=adapter, image=image: _segment(adapter, image, None),
            "an image it has": lambda adapter=adapter, image=image, cache=full: _segment(adapter, image, cache),
            "an image it has not": lambda adapter=adapter, image=image, cache=none: _segment(adapter, image, cache),
        }
        yield stage.compare(f"`segment` of one image of {name} pixels with the lite head", ways, "no cache")


def _segment(adapter: LensAdapter, image: Image.Image, cache: EmbeddingCache | None) -> None:
    adapter.embedding_cache = cache
    adapter.segment(image, PROMPTS[0])


@benchmark
@torch.no_grad()
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
    logits = 20 * (radii - (x**2 + (2 * y + 1) ** 2).sqrt()) + 0.5 * torch.randn(
        count, 4 * grid, 4 * grid, device=stage.device
    )
    masks = decoder.masks(logits, SIZE_4K, 0.4)
    ways = {
        "SAM's mask decoder": lambda: decoder(embedding, index, sparse),
        "masks": lambda: decoder.masks(logits, SIZE_4K, 0.4),
        "logits, then masks": lambda: (decoder.upsample(logits, SIZE_4K) > 0.4).cpu(),
    }
    notes = [
        f"{count} prompts at 2160 x 3840, the objects cover {masks.float().mean():.0%} on average.",
        f"Float tensors at the image's size: 1 for masks ({_mebibytes(1)}), {count} for logits ({_mebibytes(count)}).",
    ]
    yield stage.compare("From low-resolution logits to masks on the CPU", ways, "SAM's mask decoder", notes)


def _mebibytes(count: int) -> str:
    return f"{count * SIZE_4K[0] * SIZE_4K[1] * 4 / 2**20:.0f} MiB"
