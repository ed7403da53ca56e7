"""What sets the architectures apart, one row each. No other table of the library is keyed by `model_type`.

A row holds what cannot be found by looking at a loaded model (see anatomy.py). An architecture without a row can be
attached to all the same; only where its image tokens look has to be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import __version__

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
class Layout:
    """How image tokens tile the preprocessed pixels.

    Attributes:
        family: the function that reads the windows of the tokens off the processor's outputs.
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


@dataclass(frozen=True)
class CrossAttention:
    """How decoder layers attend to image states that are not in their own sequence.

    Attributes:
        states: the argument of a layer that holds the image states, (B, N, D) or any shape of as many numbers.
        mask: the argument of a layer that says which of them are attended to.
        prefix: how the model's own arguments about the text begin, before "input_ids" and "attention_mask".
    """

    states: str = "encoder_hidden_states"
    mask: str = "encoder_attention_mask"
    prefix: str = "decoder_"


@dataclass(frozen=True)
class Streams:
    """How decoder layers carry several residual streams at once.

    Attributes:
        axis: of the streams in the hidden states, once a last axis longer than the hidden size is cut into streams.
        active: name, in the text config, of the index of the stream that is read; None: their mean.
    """

    axis: int
    active: str | None = None


@dataclass(frozen=True)
class Architecture:
    """What the library is told about one architecture.

    Attributes:
        layout: where its image tokens look; None: not known, so that nothing can be segmented.
        layers: path of the decoder layers in the model, where `get_decoder()` does not lead to those that read the
            prompt.
        cross: how its layers attend to the image, where that is not in their own sequence.
        streams: its residual streams, where there are several.
        refused: why it cannot work; None: it can.
    """

    layout: Layout | None = None
    layers: str | None = None
    cross: CrossAttention | None = None
    streams: Streams | None = None
    refused: str | None = None


def register(model_type: str, architecture: Architecture) -> None:
    """Teach the adapter another architecture, by its `config.model_type`, or replace a row."""
    ARCHITECTURES[model_type] = architecture


def known(model_type: str) -> Architecture:
    """The row of an architecture; an empty one where there is none."""
    return ARCHITECTURES.get(model_type, Architecture())


UNREADABLE = "its attention does not go through the attention interface of transformers, so it cannot be read"
_RESAMPLED = Architecture(
    refused="its image tokens are learned queries (a resampler or Q-former), which have no place in the image"
)
_UNREADABLE = Architecture(refused=UNREADABLE)
_PROTEINS = Architecture(refused="it reads proteins, not images")
_DROPPED = "transformers 4 drops the images that it is given; transformers 5 passes them on"

# Layouts that several architectures have. Names of fields are the families' own.
_PATCH = {"patch": "vision_config.patch_size"}
_CLIP = {**_PATCH, "tower": "vision_config.model_type", "features": "vision_feature_select_strategy"}
_SQUARE = Layout(fixed_grid, _PATCH)
_SAM = Layout(fixed_grid, _PATCH, {"merge": 4})  # two convolutions of stride 2 behind the tower
_POOLED = Layout(square_grid, {"tokens": "mm_tokens_per_image"})
# The processor tells the image processor how large a patch is.
_PIXTRAL = Layout(fixed_grid, {**_PATCH, "merge": "spatial_merge_size"}, from_text=True)
_PLACED = Layout(placed_grid, {"pool": "vision_config.pooling_kernel_size"})
_CODES = {"multipliers": "vq_config.channel_multiplier"}
_MERGE = {"merge": "vision_config.spatial_merge_size"}
_GRID = Layout(variable_grid, _MERGE)
_ROW_MAJOR = {"blocks": False}  # patches come row by row, not token by token
_MUSE = Layout(variable_grid, {"merge": "vision_config.merge_size"}, _ROW_MAJOR)
_PINPOINTS = {**_PATCH, "pinpoints": "image_grid_pinpoints"}
_IN_TEXT = {"image_token": "image_token_id"}
_TILED = Layout(tiled, {**_PATCH, **_IN_TEXT}, from_text=True)
_PADDED = Layout(padded_tiles, {"merge": "downsample_factor"})
_PACKED = Layout(packed_tiles, {"mode": "downsample_mode"})
_MEAN_OF_STREAMS = Streams(axis=2)  # (B, T, streams, D) or (B, T, streams * D)

