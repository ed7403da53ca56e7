"""Real processors, built offline and in milliseconds: transformers' own classes over a byte-level tokenizer of our own.

Their tokenizers know the 256 bytes and the special tokens below, and nothing is ever unknown: `VOCAB_SIZE` tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

IMAGE_TOKEN = "<image>"  # LLaVA's
IMAGE_PAD = "<|image_pad|>"  # Qwen's
SPECIAL_TOKENS = (
    *("<pad>", "<s>", "</s>", IMAGE_TOKEN),
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", IMAGE_PAD, "<|video_pad|>"),
)
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
TOKEN_IDS = {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' if message.role == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message.content %}{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Framing = Literal["crop", "squash", "pad"]


@cache
def _backend() -> Tokenizer:
    """Byte-level BPE without merges: one token a byte."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def tokenizer(
    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, *more: str, **special: str
) -> PreTrainedTokenizerFast:
    """A fresh tokenizer of `VOCAB_SIZE` tokens and `more` special ones, as an instance of `kind`."""
    extra = [token for token in (*SPECIAL_TOKENS, *more) if token not in special.values()]
    names = ["input_ids", "attention_mask"]  # no token types: a decoder has no use for them
    return kind(tokenizer_object=_backend(), additional_special_tokens=extra, model_input_names=names, **special)


def llava_processor(
    framing: Framing = "crop", *, image_size: int = 56, patch_size: int = 14, chat_template: str | None = LLAVA_TEMPLATE
) -> ProcessorMixin:
    """LLaVA's processor over `image_size` x `image_size` pixels.

    Args:
        framing: "crop" (short side to `image_size`, then the centre: what LLaVA-1.5 was released with), "squash"
            (both sides to `image_size`) or "pad" (to a square first: what LLaVA-1.5 was trained with).
    """
    square = {"height": image_size, "width": image_size}
    if framing == "pad":
        images = transformers.LlavaImageProcessor(do_pad=True, size=square, do_center_crop=False)
    elif framing == "squash":
        images = transformers.CLIPImageProcessor(size=square, do_center_crop=False)
    else:
        images = transformers.CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=square)
    return transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, dropped again by "default"
        chat_template=chat_template,
    )


def qwen2_vl_processor(**sizes: int) -> ProcessorMixin:
    """Qwen2-VL's processor; `sizes` as in `_qwen_processor`."""
    return _qwen_processor(transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor, **sizes)


def qwen2_5_vl_processor(**sizes: int) -> ProcessorMixin:
    """Qwen2.5-VL's processor; `sizes` as in `_qwen_processor`."""
    return _qwen_processor(transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor, **sizes)


def qwen3_vl_processor(**sizes: int) -> ProcessorMixin:
    """Qwen3-VL's processor, whose patches have 16 pixels; `sizes` as in `_qwen_processor`."""
    return _qwen_processor(
        transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, **{"patch_size": 16, **sizes}
    )


def _qwen_processor(
    kind: type,
    video_kind: type,
    *,
    patch_size: int = 14,
    merge_size: int = 2,
    min_tokens: int = 4,
    max_tokens: int = 36,
) -> ProcessorMixin:
    """A Qwen processor that gives an image `min_tokens` to `max_tokens` tokens."""
    area = (patch_size * merge_size) ** 2  # pixels of one token
    patches = {"patch_size": patch_size, "merge_size": merge_size, "temporal_patch_size": 2}
    images = transformers.Qwen2VLImageProcessor(min_pixels=min_tokens * area, max_pixels=max_tokens * area, **patches)
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return kind(
        image_processor=images,
        tokenizer=tokenizer(transformers.Qwen2TokenizerFast, **special),
        video_processor=video_kind(**patches),
        chat_template=QWEN_TEMPLATE,
    )
