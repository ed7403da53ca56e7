"""Architectures with several residual streams, and those whose image is not among the tokens of the text."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from tests.tiny import processors
from tests.zoo.specimen import Specimen

VOCAB_SIZE = 320  # the bytes, the special tokens of `processors`, and room for a model's own
IDS = processors.TOKEN_IDS
SPECIAL = {"pad_token_id": IDS["<pad>"], "bos_token_id": IDS["<s>"], "eos_token_id": IDS["</s>"]}
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    **SPECIAL,
}


def random_model(architecture: str, seed: int = 0, **facts: Any) -> PreTrainedModel:
    """A model of the real class, in eval mode under its default attention implementation."""
    torch.manual_seed(seed)
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(architecture, **facts)).eval()


def words(kind: type = PreTrainedTokenizerFast, **roles: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer, with tokens that processors look for by their roles (`image_token`, `boi_token`, ...)."""
    usual = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return processors.tokenizer(kind, **usual, extra_special_tokens=roles)


def chat(image: str) -> str:
    """A chat template that writes `image` for an image."""
    return processors.LLAVA_TEMPLATE.replace("<image>", image)


def gemma3n() -> tuple[PreTrainedModel, ProcessorMixin]:
    roles = {f"{name}_token": f"<{name}>" for name in ("image", "boi", "eoi", "audio", "boa", "eoa")}
    tokenizer = words(**roles)
    processor = transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(),
        transformers.SiglipImageProcessor(size={"height": 64, "width": 64}),
        tokenizer,
        image_seq_length=64,
        chat_template=chat("<image>"),
    )
    text = {
        **TEXT,
        "head_dim": 8,
        "num_key_value_heads": 2,
        "vocab_size_per_layer_input": VOCAB_SIZE - 20,
        "hidden_size_per_layer_input": 4,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    }
    audio = {
        "hidden_size": 16,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 1,
        "vocab_offset": VOCAB_SIZE - 10,
        "vocab_size": 10,
    }
    vision = {"architecture": "test_convnext", "hidden_size": 64, "vocab_offset": VOCAB_SIZE - 20, "vocab_size": 10}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in roles.items()}
    facts = {"text_config": text, "audio_config": audio, "vision_config": vision, "vision_soft_tokens_per_image": 64}
    return random_model("gemma3n", **facts, **ids), processor


GRID_VISION = {
    "depth": 1,
    "num_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.05,
}


def qwen4_exp() -> tuple[PreTrainedModel, ProcessorMixin]:
    text = {
        **TEXT,
        "head_dim": 8,
        "num_key_value_heads": 2,
        "full_attention_interval": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "hc_lowrank": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    }
    text.pop("intermediate_size")
    ids = {
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
    }
    vision = {**GRID_VISION, "num_position_embeddings": 64}
    model = random_model("qwen4_exp", text_config=text, vision_config=vision, **ids)
    return model, processors.qwen3_vl_processor()


def glm5_next() -> tuple[PreTrainedModel, ProcessorMixin]:
    roles = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = words(**roles)
    images = transformers.Glm5NextImageProcessor(patch_size=16, min_image_tokens=4, max_image_tokens=32)
    processor = transformers.Glm5NextProcessor(
        images, tokenizer, transformers.Glm5NextVideoProcessor(patch_size=16), chat_template=chat("<|image|>")
    )
    text = {
        **TEXT,
        "num_key_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "v_head_dim": 8,
        "qk_nope_head_dim": 8,
        "index_topk": 16,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "index_kpool": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
    }
    vision = {**GRID_VISION, "projection_intermediate_size": 32}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in roles.items()}
    return random_model("glm5_next", text_config=text, vision_config=vision, **ids), processor


SPECIMENS: dict[str, Specimen] = {
    "gemma3n": Specimen(gemma3n, note="a convolutional tower of timm"),
    "glm5_next": Specimen(glm5_next, image=(96, 128)),
    "qwen4_exp": Specimen(qwen4_exp, image=(96, 128)),
}