ARCHITECTURES: dict[str, Architecture] = {
    "EvollaModel": _PROTEINS,  # its name in transformers 4
    "aria": _RESAMPLED,
    "aya_vision": Architecture(_TILED),
    "blip": _UNREADABLE,
    "blip-2": _RESAMPLED,
    "chameleon": Architecture(Layout(convolved_grid, _CODES)),
    "cohere2_vision": Architecture(_TILED),
    "cohere_compass": Architecture(_GRID),
    "cosmos3_edge": Architecture(_GRID),
    "cosmos3_omni": Architecture(_GRID),
    "deepseek_ocr2": _RESAMPLED,
    "deepseek_vl": Architecture(_SQUARE),
    "deepseek_vl_hybrid": Architecture(_SQUARE),
    # Its encoder reads the prompt; the decoder only writes the answer. So it is with Florence-2 and T5Gemma 2.
    "diffusion_gemma": Architecture(_PLACED, layers="model.encoder.language_model.layers"),
    "dots3_note": Architecture(_GRID),
    "emu3": Architecture(
        Layout(convolved_grid, _CODES, {"row_ends": 1}), refused=_DROPPED if __version__.startswith("4.") else None
    ),
    "ernie4_5_vl_moe": Architecture(_GRID),
    "evolla": _PROTEINS,
    "exaone4_5": Architecture(_GRID),
    "fast_vlm": Architecture(Layout(square_grid, {"tokens": "image_seq_length"})),
    "florence2": Architecture(  # the first token is the mean of all others
        Layout(strided_grid, {"strides": "vision_config.patch_stride"}, {"start": 1}),
        layers="model.language_model.encoder.layers",
    ),
    "fuyu": Architecture(Layout(rows_in_text, _IN_TEXT, from_text=True)),
    "gemma3": Architecture(_POOLED),
    "gemma3n": Architecture(  # (streams, B, T, D)
        Layout(square_grid, {"tokens": "vision_soft_tokens_per_image"}), streams=Streams(0, active="altup_active_idx")
    ),
    "gemma4": Architecture(_PLACED),
    "gemma4_unified": Architecture(Layout(placed_grid)),
    "git": _UNREADABLE,
    "glm46v": Architecture(_GRID),
    "glm4v": Architecture(_GRID),
    "glm4v_moe": Architecture(_GRID),
    "glm5_next": Architecture(_GRID, streams=_MEAN_OF_STREAMS),
    "glm_ocr": Architecture(_GRID),
    "glmga": Architecture(_GRID),
    "got_ocr2": Architecture(_SAM),
    "granite4_vision": Architecture(Layout(any_resolution, {**_PINPOINTS, "downsample": "downsample_rate"})),
    "granite_docling": Architecture(_TILED),
    "hunyuan_vl": Architecture(Layout(flat_grid, _MERGE, {"start": 1, "row_ends": 1, "ends": 1})),
    "hyperclovax_vision_v2": Architecture(_GRID),
    "idefics": _RESAMPLED,
    "idefics2": _RESAMPLED,
    "idefics3": Architecture(_TILED),
    "inkling2": Architecture(Layout(variable_grid, constants={"merge": 1, "channels": -1})),
    "inkling_mm_model": Architecture(Layout(padded_columns, _IN_TEXT)),
    "instructblip": _RESAMPLED,
    "instructblipvideo": _RESAMPLED,
    "internvl": Architecture(_TILED),
    "janus": Architecture(_SQUARE),
    "kimi_k25": Architecture(
        Layout(variable_grid, {"merge": "vision_config.merge_kernel_size"}, {**_ROW_MAJOR, "channels": 1})
    ),
    "kosmos-2": _RESAMPLED,
    "kosmos-2.5": _RESAMPLED,
    "lfm2-vl": Architecture(_PADDED),  # its name in transformers 4
    "lfm2_vl": Architecture(_PADDED),
    "lfm3_vl": Architecture(_GRID),
    "lighton_ocr": Architecture(_PIXTRAL),
    "llama4": Architecture(_TILED),
    "llava": Architecture(Layout(fixed_grid, _CLIP)),
    "llava_next": Architecture(Layout(any_resolution, _PINPOINTS)),
    "llava_next_video": Architecture(Layout(any_resolution, _PINPOINTS)),
    "llava_onevision": Architecture(Layout(any_resolution, {**_PINPOINTS, "limit": "vision_aspect_ratio"})),
    "minicpm_ocr": Architecture(_PACKED),
    "minicpmv4_6": Architecture(_PACKED),
    "minicpmv4_7": Architecture(_PACKED),
    "minimax_m3_vl": Architecture(_GRID),
    "mistral3": Architecture(_PIXTRAL),
    "mistral4": Architecture(refused="it has no vision tower"),
    "mistral_large4": Architecture(_PIXTRAL),
    "mllama": Architecture(
        Layout(class_led_tiles, _PATCH, leads=True),
        cross=CrossAttention("cross_attention_states", "cross_attention_mask", prefix=""),
    ),
    "molmo2": Architecture(Layout(pooled_grids)),
    "muse_glimmer": Architecture(_MUSE),
    "muse_spark": Architecture(_MUSE),
    "nemotron_h_omni": Architecture(Layout(flat_grid, {"shrink": "downsample_ratio"}, {"grids": "image_grid_hw"})),
    "ovis2": Architecture(_TILED),
    "paddleocr_vl": Architecture(Layout(variable_grid, _MERGE, {**_ROW_MAJOR, "channels": 1})),
    "paligemma": Architecture(_SQUARE),
    "perception_lm": Architecture(Layout(tiled, _IN_TEXT, from_text=True)),
    "pi0": Architecture(refused="its query tokens are actions, not text"),
    "pix2struct": Architecture(Layout(numbered_patches, leads=True), cross=CrossAttention()),
    "pp_chart2table": Architecture(_SAM),
    "pp_formulanet": Architecture(refused="it transcribes formulas: its processor takes no prompt"),
    "qianfan_ocr": Architecture(_TILED),
    "qwen2_5_omni_thinker": Architecture(_GRID),
    "qwen2_5_vl": Architecture(_GRID),
    "qwen2_vl": Architecture(_GRID),
    "qwen3_5": Architecture(_GRID),
    "qwen3_5_moe": Architecture(_GRID),
    "qwen3_omni_moe_thinker": Architecture(_GRID),
    "qwen3_vl": Architecture(_GRID),
    "qwen3_vl_moe": Architecture(_GRID),
    "qwen4_exp": Architecture(_GRID, streams=_MEAN_OF_STREAMS),
    "shieldgemma2": Architecture(_POOLED),
    "smolvlm": Architecture(_TILED),
    "step3p7": Architecture(Layout(tiles_then_whole, _PATCH, {"merge": 4, "newlines": False})),
    "t5gemma2": Architecture(
        Layout(square_grid, {"tokens": "encoder.mm_tokens_per_image"}), layers="model.encoder.text_model.layers"
    ),
    "udop": Architecture(
        refused="it reads documents by the words and boxes of an OCR engine, and melts image patches into those words"
    ),
    "unlimited_ocr": Architecture(
        Layout(tiles_then_whole, {"patch": "vision_config.sam_config.patch_size"}, {"merge": 4, "newlines": True})
    ),
    "video_llama_3": Architecture(Layout(variable_grid, constants={"merge": "image_merge_sizes"})),
    "video_llava": Architecture(Layout(fixed_grid, _CLIP, {"key": "pixel_values_images"})),
    "vipllava": Architecture(_SQUARE),
    "vision-encoder-decoder": Architecture(
        refused="it transcribes: its processors take a text as the answer to learn, not as a prompt"
    ),
}
