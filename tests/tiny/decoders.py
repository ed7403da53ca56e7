"""Decoders with attention of an uncommon kind, in vision-language models whose vision does not matter here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.tiny.models import CONFIGS, FIRST_WORD, HIDDEN_SIZE, IMAGE, NUM_LAYERS, VIDEO, VOCAB_SIZE

WINDOW = 6  # tokens that a sliding layer sees; `tiny_inputs` are longer
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

# Text configs for `tiny_model("llava", **config)`.
DECODERS: dict[str, dict[str, Any]] = {
    # gemma2 and gpt_oss: sliding and full layers by turns
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 1.0,
        "sliding_window": WINDOW,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 8,
        "sliding_window": WINDOW,
        "rope_scaling": {"rope_type": "default", "rope_theta": 10000.0},
        **_EXPERTS,
    },
    "mistral": {"model_type": "mistral", "head_dim": 8, "sliding_window": WINDOW},
    "mixtral": {"model_type": "mixtral", **_EXPERTS},
}
CAPPED_OR_SUNK = ("gemma2", "gpt_oss")  # transformers runs these under eager alone (and flex)
SLIDING = {"gemma2": [0, 2], "gpt_oss": [0, 2], "mistral": [0, 1, 2, 3]}  # the layers that do

TOP_KEYS = 4  # keys that a token of a sparse decoder sees; `sparse_inputs` are longer
_TEXT = CONFIGS["llava"]["text_config"]
_LATENT = {  # multi-head latent attention with an indexer
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": TOP_KEYS,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

SPARSE: dict[str, dict[str, Any]] = {
    "dots3_note": {
        "text_config": {
            **_TEXT,
            **_LATENT,
            "model_type": "dots3_note_text",
            "q_lora_rank": 16,
            "head_dim": 16,
            "shared_experts_intermediate_size": 16,
            "layer_types": ["indexed_attention"] * NUM_LAYERS,
        },
        "vision_config": {
            **_VISION,
            "moe_intermediate_size": 16,
            "mlp_layer_types": ["dense"],
            "adapter_in_dim": 16,
            "adapter_out_dim": HIDDEN_SIZE,
        },
        "audio_config": {
            "whisper_config": {
                "d_model": 16,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 16,
            },
            "adapter_input_size": 16,
            "adapter_out_dim": HIDDEN_SIZE,
            "downsample_hidden_size": 8,
        },
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "audio_token_id": VIDEO + 1,
    },
    "minimax_m3_vl": {
        "text_config": {
            **_TEXT,
            **_EXPERTS,
            "model_type": "minimax_m3_vl_text",
            "head_dim": 8,
            "rotary_dim": 4,
            "dense_intermediate_size": 16,
            "shared_intermediate_size": 16,
            "layer_types": ["minimax_m3_sparse"] * NUM_LAYERS,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 2,  # keys are chosen by blocks
            "index_topk_blocks": TOP_KEYS // 2,
        },
        "vision_config": _VISION,
        "projector_hidden_size": HIDDEN_SIZE,
        "image_token_index": IMAGE,
        "video_token_index": VIDEO,
    },
    "mistral_large4": {
        "text_config": {**_TEXT, **_LATENT, "model_type": "mistral_large4_text"},
        "vision_config": {**_VISION, "model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 8},
        "image_token_index": IMAGE,
    },
}


def sparse_model(architecture: str, attention: str) -> PreTrainedModel:
    """A random model in eval mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SPARSE[architecture])
    return AutoModelForImageTextToText.from_config(config, attn_implementation=attention).eval()


def sparse_inputs() -> dict[str, Tensor]:
    """Two texts without an image, the second padded on the left."""
    ids = torch.randint(FIRST_WORD, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}
