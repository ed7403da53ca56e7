"""Tiny random vision-language models of real transformers classes, and inputs for them as plain tensors."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM, PreTrainedModel

ARCHITECTURES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IMPLEMENTATIONS = ("eager", "sdpa")

VOCAB_SIZE = 128
PAD, VISION_START, VISION_END, IMAGE, VIDEO = 0, 3, 4, 5, 6  # token ids
FIRST_WORD = 10  # smaller ids are special
NUM_LAYERS = 4
HIDDEN_SIZE = 32
NUM_HEADS = 4

# llava: square images of LLAVA_SIZE pixels, LLAVA_PATCH pixels a token. Qwen: patches as `image_grid_thw` counts them.
LLAVA_SIZE, LLAVA_PATCH = 56, 14
GRIDS = ((1, 6, 8), (1, 4, 4))
MERGE, TEMPORAL = 2, 2

# Large enough that a random model's attention is far from uniform, and its greedy answer does not hang on rounding.
_INIT = {"initializer_range": 0.2}
_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    **_INIT,
}
_QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}
_QWEN_VISION = {"depth": 2, "num_heads": 2, "spatial_merge_size": MERGE, "temporal_patch_size": TEMPORAL, **_INIT}
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}  # halves of the 8 dimensions of a head

CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": LLAVA_SIZE,
            "patch_size": LLAVA_PATCH,
            "projection_dim": 16,
        },
        "image_token_index": IMAGE,
        "tie_word_embeddings": False,
    },
    "qwen2_vl": {
        "text_config": {"model_type": "qwen2_vl_text", "rope_scaling": _MROPE, **_TEXT},
        "vision_config": {"embed_dim": 16, "hidden_size": HIDDEN_SIZE, "patch_size": 14, **_QWEN_VISION},
        **_QWEN,
    },
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text", "rope_scaling": _MROPE, **_TEXT},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": HIDDEN_SIZE,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            **_QWEN_VISION,
        },
        **_QWEN,
    },
    "qwen3_vl": {
        "text_config": {
            "model_type": "qwen3_vl_text",
            "head_dim": 8,
            "rope_scaling": {**_MROPE, "mrope_interleaved": True},
            **_TEXT,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": HIDDEN_SIZE,
            "patch_size": 16,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],  # so visual features are added after decoder layers 0 and 1
            **_QWEN_VISION,
        },
        **_QWEN,
    },
}


def tiny_model(
    architecture: str, *, attention: str = "eager", dtype: torch.dtype = torch.float32, seed: int = 0, **text: Any
) -> PreTrainedModel:
    """A random model in eval mode; `text` overrides its text config."""
    facts = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIGS[architecture].items()}
    facts["text_config"].update(text)
    config = AutoConfig.for_model(architecture, **facts)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=dtype)
    return model.eval()


def tiny_language_model(seed: int = 0) -> LlamaForCausalLM:
    """Text only: what an adapter must refuse."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_TEXT)).eval()


def tiny_inputs(
    architecture: str, *, padding: str = "left", dtype: torch.dtype = torch.float32, seed: int = 1
) -> dict[str, Tensor]:
    """A batch of two samples, one image each, as the model's processor would give it; the second sample is padded.

    Args:
        padding: "left", "right", or "none" (both samples equally long, no padding).
    """
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(FIRST_WORD, VOCAB_SIZE, (count,), generator=generator).tolist()

    llava = architecture == "llava"
    grids = ((1, 8, 8),) * 2 if llava else GRIDS if padding != "none" else GRIDS[:1] * 2
    samples = []
    for count, (_, height, width) in zip((7, 7 if padding == "none" else 4), grids, strict=True):
        image = [IMAGE] * (height * width // MERGE**2)
        samples.append([*words(2), *(image if llava else [VISION_START, *image, VISION_END]), *words(count)])
    length = max(map(len, samples))
    ids, mask = [], []
    for sample in samples:
        pads = length - len(sample)
        before, after = (0, pads) if padding == "right" else (pads, 0)
        ids.append([PAD] * before + sample + [PAD] * after)
        mask.append([0] * before + [1] * len(sample) + [0] * after)
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if llava:
        shape = (2, 3, LLAVA_SIZE, LLAVA_SIZE)
    else:
        inputs["image_grid_thw"] = torch.tensor(grids)
        patch = CONFIGS[architecture]["vision_config"]["patch_size"]
        shape = (sum(t * h * w for t, h, w in grids), 3 * TEMPORAL * patch**2)
        if _takes_token_types(architecture):
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    inputs["pixel_values"] = torch.randn(shape, generator=generator).to(dtype)
    return inputs


def _takes_token_types(architecture: str) -> bool:
    # transformers 5 wants to be told which tokens are image tokens; transformers 4 looks for itself.
    model_class = AutoModelForImageTextToText._model_mapping[type(AutoConfig.for_model(architecture))]
    return "mm_token_type_ids" in inspect.signature(model_class.forward).parameters
