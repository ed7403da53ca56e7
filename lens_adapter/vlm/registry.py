"""Which layout which architecture has: data, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lens_adapter.vlm.layout.single import (
    Family,
    convolved_grid,
    fixed_grid,
    flat_grid,
    numbered_patches,
    padded_columns,
    placed_grid,
    rows_in_text,
    square_grid,
    strided_grid,
    variable_grid,
)
from lens_adapter.vlm.layout.tiled import (
    any_resolution,
    class_led_tiles,
    packed_tiles,
    padded_tiles,
    pooled_grids,
    tiled,
    tiles_then_whole,
)


@dataclass(frozen=True)
class LayoutRow:
    """A model's layout.

    Attributes:
        family: the function that reads its windows off the processor's outputs.
        fields: values that the family takes by name, and where in the model's config they stand (dotted paths).
        constants: values that the family takes by name, the same for every checkpoint.
        from_text: whether frames are measured with the whole processor, text and all: where the image processor alone
            does not make what the model sees.
        leads: whether each sequence starts with the tokens of one image, whatever `input_ids` says.
    """

    family: Family
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    from_text: bool = False
    leads: bool = False


_FIXED = LayoutRow(
    fixed_grid,
    {
        "patch": "vision_config.patch_size",
        "tower": "vision_config.model_type",
        "features": "vision_feature_select_strategy",
    },
)
_VARIABLE = LayoutRow(variable_grid, {"merge": "vision_config.spatial_merge_size"})
_ANY_RESOLUTION = {"pinpoints": "image_grid_pinpoints", "patch": "vision_config.patch_size"}
_PADDED = LayoutRow(padded_tiles, {"merge": "downsample_factor"})
_TILED = LayoutRow(tiled, {"image_token": "image_token_id", "patch": "vision_config.patch_size"}, from_text=True)
_PACKED = LayoutRow(packed_tiles, {"mode": "downsample_mode"})

_PATCHES = LayoutRow(fixed_grid, {"patch": "vision_config.patch_size"})
_SAM = LayoutRow(fixed_grid, {"patch": "vision_config.patch_size"}, {"merge": 4})  # two convolutions of stride 2 behind
_POOLED = LayoutRow(square_grid, {"tokens": "mm_tokens_per_image"})
# The processor tells the image processor how large a patch is.
_PIXTRAL = LayoutRow(fixed_grid, {"patch": "vision_config.patch_size", "merge": "spatial_merge_size"}, from_text=True)
_PLACED = LayoutRow(placed_grid, {"pool": "vision_config.pooling_kernel_size"})

LAYOUTS: dict[str, LayoutRow] = {
    "llava": _FIXED,
    "chameleon": LayoutRow(convolved_grid, {"multipliers": "vq_config.channel_multiplier"}),
    "deepseek_vl": _PATCHES,
    "deepseek_vl_hybrid": _PATCHES,
    "diffusion_gemma": _PLACED,
    "emu3": LayoutRow(convolved_grid, {"multipliers": "vq_config.channel_multiplier"}, {"row_ends": 1}),
    "fast_vlm": LayoutRow(square_grid, {"tokens": "image_seq_length"}),
    "fuyu": LayoutRow(rows_in_text, {"image_token": "image_token_id"}, from_text=True),
    "gemma3": _POOLED,
    "gemma4": _PLACED,
    "gemma4_unified": LayoutRow(placed_grid),
    "got_ocr2": _SAM,
    "hunyuan_vl": LayoutRow(
        flat_grid, {"merge": "vision_config.spatial_merge_size"}, {"start": 1, "row_ends": 1, "ends": 1}
    ),
    "inkling_mm_model": LayoutRow(padded_columns, {"image_token": "image_token_id"}),
    "janus": _PATCHES,
    "lighton_ocr": _PIXTRAL,
    "mistral3": _PIXTRAL,
    "mistral_large4": _PIXTRAL,
    "nemotron_h_omni": LayoutRow(flat_grid, {"shrink": "downsample_ratio"}, {"grids": "image_grid_hw"}),
    "paligemma": _PATCHES,
    "pp_chart2table": _SAM,
    "shieldgemma2": _POOLED,
    "video_llava": LayoutRow(fixed_grid, _FIXED.fields, {"key": "pixel_values_images"}),
    "vipllava": _PATCHES,
    "aya_vision": _TILED,
    "cohere2_vision": _TILED,
    "granite4_vision": LayoutRow(any_resolution, {**_ANY_RESOLUTION, "downsample": "downsample_rate"}),
    "lfm2_vl": _PADDED,
    "lfm2-vl": _PADDED,  # its name in transformers 4.57
    "granite_docling": _TILED,
    "idefics3": _TILED,
    "internvl": _TILED,
    "llama4": _TILED,
    "llava_next": LayoutRow(any_resolution, _ANY_RESOLUTION),
    "llava_next_video": LayoutRow(any_resolution, _ANY_RESOLUTION),
    "llava_onevision": LayoutRow(any_resolution, {**_ANY_RESOLUTION, "limit": "vision_aspect_ratio"}),
    "minicpm_ocr": _PACKED,
    "minicpmv4_6": _PACKED,
    "minicpmv4_7": _PACKED,
    "molmo2": LayoutRow(pooled_grids),
    "ovis2": _TILED,
    "perception_lm": LayoutRow(tiled, {"image_token": "image_token_id"}, from_text=True),
    "qianfan_ocr": _TILED,
    "smolvlm": _TILED,
    "step3p7": LayoutRow(tiles_then_whole, {"patch": "vision_config.patch_size"}, {"merge": 4, "newlines": False}),
    "unlimited_ocr": LayoutRow(
        tiles_then_whole, {"patch": "vision_config.sam_config.patch_size"}, {"merge": 4, "newlines": True}
    ),
    **dict.fromkeys(
        (
            *("cohere_compass", "cosmos3_edge", "cosmos3_omni", "dots3_note", "ernie4_5_vl_moe", "exaone4_5", "glm46v"),
            *("glm4v", "glm4v_moe", "glm_ocr", "glmga", "hyperclovax_vision_v2", "lfm3_vl", "minimax_m3_vl"),
            *("qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker"),
            *("qwen3_vl", "qwen3_vl_moe"),
        ),
        _VARIABLE,
    ),
    **dict.fromkeys(
        ("muse_glimmer", "muse_spark"),
        LayoutRow(variable_grid, {"merge": "vision_config.merge_size"}, {"blocks": False}),
    ),
    "inkling2": LayoutRow(variable_grid, constants={"merge": 1, "channels": -1}),
    "kimi_k25": LayoutRow(
        variable_grid, {"merge": "vision_config.merge_kernel_size"}, {"blocks": False, "channels": 1}
    ),
    "paddleocr_vl": replace(_VARIABLE, constants={"blocks": False, "channels": 1}),
    "video_llama_3": LayoutRow(variable_grid, constants={"merge": "image_merge_sizes"}),
    # Several residual streams.
    "gemma3n": LayoutRow(square_grid, {"tokens": "vision_soft_tokens_per_image"}),
    "glm5_next": _VARIABLE,
    "qwen4_exp": _VARIABLE,
    # In an encoder that sees image and prompt.
    "florence2": LayoutRow(strided_grid, {"strides": "vision_config.patch_stride"}, {"start": 1}),  # 1: their mean
    "t5gemma2": LayoutRow(square_grid, {"tokens": "encoder.mm_tokens_per_image"}),
    # Attended to apart from the text.
    "mllama": LayoutRow(class_led_tiles, {"patch": "vision_config.patch_size"}, leads=True),
    "pix2struct": LayoutRow(numbered_patches, leads=True),
}


def register_layout(architecture: str, row: LayoutRow) -> None:
    """Teach the adapter the layout of another architecture (its `config.model_type`), or replace a row."""
    LAYOUTS[architecture] = row
