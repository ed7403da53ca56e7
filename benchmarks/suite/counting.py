"""Parameters and floating-point operations of an adapter and its base, without the time and memory to run them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bases
from benchmarks.suite.registry import PROMPTS, picture
from lens_adapter import LensConfig
from lens_adapter.config import SAM_VARIANTS
from lens_adapter.head.head import LensHead
from lens_adapter.head.raster import rasterize
from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.signals import LensSignals, TokenLayout
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.base import FrozenBase
from lens_adapter.vlm.mirror import MirrorLayers


@dataclass(frozen=True)
class Size:
    """Of an adapter: parameters that learn, in `head` and mask `decoder`, and bytes of a `checkpoint` in bfloat16."""

    head: int
    decoder: int
    checkpoint: int

    @property
    def trainable(self) -> int:
        return self.head + self.decoder


def size_of_adapter(base: str, fusion: str) -> Size:
    """Of a new adapter for a base of `bases.BASES`."""
    head, decoder, _ = _parts(base, fusion, "meta")
    tensors = [*head.state_dict().values()]
    tensors += [tensor for key, tensor in decoder.state_dict().items() if key not in decoder.unsaved_keys]
    return Size(
        head=sum(parameter.numel() for parameter in head.parameters()),
        decoder=sum(parameter.numel() for parameter in decoder.mask_decoder.parameters()),
        checkpoint=sum(tensor.numel() * (2 if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors),
    )


@torch.no_grad()
def count_flops(base: str, tap_layer: int | None = None) -> dict[str, int]:
    """Operations for one image and one prompt, by part; of heads that read `tap_layer`, by default the middle one.

    "bare prefill" is without the output layer; "prefill for lite" and "... for mirror" end where the head reads.
    """
    model, processor = bases.build(base, "meta")
    config, image = LensConfig.from_model(model, fusion="lite", tap_layer=tap_layer), picture()
    frozen = FrozenBase(model, processor, config)
    inputs, anatomy = frozen.build_inputs([image], PROMPTS[:1]), frozen.anatomy
    layouts = frozen.layout(inputs, [(image.height, image.width)])
    tokens = inputs["input_ids"].shape[1]
    hidden = torch.empty(1, tokens, anatomy.hidden_size, device="meta")

    seen = {"pixel_values": inputs["pixel_values"].to("meta")}
    if "image_grid_thw" in inputs:  # whose values are asked for; the positions made of them are not
        patches = len(inputs["pixel_values"])
        seen |= {"image_grid_thw": inputs["image_grid_thw"], "position_ids": torch.empty(patches, 2, device="meta")}
    vision, _ = _counted(lambda: model.model.get_image_features(**seen))
    # A mask that is ready is one whose values nobody asks for.
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")
    text, by_module = _counted(lambda: anatomy.decoder(inputs_embeds=hidden, attention_mask=mask, use_cache=False))
    names = {module: name for name, module in anatomy.decoder.named_modules()}
    prefix = f"{type(anatomy.decoder).__name__}."
    layers = [by_module[prefix + names[layer]] for layer in anatomy.layers]
    attention = by_module[prefix + names[anatomy.attentions[config.tap_layer]]]

    before = vision + sum(layers[: config.tap_layer])
    found = {
        "bare prefill": vision + text,
        "vision tower": vision,
        "prefill for lite": before + attention,
        "prefill for mirror": before,
    }
    found["logits of all tokens"], _ = _counted(lambda: model.get_output_embeddings()(hidden))
    for fusion in ("lite", "mirror"):
        found[f"{fusion} head"], _ = _counted(_head_work(base, fusion, model, hidden, layouts))
    found["SAM's mask decoder"], _ = _counted(_decoder_work(base))
    for name in SAM_VARIANTS:
        sam = {**LensConfig(fusion="lite", sam=name).sam, "include_image_encoder": True}
        with torch.device("meta"):
            encoder = SamDecoder(sam).image_encoder
        pixels = torch.empty(1, 3, sam["image_size"], sam["image_size"], device="meta")
        found[f"SAM's {name}"], _ = _counted(lambda encoder=encoder, pixels=pixels: encoder(pixels))
    return found


def _counted(work: Callable[[], Any]) -> tuple[int, dict[str, int]]:
    """Operations of `work`, in all and by module."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation that the counter does not know
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return counter.get_total_flops(), by_module


def _parts(base: str, fusion: str, device: str) -> tuple[LensHead, SamDecoder, LensConfig]:
    """Head and decoder of a new adapter; of SAM, the image encoder is left out."""
    model, _ = bases.build(base, "meta")
    config = LensConfig.from_model(model, fusion=fusion, sam=bases.BASES[base].sam)
    mirror = None
    if fusion == "mirror":
        layers = find_anatomy(model).layers[config.tap_layer : config.tap_layer + config.fusion_layers]
        mirror = MirrorLayers(copy.deepcopy(layers))
    with torch.device(device):
        return LensHead(config, mirror).eval(), SamDecoder(config.sam).eval(), config


def _head_work(base: str, fusion: str, model: Any, hidden: Tensor, layouts: list[TokenLayout]) -> Callable[[], Any]:
    """Fusion and descriptors, on signals of the right shapes.

    The lite fusion looks at values, if only to check them: being small, it runs on the CPU.
    """
    device = "cpu" if fusion == "lite" else "meta"
    head, _, config = _parts(base, fusion, device)
    batch, tokens, _ = hidden.shape
    arguments: dict[str, Any] = {}
    if fusion == "mirror":
        positions = torch.arange(tokens, device=device).expand(batch, tokens)
        several = "mrope_section" in (getattr(model.config.get_text_config(), "rope_parameters", None) or {})
        rotary = model.model.language_model.rotary_emb(hidden, positions.expand(3, -1, -1) if several else positions)
        arguments = {"attention_mask": None, "position_embeddings": rotary}
    signals = LensSignals(
        hidden=torch.zeros(hidden.shape, device=device),
        attention={
            layer: torch.zeros(batch, config.num_attention_heads, 1, tokens, device=device)
            for layer in config.attention_layers
        },
        layer_kwargs=arguments,
        queries=torch.full((batch, 1), tokens - 1, device=device),
    )
    raster, count = rasterize(layouts, device), config.num_keypoints
    points = torch.full((batch, count, 2), 0.5, device=device)
    shown = torch.ones(batch, count, dtype=torch.bool, device=device)

    def work() -> None:
        fused = head.fusion(signals, raster)
        head.descriptors(raster, fused.features, points, shown, fused.text)

    return work


def _decoder_work(base: str) -> Callable[[], Any]:
    """The mask decoder on one prompt."""
    _, decoder, config = _parts(base, "lite", "meta")
    grid, channels = config.sam["image_size"] // config.sam["patch_size"], config.sam["out_channels"]
    image = torch.empty(1, channels, grid, grid, device="meta")
    return lambda: decoder.mask_decoder(
        image_embeddings=image,
        image_pe=image,
        sparse_prompt_embeddings=torch.empty(1, config.num_keypoints + 1, channels, device="meta"),
        dense_prompt_embeddings=image,
        multimask_output=False,
    )
