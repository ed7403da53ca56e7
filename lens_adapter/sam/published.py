"""The SAMs that were published, by short names, and what each costs. The only such table: README's is made of it.

Costs follow from dimensions alone. They were counted on torch's meta device, with no weights: parameters; bytes of an
image's embedding in float32, as `MaskDecoder.encode_images` makes it; operations (a multiplication and an addition are
two) of encoding an image. tests/sam/test_published.py counts them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEGMENT_ANYTHING = "segment-anything"
DEFAULT_SAM = (
    "vit_b"  # of a new head: one device has room for it beside a base; the paper's vit_h takes six times as long
)


@dataclass(frozen=True)
class Published:
    """One published SAM.

    Attributes:
        family: `SEGMENT_ANYTHING`, whose dimensions are in `config.SAM_VARIANTS`, or a key of `families.FAMILIES`.
        weights: its Hub repository.
        encoder: millions of parameters of the image encoder, which is frozen.
        decoder: millions of parameters of the mask decoder, which learns.
        embedding: MiB of an image's embedding in float32.
        operations: billions of operations (GFLOPs) of encoding an image.
        config: of a family: what its config says otherwise than its class does; None: it is read from the repository.
    """

    family: str
    weights: str
    encoder: float
    decoder: float
    embedding: float
    operations: float
    config: dict[str, Any] | None = None

    @property
    def megabytes(self) -> int:
        """MB (10**6 bytes) of encoder and decoder in float32: what is fetched at least. A file may hold more."""
        return round(4 * (self.encoder + self.decoder))


def _hq(width: int, depth: int, heads: int, everywhere: list[int]) -> dict[str, Any]:
    vision = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "global_attn_indexes": everywhere,
        "mlp_dim": 4 * width,
    }
    return {"vision_config": vision, "mask_decoder_config": {"vit_dim": width}}


def _hiera(
    width: int, heads: int, blocks: list[int], everywhere: list[int], windows: tuple[int, ...], background: int
) -> dict[str, Any]:
    widths = [width, 2 * width, 4 * width, 8 * width]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "num_attention_heads": heads,
        "blocks_per_stage": blocks,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [heads, 2 * heads, 4 * heads, 8 * heads],
        "window_size_per_stage": list(windows),
        "global_attention_blocks": everywhere,
        "window_positional_embedding_background_size": [background, background],
    }
    vision = {"model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": widths[::-1]}
    return {"vision_config": vision}


# Hiera (arXiv 2306.00989) as SAM 2 has it (arXiv 2408.00714); dimensions of the configurations in its repository.
_SMALL_WINDOWS, _LARGE_WINDOWS = (8, 4, 14, 7), (8, 4, 16, 8)
_HIERA = {
    "tiny": _hiera(96, 1, [1, 2, 7, 2], [5, 7, 9], _SMALL_WINDOWS, 7),
    "small": _hiera(96, 1, [1, 2, 11, 2], [7, 10, 13], _SMALL_WINDOWS, 7),
    "base-plus": _hiera(112, 2, [2, 3, 16, 3], [12, 16, 20], _SMALL_WINDOWS, 14),
    "large": _hiera(144, 2, [2, 6, 36, 4], [23, 33, 43], _LARGE_WINDOWS, 7),
}
_REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_classes": 1000,
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}
_EDGE = {"vision_config": {"model_type": "edgetam_vision_model", "backbone_config": _REPVIT}}

PUBLISHED: dict[str, Published] = {
    "vit_b": Published(SEGMENT_ANYTHING, "facebook/sam-vit-base", 89.7, 4.06, 4, 972.1),
    "vit_l": Published(SEGMENT_ANYTHING, "facebook/sam-vit-large", 308.3, 4.06, 4, 2985.7),
    "vit_h": Published(SEGMENT_ANYTHING, "facebook/sam-vit-huge", 637, 4.06, 4, 5961.1),
    "slimsam_50": Published(SEGMENT_ANYTHING, "nielsr/slimsam-50-uniform", 23.9, 4.06, 4, 306.9),
    "slimsam_77": Published(SEGMENT_ANYTHING, "nielsr/slimsam-77-uniform", 5.7, 4.06, 4, 93.1),
    "sam-hq-base": Published(
        "sam_hq", "syscv-community/sam-hq-vit-base", 89.7, 5.13, 16, 972.1, _hq(768, 12, 12, [2, 5, 8, 11])
    ),
    "sam-hq-large": Published(
        "sam_hq", "syscv-community/sam-hq-vit-large", 308.3, 5.39, 20, 2985.7, _hq(1024, 24, 16, [5, 11, 17, 23])
    ),
    "sam-hq-huge": Published(
        "sam_hq", "syscv-community/sam-hq-vit-huge", 637, 5.65, 24, 5961.1, _hq(1280, 32, 16, [7, 15, 23, 31])
    ),
    "sam2.1-tiny": Published("sam2", "facebook/sam2.1-hiera-tiny", 27.2, 4.22, 16, 292.7, _HIERA["tiny"]),
    "sam2.1-small": Published("sam2", "facebook/sam2.1-hiera-small", 34.3, 4.22, 16, 360.4, _HIERA["small"]),
    "sam2.1-base-plus": Published(
        "sam2", "facebook/sam2.1-hiera-base-plus", 69.1, 4.22, 16, 647.8, _HIERA["base-plus"]
    ),
    "sam2.1-large": Published("sam2", "facebook/sam2.1-hiera-large", 212.7, 4.22, 16, 1825, _HIERA["large"]),
    "edgetam": Published("edgetam", "yonigozlan/EdgeTAM-hf", 4.9, 4.22, 16, 38.7, _EDGE),
    "sam3": Published("sam3_tracker", "facebook/sam3", 454, 4.22, 20.25, 5615.5),
}


def published_table() -> str:
    """The table as Markdown, for README and docs."""
    lines = [
        "| `sam=` | weights | encoder, M | decoder, M | MB to fetch | MiB per image | GFLOPs per image |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in PUBLISHED.items():
        costs = f"{one.encoder:.1f} | {one.decoder:.1f} | {one.megabytes:,} | {one.embedding:g} | {one.operations:,.0f}"
        lines.append(f'| `"{name}"` | `{one.weights}` | {costs} |')
    return "\n".join(lines)
