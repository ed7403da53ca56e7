"""Every SAM: what its image encoder and its mask decoder cost, and a whole call with it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import torch
from PIL import Image

from benchmarks.harness import Comparison, Stage, Work
from benchmarks.released import ReleasedPipeline
from benchmarks.suite.registry import PROMPTS, benchmark, paper_tap, picture, segment
from lens_adapter import LensAdapter, LensConfig
from lens_adapter.sam.build import build_decoder
from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.sam.families import installed_families
from lens_adapter.sam.published import PUBLISHED, SEGMENT_ANYTHING
from lens_adapter.vlm.anatomy import find_anatomy

FIRST = "vit_b"
PAPER = "vit_h"  # what the paper decodes with
BESIDE = ("vit_b", "sam2.1-large", "sam2.1-small", "sam2.1-tiny")  # a whole call with each
GOAL, GOAL_OF = 0.45, "sam2.1-small"


def buildable() -> list[str]:
    """Those of `PUBLISHED` that can be built here: of installed families, with their dimensions in the table."""
    installed = installed_families()
    return [
        name
        for name, one in PUBLISHED.items()
        if one.family == SEGMENT_ANYTHING
        or (installed[one.family] and one.config is not None and (one.family != "edgetam" or find_spec("timm")))
    ]


def with_random_weights(name: str, stage: Stage) -> MaskDecoder:
    """A published SAM's dimensions, image encoder included."""
    torch.manual_seed(0)
    sam = {**LensConfig(fusion="lite", sam={"variant": name}).sam, "include_image_encoder": True}
    return build_decoder(sam).to(stage.device, stage.dtype).eval()


@benchmark
def sams(stage: Stage) -> Iterator[Comparison]:
    """Every published SAM whose dimensions are known here, with random weights: encoding one picture, and decoding one
    prompt about it. What a smaller one costs in quality is not measured here."""
    image, size, index = picture(), (480, 640), torch.zeros(1, dtype=torch.long, device=stage.device)
    encode: dict[str, Work] = {}
    decode: dict[str, Work] = {}
    for name in buildable():
        decoder = with_random_weights(name, stage)
        embedding = decoder.encode_images([image])
        sparse = decoder.clicks(torch.tensor([[[0.5, 0.5]]], device=stage.device), [size])
        encode[name] = partial(decoder.encode_images, [image])
        decode[name] = partial(decoder, embedding, index, sparse)
    for title, ways in (("Encoding one picture", encode), ("Decoding one prompt", decode)):
        yield stage.compare(title, ways, FIRST)
        yield stage.compare_memory(title, ways, FIRST)[0]


@benchmark
def peer_with_other_sams(stage: Stage) -> Iterator[Comparison]:
    """As `peer`, one prompt about a new picture, SAM's image encoder included: the released pipeline with the paper's
    SAM, and ours with others. All read the layer that the paper reads."""
    model, processor = stage.pair
    tap, image = paper_tap(len(find_anatomy(model).layers)), picture()
    adapters = {fusion: stage.adapter(fusion, tap_layer=tap, sam=PAPER) for fusion in ("mirror", "lite")}
    mirror = adapters["mirror"]
    decoders = {PAPER: mirror.decoder, **{name: with_random_weights(name, stage) for name in BESIDE}}
    released = ReleasedPipeline(model, processor, mirror.config, mirror.decoder)
    for fusion, adapter in adapters.items():
        adapter.embedding_cache = None
        ways: dict[str, Work] = {"released pipeline": partial(released, image, PROMPTS[0])}
        ways |= {f"ours, {name}": partial(_segment, adapter, decoder, image) for name, decoder in decoders.items()}
        title = f"One prompt about a new picture, {fusion} head"
        yield stage.compare(title, ways, "released pipeline", goals={f"ours, {GOAL_OF}": GOAL})


def _segment(adapter: LensAdapter, decoder: MaskDecoder, image: Image.Image) -> None:
    adapter.decoder = decoder  # a head has the same width for all of these
    segment(adapter, image, PROMPTS[0])
