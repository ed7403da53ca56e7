"""Against other ways to the same mask."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from PIL import Image
from torch import Tensor

from benchmarks.harness import Comparison, Stage, Work
from benchmarks.released import ReleasedPipeline
from benchmarks.suite.registry import PROMPTS, SEVERAL, benchmark, know, paper_tap, picture, segment
from lens_adapter.vlm.anatomy import find_anatomy


@benchmark
def peer(stage: Stage) -> Iterator[Comparison]:
    """The work of the paper's released pipeline, in our own words: for each prompt the whole base with the hidden
    states of all layers, an eager fusion, one SAM decode, and an embedding of the image. Same base, same SAM, same
    dimensions of the mirror head. All read the layer that the paper reads: 14 of 32, or the same share of others. In
    the peer's favor, its base computes the logits of the last token only and keeps no cache. Where SAM's image encoder
    is left out, both are given the embedding."""
    model, processor = stage.pair
    tap = paper_tap(len(find_anatomy(model).layers))
    image, adapters = picture(), {fusion: stage.adapter(fusion, tap_layer=tap) for fusion in ("mirror", "lite")}
    mirror = adapters["mirror"]
    released = ReleasedPipeline(model, processor, mirror.config, mirror.decoder)
    embedding = mirror.decoder.encode_images([image])
    for encoded, goal in ((False, 0.55), (True, 0.7)):
        given = None if encoded else embedding
        for adapter in adapters.values():
            if encoded:
                adapter.embedding_cache = None
            else:
                know(adapter, [image])
        for count in (1, min(SEVERAL)):
            prompts = PROMPTS[:count]
            ways: dict[str, Work] = {"released pipeline": partial(_each, released, image, prompts, given)}
            for fusion, adapter in adapters.items():
                ways[f"ours, {fusion}"] = partial(segment, adapter, image, prompts)
            where = "with" if encoded else "without"
            title = f"{count} prompt{'s' if count > 1 else ''} about one image, {where} SAM's image encoder"
            yield stage.compare(title, ways, "released pipeline", goals=dict.fromkeys(list(ways)[1:], goal))


def _each(released: ReleasedPipeline, image: Image.Image, prompts: list[str], embedding: Tensor | None) -> None:
    for prompt in prompts:
        released(image, prompt, embedding)
