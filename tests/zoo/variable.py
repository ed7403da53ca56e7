"""Architectures with one grid of patches per image, given in `image_grid_thw`."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2TokenizerFast,
)

from tests.tiny.pairs import tiny_pair
from tests.tiny.processors import IMAGE_TOKEN, QWEN_TEMPLATE, TOKEN_IDS, tokenizer
from tests.zoo.specimen import Specimen

# The small value of every size that a config may name. Layers: 4 in the decoder, 1 in the tower.
SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.2},
    # mixtures of experts
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16},
    **{"shared_experts_intermediate_size": 16, "dense_intermediate_size": 48, "moe_hidden_size": 16},
    **{"num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "moe_num_experts": 4},
    **{"num_experts_per_tok": 2, "moe_k": 2, "n_group": 1, "topk_group": 1},
    # latent, sparse and linear attention
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"index_head_dim": 8, "index_n_heads": 2, "index_topk": 8},
    **{"index_block_size": 4, "index_topk_blocks": 2, "index_local_blocks": 1},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "d_rel": 4, "rel_extent": 64},
    # between tower and decoder
    **{"out_hidden_size": 32, "projector_hidden_size": 32, "projection_hidden_size": 16, "adapter_out_dim": 32},
    **{"adapter_in_dim": 16, "text_hidden_size": 32, "projection_hidden_dim": 32, "output_dim": 32},
}
TOWER: dict[str, Any] = {
    **SIZES,
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "depth": 1},
    **{"num_attention_heads": 2, "num_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.05},
    **{"deepstack_visual_indexes": [0]},
}
AUDIO: dict[str, Any] = {
    **SIZES,
    **{"num_hidden_layers": 1, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
    **{"adapter_input_size": 32, "d_model": 16, "num_mel_bins": 16, "downsample_hidden_size": 4},
    **{"patch_sizes": [4], "hidden_sizes": [8], "depths": [1]},
}
SECTIONS = {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}}  # halves of a head's 8 dimensions
INTERLEAVED = {"rope_scaling": {**SECTIONS["rope_scaling"], "mrope_interleaved": True}}
WINDOW = {"sliding_window": 24}  # fewer than the tokens of a question

QWEN = {
    **{"image": "<|image_pad|>", "start": "<|vision_start|>", "end": "<|vision_end|>"},
    **{"video": "<|video_pad|>", "pad": "<|endoftext|>", "bos": "<s>", "eos": "<|im_end|>"},
}
GLM = QWEN | {"image": "<|image|>", "start": "<|begin_of_image|>", "end": "<|end_of_image|>", "video": "<|video|>"}
COMPASS = {"image": "<|IMAGE_PAD|>", "start": "<|VISION_START|>", "end": "<|VISION_END|>", "video": "<|VIDEO_PAD|>"}
MINIMAX = {"image": "]<]image[>[", "start": "]<]start of image[>[", "end": "]<]end of image[>[", "video": "]<]video[>["}
MUSE = {
    **{"image": "<|patch|>", "start": "<|image_start|>", "end": "<|image_end|>"},
    **{"video": "<|video|>", "audio": "<|audio|>"},
}
# What tokenizers keep as attributes, for processors that ask them.
VISUAL = {"image_token": QWEN["image"], "video_token": QWEN["video"]}
OMNI = {
    **{**VISUAL, "vision_bos_token": QWEN["start"], "vision_eos_token": QWEN["end"]},
    **{"audio_token": "<|audio|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
}
ERNIE = {
    **{**VISUAL, "image_start_token": QWEN["start"], "image_end_token": QWEN["end"]},
    **{"video_start_token": "<|video_start|>", "video_end_token": "<|video_end|>"},
}


@dataclass(frozen=True)
class Facts:
    """What sets one of these architectures apart.

    Attributes:
        processor: the classes of its processor and of the processor's parts, by name.
        tokens: the texts of its special tokens: "image", "start" and "end" of an image, ...
        text: settings of its text config beyond `SIZES`.
        vision: settings of its vision config beyond `TOWER`.
        images: settings of its image processor.
        top: settings of its config beside text and vision.
        named: attributes of its tokenizer that hold special tokens.
        wraps: its processor puts start and end around an image; the chat template must not.
    """

    processor: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=lambda: QWEN)
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    top: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    wraps: bool = False


def parts(
    name: str, images: str = "Qwen2VL", videos: str | None = "Qwen3VL", audio: str | None = None
) -> dict[str, str]:
    """The classes of a processor, by the names they start with."""
    classes = {"processor": f"{name}Processor", "image_processor": f"{images}ImageProcessor"}
    if videos:
        classes["video_processor"] = f"{videos}VideoProcessor"
    if audio:
        classes["feature_extractor"] = f"{audio}FeatureExtractor"
    return classes


SMALL = {
    "size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 36 * 32 * 32}
}  # for image processors that want many tokens
START = {"vision_start_token_id": TOKEN_IDS[QWEN["start"]]}  # released configs have it, the class does not declare it
QWEN3_VL = Facts(parts("Qwen3VL"), text=INTERLEAVED)
HYBRID = Facts(
    parts("Qwen3VL"),
    text={
        "head_dim": 32,  # of which a quarter turns
        "rope_parameters": {**INTERLEAVED["rope_scaling"], "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        "layer_types": ["linear_attention", "full_attention", "full_attention", "linear_attention"],
    },
)
GLM4V = Facts(parts("Glm4v", "Glm4v", "Glm4v"), GLM, SECTIONS)
MUSE_PARTS = ("MuseGlimmer", "MuseGlimmer")

FACTS: dict[str, Facts] = {
    "cohere_compass": Facts(
        parts("CohereCompass", "CohereCompass", "CohereCompass"),
        QWEN | COMPASS,
        {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                kind: {**SECTIONS["rope_scaling"], "rope_theta": 1e4}
                for kind in ("sliding_attention", "full_attention")
            },
            **WINDOW,
        },
    ),
    "cosmos3_edge": Facts(
        parts("Cosmos3Edge", "Cosmos3Edge", "Cosmos3Edge"),
        text={"rope_parameters": {**SECTIONS["rope_scaling"], "rope_theta": 1e4}},
        images=SMALL,
    ),
    "cosmos3_omni": QWEN3_VL,
    "dots3_note": Facts(
        parts("Dots3Note", audio="Dots3Note"),
        QWEN | {"image": "<|imgpad|>", "audio": "<|audio_comp_pad|>"},
        {
            "num_key_value_heads": 4,
            "head_dim": 16,
            **WINDOW,
            "layer_types": ["indexed_attention", "indexed_attention", "sliding_attention", "indexed_attention"],
            **{
                f"swa_{name}": SIZES[name] for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
            },
            "swa_num_attention_heads": 2,  # of the sliding layers
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 16,
        },
        {"mlp_layer_types": ["dense"]},
        images={"temporal_patch_size": 1},
    ),
    "ernie4_5_vl_moe": Facts(
        parts("Ernie4_5_VLMoe", "Ernie4_5_VLMoe", "Ernie4_5_VLMoe"),
        text={**SECTIONS, "moe_intermediate_size": [16, 16]},
        named=ERNIE,
    ),
    "exaone4_5": Facts(parts("Exaone4_5_"), text=WINDOW),
    "glm46v": Facts(parts("Glm46V", "Glm46V", "Glm46V"), GLM, SECTIONS),
    "glm4v": GLM4V,
    "glm4v_moe": replace(GLM4V, text={"head_dim": 16, **SECTIONS}),
    "glm_ocr": replace(GLM4V, processor=parts("Glm46V", "Glm46V", "Glm46V")),
    "glmga": Facts(parts("Glm46V", "Glmga", "Glmga"), GLM, SECTIONS),
    "hyperclovax_vision_v2": Facts(parts("HyperCLOVAXVisionV2", videos="Qwen2VL")),
    "inkling2": Facts(
        parts("Inkling2", "Inkling2", None),
        QWEN | {"image": "<|unused_200054|>"},
        {
            "layer_types": ["hybrid_sliding", "hybrid", "hybrid", "hybrid_sliding"],
            "n_layers_per_attn_res_block": 2,
            **WINDOW,
        },
    ),
    "kimi_k25": Facts(
        parts("Kimi_K25", "Kimi_K25", "Kimi_K25"),
        QWEN | {"image": "<|media_pad|>", "video": "<|kimi_k25_video_placeholder|>"},
        {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    ),
    "lfm3_vl": Facts(
        parts("Lfm3Vl"),
        text={"layer_types": ["conv", "full_attention", "sliding_attention", "conv"], **WINDOW},
    ),
    "minimax_m3_vl": Facts(
        parts("MiniMaxM3VL", "MiniMaxM3VL", "MiniMaxM3VL"),
        QWEN | MINIMAX,
        {"layer_types": ["full_attention", *["minimax_m3_sparse"] * 3]},
        wraps=True,
    ),
    "muse_glimmer": Facts(
        parts("MuseGlimmer", *MUSE_PARTS), QWEN | MUSE, WINDOW, top={"out_hidden_size": 64}, wraps=True
    ),
    "muse_spark": Facts(
        parts("MuseSpark", *MUSE_PARTS, "MuseSpark"), QWEN | MUSE, WINDOW, top={"out_hidden_size": 64}, wraps=True
    ),
    "paddleocr_vl": Facts(
        parts("PaddleOCRVL", "PaddleOCRVL", None), text=SECTIONS, images=SMALL, named={"image_token": QWEN["image"]}
    ),
    "qwen2_5_omni_thinker": Facts(
        parts("Qwen2_5Omni", videos="Qwen2VL", audio="Whisper"), text=SECTIONS, top=START, named=OMNI
    ),
    "qwen2_5_vl": Facts(parts("Qwen2_5_VL", videos="Qwen2VL"), text=SECTIONS),
    "qwen3_5": HYBRID,
    "qwen3_5_moe": HYBRID,
    "qwen3_omni_moe_thinker": Facts(
        parts("Qwen3OmniMoe", videos="Qwen2VL", audio="Whisper"), text=INTERLEAVED, top=START, named=OMNI
    ),
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL,
    "video_llama_3": Facts(parts("VideoLlama3", "VideoLlama3", "VideoLlama3"), images={"merge_size": 2}),
}


def build(architecture: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny random model in eval mode under its default attention implementation, and its real processor."""
    facts = FACTS[architecture]
    special = {f"{role}_token": facts.tokens[role] for role in ("pad", "bos", "eos")}
    words = tokenizer(Qwen2TokenizerFast, *facts.tokens.values(), **special, **facts.named)
    ids = {role: words.convert_tokens_to_ids(token) for role, token in facts.tokens.items()}
    default = AutoConfig.for_model(architecture)
    changes = {**sizes_of(default, SIZES), **ids_of(default, ids), **facts.top}
    for name, sizes in (("text_config", SIZES), ("vision_config", TOWER), ("audio_config", AUDIO)):
        if part := getattr(default, name, None):
            changes[name] = {"model_type": part.model_type, **sizes_of(part, sizes), **ids_of(part, ids)}
    changes["text_config"] |= {"vocab_size": len(words), **facts.text}
    changes["vision_config"] |= facts.vision
    config = AutoConfig.for_model(architecture, **deepcopy(changes))  # a config writes into the dicts it is given
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    return model.eval(), build_processor(facts, words, config.vision_config.patch_size)


