"""Architectures with several residual streams, and those whose image is not among the tokens of the text."""

from __future__ import annotations

import transformers
from transformers import PreTrainedModel, ProcessorMixin

from tests.tiny import processors
from tests.zoo.specimen import Specimen
from tests.zoo.square import TEXT, VOCAB_SIZE, chat, random_model, token_id, words

Built = tuple[PreTrainedModel, ProcessorMixin]


def ids_of(processor: ProcessorMixin, roles: dict[str, str]) -> dict[str, int]:
    """{"image_token": "<image>"} -> {"image_token_id": its id}."""
    return {f"{role}_id": token_id(processor, token) for role, token in roles.items()}


def gemma3n() -> Built:
    roles = {f"{name}_token": f"<{name}>" for name in ("image", "boi", "eoi", "audio", "boa", "eoa")}
    tokenizer = words(**roles)
    processor = transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(),
        transformers.SiglipImageProcessor(size={"height": 128, "width": 128}),
        tokenizer,
        image_seq_length=16,
        chat_template=chat("<image>"),
    )
    text = {
        **TEXT,
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
    facts = {"text_config": text, "audio_config": audio, "vision_config": vision, "vision_soft_tokens_per_image": 16}
    return random_model("gemma3n", **facts, **ids_of(processor, roles)), processor


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


def qwen4_exp() -> Built:
    text = {
        **TEXT,
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
    roles = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    roles |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    processor = processors.qwen3_vl_processor()
    vision = {**GRID_VISION, "num_position_embeddings": 64}
    return random_model("qwen4_exp", text_config=text, vision_config=vision, **ids_of(processor, roles)), processor


def glm5_next() -> Built:
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
    return random_model("glm5_next", text_config=text, vision_config=vision, **ids_of(processor, roles)), processor


SPECIMENS: dict[str, Specimen] = {
    "gemma3n": Specimen(gemma3n, note="a convolutional tower of timm"),
    "glm5_next": Specimen(glm5_next, image=(96, 128)),
    "qwen4_exp": Specimen(qwen4_exp, image=(96, 128)),
}
