"""Architectures with a grid of its own for every image, said otherwise than in `image_grid_thw`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.zoo.specimen import Specimen, ask_processor
from tests.zoo.square import OLD, TEXT, TOWER, VOCAB_SIZE, chat, codes, learn_codes, specimen, words

# 4 pixels a patch, 3 x 3 patches a token: the processors of Gemma 4 give an image no fewer than about 70 tokens.
SMALL = {"patch_size": 4, "pooling_kernel_size": 3}
GEMMA_TEXT = {
    **TEXT,
    "global_head_dim": 16,  # of the layers of full attention
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 8,
}
GEMMA_TOWER = {**TOWER, **SMALL, "model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 8}
PIXTRAL = {**TOWER, "model_type": "pixtral", "image_size": 112, "initializer_range": 0.1}
EXPERTS = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}


def gemma_processor(family: str) -> Any:
    roles = {role: f"<{role}>" for role in ("image_token", "boi_token", "eoi_token", "audio_token", "boa_token")}
    return getattr(transformers, f"{family}Processor")(
        feature_extractor=getattr(transformers, f"{family}AudioFeatureExtractor")(),
        image_processor=getattr(transformers, f"{family}ImageProcessor")(max_soft_tokens=70, **SMALL),
        tokenizer=words(**roles, eoa_token="<eoa_token>"),
        video_processor=getattr(transformers, f"{family}VideoProcessor")(),
        chat_template=chat("<image_token>"),
    )


def ask_with_canvas(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """DiffusionGemma draws the text it starts from at random; here it is given, so that runs can be compared."""
    return {**ask_processor(processor, images), "decoder_input_ids": torch.arange(8).expand(len(images), 8)}


def emu3_processor() -> Any:
    roles = {role: f"<{role}>" for role in ("boi_token", "eoi_token", "image_wrapper_token", "eof_token")}
    images = transformers.Emu3ImageProcessor(min_pixels=40 * 80, max_pixels=41 * 82, spatial_factor=8)
    return transformers.Emu3Processor(
        images, words(transformers.GPT2TokenizerFast, image_token="<image>", **roles), chat_template=chat("<image>")
    )


class Spaced(PreTrainedTokenizerFast):
    """Puts a space before every text, even where an image starts it: Fuyu's does, and its processor relies on it."""

    def __call__(self, text: str, **options: Any) -> Any:
        return super().__call__(" " + text, **options)

    def encode(self, text: str, **options: Any) -> list[int]:
        return super().encode(" " + text, **options)


def fuyu_processor() -> Any:
    images = transformers.FuyuImageProcessor(size={"height": 60, "width": 150}, patch_size={"height": 15, "width": 15})
    tokens = words(Spaced, image="|SPEAKER|", newline="|NEWLINE|", answer="<0x04>", end="|ENDOFTEXT|")
    return transformers.FuyuProcessor(images, tokens)


def hunyuan_processor() -> Any:
    images = transformers.HunYuanVLImageProcessor(
        patch_size=14, size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 18}
    )
    tokens = words(image_token="<image>", image_start_token="<start>", image_end_token="<end>")
    return transformers.HunYuanVLProcessor(images, tokens, chat_template=chat("<start><image><end>"))


def inkling_processor() -> Any:
    return transformers.InklingProcessor(
        feature_extractor=transformers.InklingFeatureExtractor(),
        image_processor=transformers.InklingImageProcessor(size={"height": 8, "width": 8}),
        tokenizer=words(
            image_token="<image>", audio_token="<audio>", boi="<|content_image|>", boa="<|content_audio_input|>"
        ),
        chat_template=chat("<|content_image|><image>"),
    )


def pixtral_processor(merge: int = 2) -> Any:
    images = transformers.PixtralImageProcessor(size={"longest_edge": 140}, patch_size={"height": 14, "width": 14})
    tokens = words(image="[IMG]", row="[IMG_BREAK]", end="[IMG_END]")
    return transformers.PixtralProcessor(
        images, tokens, patch_size=14, spatial_merge_size=merge, chat_template=chat("[IMG]")
    )


def lighton_processor() -> Any:
    images = transformers.PixtralImageProcessor(size={"longest_edge": 140}, patch_size={"height": 28, "width": 28})
    tokens = words(image_token="<image>", image_break_token="<break>", image_end_token="<end>")
    return transformers.LightOnOcrProcessor(images, tokens, chat_template=chat("<image>"))


def nemotron_processor() -> Any:
    images = transformers.NemotronH_Omni_Reasoning_V3ImageProcessor(
        patch_size=16, min_num_patches=32, max_num_patches=72
    )
    tokens = words(image_token="<image>", image_start_token="<img>", image_end_token="</img>")
    return transformers.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=images,
        video_processor=transformers.NemotronH_Omni_Reasoning_V3VideoProcessor(),
        tokenizer=tokens,
        feature_extractor=transformers.ParakeetFeatureExtractor(),
        chat_template=chat("<image>"),
    )