def sizes_of(config: PretrainedConfig, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the sizes that the config has a name for."""
    names = config.to_dict()
    return {name: value for name, value in sizes.items() if name in names}


def ids_of(config: PretrainedConfig, ids: Mapping[str, int]) -> dict[str, int]:
    """An id for every special token that the config names, by its role; one that never comes up where there is none."""
    found = {}
    for name in config.to_dict():
        role, _, kind = name.partition("_token_")
        if kind in ("id", "index"):
            role = role.removeprefix("vision_").removeprefix("image_")  # "vision_start" and "image_start" are one
            found[name] = ids.get(role, TOKEN_IDS[IMAGE_TOKEN])
    return found


def build_processor(facts: Facts, words: Qwen2TokenizerFast, patch: int) -> ProcessorMixin:
    """The architecture's processor over a tokenizer; `patch` is in pixels."""
    made = {name: getattr(transformers, kind) for name, kind in facts.processor.items()}
    kind, images = made.pop("processor"), made.pop("image_processor")
    image = facts.tokens["image"] if facts.wraps else "".join(facts.tokens[role] for role in ("start", "image", "end"))
    return kind(
        image_processor=images(patch_size=patch, **facts.images),
        tokenizer=words,
        chat_template=QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image),
        **{name: part() for name, part in made.items()},
    )


SPECIMENS: dict[str, Specimen] = {
    "qwen2_vl": Specimen(lambda: tiny_pair("qwen2_vl", attention="sdpa", depth=1, initializer_range=0.05)),
    **{name: Specimen(partial(build, name)) for name in FACTS},
}
