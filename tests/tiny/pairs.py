"""Tiny models and real processors that fit each other: same token ids, same image and patch sizes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from tests.tiny import processors
from tests.tiny.models import CONFIGS, LLAVA_PATCH, LLAVA_SIZE

_QWEN_PROCESSORS = {
    "qwen2_vl": processors.qwen2_vl_processor,
    "qwen2_5_vl": processors.qwen2_5_vl_processor,
    "qwen3_vl": processors.qwen3_vl_processor,
}


def tiny_processor(architecture: str, framing: processors.Framing = "crop", **options: Any) -> ProcessorMixin:
    """The architecture's processor; `framing` is LLaVA's alone, Qwen only ever resizes."""
    if architecture == "llava":
        return processors.llava_processor(framing, image_size=LLAVA_SIZE, patch_size=LLAVA_PATCH, **options)
    return _QWEN_PROCESSORS[architecture](**options)


def tiny_pair(
    architecture: str,
    framing: processors.Framing = "crop",
    *,
    seed: int = 0,
    attention: str = "eager",
    text: dict[str, Any] | None = None,
    **vision: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A random model in eval mode, as `tiny_model`'s, and a processor for it.

    `text` and `vision` override its text and vision config.
    """
    ids = processors.TOKEN_IDS
    facts = copy.deepcopy(CONFIGS[architecture])
    special = {"pad_token_id": ids["<pad>"], "bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}
    if architecture == "llava":
        facts["image_token_index"] = ids[processors.IMAGE_TOKEN]
    else:
        special |= {"pad_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
        facts["image_token_id"] = ids[processors.IMAGE_PAD]
        facts["video_token_id"] = ids["<|video_pad|>"]
        facts["vision_start_token_id"] = ids["<|vision_start|>"]
        facts["vision_end_token_id"] = ids["<|vision_end|>"]
    facts["text_config"] |= {"vocab_size": processors.VOCAB_SIZE, **special, **(text or {})}
    facts["vision_config"] |= vision
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(architecture, **facts), attn_implementation=attention
    )
    return model.eval(), tiny_processor(architecture, framing)
