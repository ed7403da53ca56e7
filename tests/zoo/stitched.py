"""Architectures that stitch tiles into one grid, or whose tiles differ in size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import processors
from tests.zoo.specimen import Specimen

LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 16,
    "initializer_factor": 0.2,
}
CANVASES = [[56, 112], [112, 56], [112, 112], [56, 168]]
SQUARE = {"size": {"height": 56, "width": 56}, "crop_size": {"height": 56, "width": 56}}


def words(*more: str, kind: type = PreTrainedTokenizerFast, **roles: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with `more` special tokens, and with tokens to be found as attributes (`image_token`, ...)."""
    tokenizer = processors.tokenizer(kind, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_tokens(list(more), special_tokens=True)
    for role, token in roles.items():
        setattr(tokenizer, role, token)
        setattr(tokenizer, f"{role}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def specimen(
    architecture: str,
    facts: Callable[[], dict[str, Any]],
    processor: Callable[[], Any],
    image_token: str = "<image>",
    **rest: Any,
) -> Specimen:
    """`facts` of the config, and the processor: made late, since not every version of transformers knows them."""

    def build() -> tuple[PreTrainedModel, Any]:
        made = processor()
        made.chat_template = processors.LLAVA_TEMPLATE.replace("<image>", image_token)
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **facts())
        model = AutoModelForImageTextToText.from_config(config).eval()
        sharpen(model)
        return model, made

    return Specimen(build, **rest)


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> None:
    """Let a tower's features stay where they are, or random weights would smear what the probe paints.

    Attention adds a tenth; convolutions of 3 x 3 see only the pixels that their stride gives them, no neighbors.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            own = slice(1, 1 + module.stride[0])
            kept = torch.zeros_like(module.weight)
            kept[..., own, own] = module.weight[..., own, own]
            module.weight.copy_(kept)
        elif "vision" in name and name.endswith(("attn.out_proj", "attn.o_proj", "attn.proj")):
            module.weight.mul_(0.1)


def llava_next(kind: str, **more: Any) -> Any:
    return getattr(transformers, kind)(
        image_processor=transformers.LlavaNextImageProcessor(image_grid_pinpoints=CANVASES, **SQUARE),
        tokenizer=words(kind=transformers.LlamaTokenizerFast),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **more,
    )


def lfm2_images() -> Any:
    kind = getattr(transformers, "Lfm2VlImageProcessor", None) or transformers.Lfm2VlImageProcessorFast  # 4.57
    tokens = {"min_image_tokens": 4, "max_image_tokens": 16}
    return kind(tile_size=32, max_tiles=6, encoder_patch_size=8, **tokens)


def minicpm(kind: str, patch: int, scale: int, mode: str) -> Any:
    """Slices of up to about `scale` x `scale` pixels."""
    family = kind if kind == "MiniCPMOcr" else "MiniCPMV4_6"  # 4.7 has the image processor of 4.6
    sizes = {"patch_size": patch, "scale_resolution": scale, "downsample_mode": mode}
    tokenizer = words(
        image_token="<image>",
        video_token="<|video_pad|>",
        image_start_token="<|vision_start|>",
        image_end_token="<|vision_end|>",
        slice_start_token="<|im_start|>",
        slice_end_token="<|im_end|>",
        image_id_start_token="<s>",
        image_id_end_token="</s>",
    )
    return getattr(transformers, f"{kind}Processor")(
        image_processor=getattr(transformers, f"{family}ImageProcessor")(**sizes),
        video_processor=getattr(transformers, f"{family}VideoProcessor")(**sizes),
        tokenizer=tokenizer,
    )


MINICPM = {
    "text_config": {
        **LLAMA,
        "model_type": "qwen3_5_text",
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
            "mrope_section": [2, 1, 1],
        },
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 70,
        "patch_size": 7,
    },
    "insert_layer_id": 0,
    "image_token_id": 259,
    "video_token_id": 266,
    "tie_word_embeddings": False,
}
MOLMO2_TOKENS = (
    *("<|image|>", "<|video|>", "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<im_end>"),
    *("<frame_start>", "<frame_end>", "<im_low>"),
)  # ids from 267 on

ANY_RESOLUTION = {
    "text_config": LLAMA,
    "vision_config": CLIP,
    "image_token_index": 259,
    "image_grid_pinpoints": CANVASES,
}

SPECIMENS: dict[str, Specimen] = {
    # (70, 120) goes over 2 x 2 tiles: a grid of 8 x 8 of which 4 rows are kept.
    "llava_next": specimen(
        "llava_next", lambda: dict(ANY_RESOLUTION), lambda: llava_next("LlavaNextProcessor"), image=(70, 120)
    ),
    "llava_next_video": specimen(
        "llava_next_video",
        lambda: {**ANY_RESOLUTION, "video_token_index": 266},
        lambda: llava_next(
            "LlavaNextVideoProcessor",
            video_processor=transformers.LlavaNextVideoVideoProcessor(),
            video_token="<|video_pad|>",
        ),
        image=(70, 120),
    ),
    # Tiles of 60 pixels, of which patches cover 56; the kept 4 x 8 tokens are shrunk to 2 x 5.
    "llava_onevision": specimen(
        "llava_onevision",
        lambda: {
            "text_config": {**LLAMA, "model_type": "qwen2"},
            "vision_config": {
                **CLIP,
                "model_type": "siglip_vision_model",
                "image_size": 60,
                "vision_use_head": False,
            },
            "image_token_index": 259,
            "video_token_index": 266,
            "image_grid_pinpoints": [[60, 120], [120, 60], [120, 120]],
            "vision_aspect_ratio": "anyres_max_1",
        },
        lambda: transformers.LlavaOnevisionProcessor(
            image_processor=transformers.LlavaOnevisionImageProcessor(
                size={"height": 60, "width": 60}, image_grid_pinpoints=[[60, 120], [120, 60], [120, 120]]
            ),
            tokenizer=words(),
            video_processor=transformers.LlavaOnevisionVideoProcessor(),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            video_token="<|video_pad|>",
            vision_aspect_ratio="anyres_max_1",
        ),
        image=(70, 120),
    ),
    # The tower's patches are read by windows of 2 x 2, one token each.
    "granite4_vision": specimen(
        "granite4_vision",
        lambda: {
            **ANY_RESOLUTION,
            "text_config": {**LLAMA, "model_type": "granite4_vision_text"},
            "vision_config": {**CLIP, "hidden_size": 64},
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 1,
                "intermediate_size": 32,
                "cross_attention_frequency": 1,
                "use_qformer_text_input": False,
            },
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [1, 1, 2, 3],
        },
        lambda: transformers.Granite4VisionProcessor(
            image_processor=transformers.LlavaNextImageProcessor(image_grid_pinpoints=CANVASES, **SQUARE),
            tokenizer=words(),
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            downsample_rate="1/2",
        ),
        image=(70, 120),
    ),
    # Six tiles of 2 x 2 tokens, 2 rows of them, and a thumbnail of 3 x 4.
    "lfm2_vl": specimen(
        "lfm2_vl",
        lambda: {
            "text_config": {
                **LLAMA,
                "model_type": "lfm2",
                "block_auto_adjust_ff_dim": False,
                "layer_types": ["conv", "full_attention"] * 2,
            },
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_patches": 16,
                "patch_size": 8,
                "vision_use_head": False,
            },
            "image_token_id": 259,
            "projector_hidden_size": 32,
        },
        lambda: transformers.Lfm2VlProcessor(
            lfm2_images(),
            words(
                image_token="<image>",
                image_start_token="<|vision_start|>",
                image_end_token="<|vision_end|>",
                image_thumbnail="<|im_start|>",
            ),
        ),
        image=(100, 150),
    ),
    "minicpmv4_6": specimen(
        "minicpmv4_6", lambda: dict(MINICPM), lambda: minicpm("MiniCPMV4_6", 7, 84, "16x"), image=(128, 196)
    ),
    "minicpmv4_7": specimen(
        "minicpmv4_7", lambda: dict(MINICPM), lambda: minicpm("MiniCPMV4_7", 7, 84, "16x"), image=(128, 196)
    ),
    "minicpm_ocr": specimen(
        "minicpm_ocr", lambda: dict(MINICPM), lambda: minicpm("MiniCPMOcr", 7, 42, "4x"), image=(64, 98)
    ),
    # Crops of 7 x 7 patches that overlap by 3; an odd number of patches, so the last pooled ones are half padding.
    "molmo2": specimen(
        "molmo2",
        lambda: {
            "text_config": {**LLAMA, "head_dim": 8, "model_type": "molmo2_text", "additional_vocab_size": 4},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "image_size": [98, 98],
                "initializer_range": 0.1,
            },
            "adapter_config": {
                "vision_feature_layer": [0],
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "text_hidden_size": 32,
                "intermediate_size": 48,
                "initializer_range": 0.3,
            },
            **{
                key: 267 + MOLMO2_TOKENS.index(token)
                for key, token in {
                    "image_start_token_id": "<im_start>",
                    "low_res_image_start_token_id": "<low_res_im_start>",
                    "image_end_token_id": "<im_end>",
                    "image_patch_id": "<im_patch>",
                    "frame_start_token_id": "<frame_start>",
                    "frame_end_token_id": "<frame_end>",
                }.items()
            },
        },
        lambda: transformers.Molmo2Processor(
            transformers.Molmo2ImageProcessor(size={"height": 98, "width": 98}, overlap_margins=[1, 2]),
            transformers.Molmo2VideoProcessor(),
            words(*MOLMO2_TOKENS),
        ),
        image_token="<|image|>",
        image=(100, 160),
    ),
    # 2 x 3 local tiles of 2 x 2 tokens, then 4 x 4 of the whole.
    "step3p7": specimen(
        "step3p7",
        lambda: {
            "text_config": {
                **{key: value for key, value in LLAMA.items() if key != "model_type"},
                "head_dim": 8,
                "mlp_layer_types": ["dense"] * 4,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
                "num_sliding_attention_heads": 8,
                "sliding_window": 16,
                "moe_intermediate_size": 16,
                "share_expert_dim": 16,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
            },
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "mlp_ratio": 2.0,
                "image_size": 224,
                "max_position_embeddings": 256,
            },
            "image_token_id": 267,
        },
        lambda: transformers.Step3p7Processor(
            transformers.Step3p7ImageProcessor(size={"height": 224, "width": 224}, patch_size=112),
            words("<im_patch>"),
        ),
        image_token="<im_patch>",
        image=(150, 330),
    ),
    # 2 x 3 local tiles of 2 x 2 tokens in one grid, newlines, 4 x 4 of the whole and its padding, newlines, separator.
    "unlimited_ocr": specimen(
        "unlimited_ocr",
        lambda: {
            "text_config": {
                **{key: value for key, value in LLAMA.items() if key != "model_type"},
                "num_key_value_heads": 4,  # its eager kernel knows no groups
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
            },
            "vision_config": {
                "sam_config": {
                    "hidden_size": 16,
                    "output_channels": 8,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "image_size": 256,
                    "window_size": 4,
                    "global_attn_indexes": [],
                    "mlp_dim": 32,
                    "downsample_channels": [16, 16],
                    "initializer_range": 0.1,
                },
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "image_size": 64,
                    "patch_size": 16,
                },
            },
            "image_token_id": 259,
        },
        lambda: transformers.UnlimitedOcrProcessor(
            transformers.UnlimitedOcrImageProcessor(size={"height": 256, "width": 256}, tile_size=128, max_patches=6),
            words(),
        ),
        image=(200, 300),
    ),
}