SPECIMENS: dict[str, Specimen] = {
    **specimen(
        "gemma4",
        lambda: gemma_processor("Gemma4"),
        {"text_config": GEMMA_TEXT, "vision_config": GEMMA_TOWER},
        "<image_token>",
    ),
    **specimen(
        "gemma4_unified",
        lambda: gemma_processor("Gemma4Unified"),
        {
            "text_config": GEMMA_TEXT,
            "vision_config": {**SMALL, "mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32},
        },
        "<image_token>",
    ),
    **specimen(
        "diffusion_gemma",
        lambda: gemma_processor("Gemma4"),
        {
            "text_config": {
                **GEMMA_TEXT,
                "num_global_key_value_heads": 1,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
            },
            "vision_config": GEMMA_TOWER,
            "canvas_length": 8,
        },
        "<image_token>",
        ask=ask_with_canvas,
        note="layers and rows are those of the encoder, which reads the prompt",
    ),
    **specimen(
        "emu3",
        emu3_processor,
        {
            "text_config": {**TEXT, "vocab_size": VOCAB_SIZE + 520},
            "vocabulary_map": {**codes("<|visual token {:0>6}|>", 512), "<|extra_200|>": VOCAB_SIZE + 512},
            "vq_config": {
                "codebook_size": 512,
                "temporal_downsample_factor": 1,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "hidden_size": 32,
            },
        },
        prepare=lambda model: learn_codes(model, (40, 80)),
        image=(80, 160),
        reach=0.4,
        hits=0.9,  # 512 codes are coarse: a small change may miss a code's border in the place that was painted
    ),
    **specimen(
        "fuyu",
        fuyu_processor,
        {"text_config": {"model_type": "persimmon", **TEXT}, **TEXT, "patch_size": 15},
        "|SPEAKER|",
    ),
    **specimen(
        "hunyuan_vl",
        hunyuan_processor,
        {
            "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 1, 1]}},
            "vision_config": {**TOWER, "out_hidden_size": 32, "max_image_size": 224, "min_image_size": 28},
        },
    ),
    **specimen(
        "inkling_mm_model",
        inkling_processor,
        {
            "text_config": {
                **TEXT,
                **EXPERTS,
                "swa_num_attention_heads": 2,
                "swa_num_key_value_heads": 1,
                "swa_head_dim": 8,
                "sliding_window_size": 16,
                "d_rel": 4,
                "rel_extent": 64,
                "layer_types": ["hybrid_sliding", "hybrid"] * 2,
                "mlp_layer_types": ["dense", "sparse"] * 2,
            },
            "vision_config": {"patch_size": 8, "num_hidden_layers": 4},
            "audio_config": {"n_mel_bins": 8, "mel_vocab_size": 4},
        },
        image=(30, 60),
    ),
    **specimen(
        "lighton_ocr",
        lighton_processor,
        {"text_config": {"model_type": "qwen3", **TEXT}, "vision_config": PIXTRAL},
    ),
    **specimen(
        "mistral3",
        pixtral_processor,
        {"text_config": {"model_type": "mistral", **TEXT}, "vision_config": PIXTRAL},
        "[IMG]",
        id_name="image_token_index",
    ),
    **specimen(
        "mistral_large4",
        pixtral_processor,
        {
            "text_config": {
                **TEXT,
                **EXPERTS,
                "num_key_value_heads": 4,
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 4,
                "v_head_dim": 8,
                "index_topk": 8,  # of about 50 tokens: fewer than the sequence has, so that attention is sparse
                "index_head_dim": 8,
                "index_n_heads": 2,
            },
            "vision_config": PIXTRAL,
        },
        "[IMG]",
        id_name="image_token_index",
    ),
    **specimen(
        "nemotron_h_omni",
        nemotron_processor,
        {
            "text_config": {
                **TEXT,
                **EXPERTS,
                "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
                "mamba_num_heads": 4,
                "mamba_head_dim": 16,
                "ssm_state_size": 8,
                "n_groups": 2,
                "chunk_size": 16,
            },
            "vision_config": {
                **TOWER,
                "patch_size": 16,
                "max_img_size": 256,
                "num_cls_tokens": 1,
                "num_registers": 1,
                "summary_idxs": [0],
                "video_temporal_patch_size": 2,
            },
            "vision_hidden_size": 16,
            "projector_hidden_size": 32,
        },
    ),
}
# LLaVA's class over a tower with a grid for every image (as Pixtral-12B is).
LLAVA_OVER_PIXTRAL = specimen(
    "llava",
    lambda: pixtral_processor(merge=1),
    {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": PIXTRAL,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "[IMG]",
    id_name="image_token_index",
    image=(35, 70),
)["llava"]

if OLD:
    del SPECIMENS["emu3"]  # refused there
