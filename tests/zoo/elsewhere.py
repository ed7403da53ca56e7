"""Architectures with several residual streams, and those whose image is not among the tokens of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from tests.tiny import processors
from tests.zoo.specimen import Specimen, ask_processor
from tests.zoo.square import (
    SIGLIP,
    TEXT,
    VOCAB_SIZE,
    chat,
    draw_projection,
    gemma3_processor,
    random_model,
    token_id,
    words,
)

ANSWER_START = processors.TOKEN_IDS["<pad>"]  # starts an answer
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


def with_answer(processor: ProcessorMixin, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """As `segment` asks, and the start of an answer, which a whole forward needs and an early exit does not."""
    return {**ask_processor(processor, images), "decoder_input_ids": torch.full((len(images), 1), ANSWER_START)}


def florence2() -> Built:
    images = transformers.CLIPImageProcessor(size={"height": 128, "width": 128}, do_center_crop=False)
    images.image_seq_length = 17  # 4 x 4 and their mean
    processor = transformers.Florence2Processor(images, words(transformers.BartTokenizerFast, image_token="<image>"))
    text = {
        **TEXT,
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 4,
        "decoder_layers": 1,
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
        "decoder_start_token_id": ANSWER_START,
        "init_std": 0.2,
    }
    vision = {
        "embed_dim": [8, 16],
        "depths": [1, 1],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "patch_size": [8, 4],
        "patch_stride": [8, 4],
        "patch_padding": [0, 0],
        "patch_prenorm": [False, True],
        "window_size": 4,
        "projection_dim": 32,
    }
    model = random_model(
        "florence2", text_config=text, vision_config=vision, image_token_id=token_id(processor, "<image>")
    )
    return model, processor


def t5gemma2() -> Built:
    processor = gemma3_processor()
    text = {**TEXT, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
    encoder = {
        "text_config": text,
        "vision_config": {**SIGLIP, "image_size": 112},
        "mm_tokens_per_image": 16,
        "eoi_token_index": token_id(processor, "<eoi>"),
    }
    model = random_model("t5gemma2", encoder=encoder, decoder=text, image_token_index=token_id(processor, "<soft>"))
    draw_projection(model)
    return model, processor


def mllama() -> Built:
    tokenizer = words(image_token="<|image|>")
    images = transformers.MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=2)
    processor = transformers.MllamaProcessor(images, tokenizer, chat_template=chat("<|image|>"))
    vision = {
        "image_size": 56,
        "patch_size": 14,
        "hidden_size": 16,
        "intermediate_size": 32,
        "attention_heads": 2,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 32,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    text = {
        **TEXT,
        "vocab_size": VOCAB_SIZE,
        "cross_attention_layers": [1, 3],
        "rope_scaling": {"rope_type": "default"},
    }
    model = random_model(
        "mllama", text_config=text, vision_config=vision, image_token_index=token_id(processor, "<|image|>")
    )
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):  # shut at the start: no image would reach the answer
            parameter.data.fill_(1)
    return model, processor


class FewPatches(transformers.Pix2StructProcessor):
    """Pix2Struct's processor, whose default is 2048 patches, whatever its image processor is set to."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, max_patches=self.image_processor.max_patches, **kwargs)


def pix2struct() -> Built:
    processor = FewPatches(transformers.Pix2StructImageProcessor(max_patches=30), words(transformers.T5TokenizerFast))
    text = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 4,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "decoder_start_token_id": ANSWER_START,
        "pad_token_id": ANSWER_START,
    }
    vision = {
        "hidden_size": 32,
        "patch_embed_hidden_size": 16 * 16 * 3,
        "d_kv": 8,
        "d_ff": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "seq_len": 64,
    }
    return random_model("pix2struct", text_config=text, vision_config=vision), processor


SPECIMENS: dict[str, Specimen] = {
    "gemma3n": Specimen(gemma3n, requires=("timm",), note="a convolutional tower of timm"),
    "florence2": Specimen(florence2, ask=with_answer, note="its encoder is read"),
    "glm5_next": Specimen(glm5_next, image=(96, 128)),
    "mllama": Specimen(mllama, image=(56, 112)),
    "pix2struct": Specimen(pix2struct, image=(64, 96), since=5),
    "qwen4_exp": Specimen(qwen4_exp, image=(96, 128)),
    "t5gemma2": Specimen(t5gemma2, ask=with_answer, note="its encoder is read"),
}
