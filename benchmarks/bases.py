"""Bases of named sizes with random weights: the real classes and processors of transformers, nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

SPECIAL = (
    *(
        "<unk>",
        "<pad>",
        "<s>",
        "</s>",
        "<image>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    *("<|im_start|>", "<|im_end|>"),
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ 'USER : ' }}{% for part in message.content %}"
    "{{ '<image> ' if part.type == 'image' else part.text }}{% endfor %}{% endfor %}{{ ' ASSISTANT :' }}"
)
QWEN_TEMPLATE = (
    "{{ '<|im_start|> system You are a helpful assistant . <|im_end|> ' }}"
    "{% for message in messages %}{{ '<|im_start|> user ' }}{% for part in message.content %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<|im_end|> ' }}{% endfor %}{{ '<|im_start|> assistant ' }}"
)
SMALL_SAM = {"variant": "custom", "embed_dim": 192, "depth": 4, "num_heads": 3, "global_attention_layers": [1, 3]}


@dataclass(frozen=True)
class Base:
    """How a base is made.

    Attributes:
        config: what `AutoConfig.for_model` takes.
        processor: makes the processor that fits; given a number, images have that many tokens along each side.
        sam: the segment-anything beside it, whose weights are random too.
        dtype: of the base on an accelerator, unless another is asked for.
    """

    config: dict[str, Any]
    processor: Callable[[int | None], ProcessorMixin]
    sam: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16


def build(
    name: str,
    device: str,
    *,
    layers: int | None = None,
    side: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A base in eval mode on `device`, and its processor.

    Args:
        name: of `BASES`.
        device: "cpu", "cuda" or "meta".
        layers: of the decoder; default: as many as the name stands for.
        side: image tokens along each side of a (square) image; default likewise.
        dtype: of the weights; default: that of the base on "cuda", float32 elsewhere.
    """
    base = BASES[name]
    torch.manual_seed(0)
    facts = deepcopy(base.config)
    if layers is not None:
        facts["text_config"]["num_hidden_layers"] = layers
    if side is not None and "image_size" in facts["vision_config"]:
        facts["vision_config"]["image_size"] = side * facts["vision_config"]["patch_size"]
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    dtype = dtype or (base.dtype if device == "cuda" else torch.float32)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.eval(), base.processor(side)


def tokenizer(kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **roles: Any) -> PreTrainedTokenizerFast:
    """One token a word, unknown words included: texts are as long as a trained tokenizer makes them."""
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(SPECIAL)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(SPECIAL))
    return kind(tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **roles)


def _llava_processor(side: int | None = None) -> ProcessorMixin:
    pixels = 14 * (side or 24)
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": pixels}, crop_size=pixels),
        tokenizer=tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )


def _qwen_processor(side: int | None = None) -> ProcessorMixin:
    least, most = (4, 1024) if side is None else (side**2, side**2)
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=least * 28**2, max_pixels=most * 28**2),
        tokenizer=tokenizer(transformers.Qwen2TokenizerFast, eos_token="<|im_end|>", pad_token="<pad>"),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )


def _clip(**sizes: int) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, **sizes}


_LARGE_CLIP = _clip(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
_LLAVA = {"model_type": "llava", "image_token_index": SPECIAL.index("<image>")}

BASES: dict[str, Base] = {
    # 7 million parameters, and as many tokens of image and text as LLaVA-1.5 has
    "tiny": Base(
        {
            **_LLAVA,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 1000,
                "hidden_size": 256,
                "intermediate_size": 688,
                "num_hidden_layers": 8,
                "num_attention_heads": 8,
                "num_key_value_heads": 8,
                "max_position_embeddings": 16384,
            },
            "vision_config": _clip(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
        },
        _llava_processor,
        SMALL_SAM,
    ),
    "0.5B": Base(
        {
            **_LLAVA,
            "text_config": {
                "model_type": "qwen2",
                "vocab_size": 151936,
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
            },
            "vision_config": _LARGE_CLIP,
        },
        _llava_processor,
        {"variant": "vit_b"},
    ),
    "llava-1.5-7b": Base(
        {
            **_LLAVA,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 32064,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 4096,
            },
            "vision_config": _LARGE_CLIP,
        },
        _llava_processor,
        {"variant": "vit_h"},
    ),
    "qwen2.5-vl-7b": Base(
        {
            "model_type": "qwen2_5_vl",
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 128000,
                "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
            },
            "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
            "image_token_id": SPECIAL.index("<|image_pad|>"),
            "video_token_id": SPECIAL.index("<|video_pad|>"),
            "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
            "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
        },
        _qwen_processor,
        {"variant": "vit_h"},
    ),
}
