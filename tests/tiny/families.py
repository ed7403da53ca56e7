"""Transformers' SAMs of toy dimensions, with random weights: one of each family that the installed version has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForMaskGeneration, PretrainedConfig, PreTrainedModel

from lens_adapter.sam.families import FAMILIES
from tests.tiny.sam import randomize

INSTALLED = [name for name in FAMILIES if name in CONFIG_MAPPING]
SIDE, PATCH, WIDTH = 64, 8, 32
MEMORY = 64  # width of memories, which the classes of video models take for granted
_GRID = SIDE // PATCH


def tiny_config(family: str, width: int = WIDTH) -> dict[str, Any]:
    """Of a picture of 64 or 128 pixels, in 8 x 8 cells of a width."""
    vit = {
        "hidden_size": 32,
        "output_channels": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "mlp_dim": 64,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": width // 2,
    }
    pyramid = {
        "backbone_feature_sizes": [[4 * _GRID] * 2, [2 * _GRID] * 2, [_GRID] * 2],
        "fpn_hidden_size": width,
    }
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [2 * SIDE, 2 * SIDE],
        "patch_stride": [4, 4],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    repvit = {
        "model_type": "timm_wrapper",
        "architecture": "repvit_m0_9",
        "num_classes": 2,
        "model_args": {
            **{"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
            **{"embed_dim": [8, 16, 32, 64], "depth": [1, 1, 1, 1]},
        },
    }
    sam3 = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 32,
    }
    vision = {
        "sam": vit,
        "sam_hq": vit,
        "sam2": {
            **{"model_type": "sam2_vision_model", **pyramid, "backbone_config": hiera},
            "backbone_channel_list": [64, 32, 16, 8],
        },
        "edgetam": {
            **{"model_type": "edgetam_vision_model", **pyramid, "backbone_config": repvit},
            "backbone_channel_list": [64, 32, 16, 8],
        },
        "sam3_tracker": {
            **{"model_type": "sam3_vision_model", **pyramid, "backbone_config": sam3},
            "scale_factors": [4.0, 2.0, 1.0],
        },
    }[family]
    twice = family in ("sam2", "edgetam")  # whose backbones halve twice first
    side, patch = (2 * SIDE, 2 * PATCH) if twice else (SIDE, PATCH)
    decoder = {
        "hidden_size": width,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    return {
        "vision_config": vision,
        "prompt_encoder_config": {
            **{"hidden_size": width, "image_size": side, "patch_size": patch, "mask_input_channels": 8},
        },
        "mask_decoder_config": {**decoder, "vit_dim": 32} if family == "sam_hq" else decoder,
    }


def video_parts(family: str) -> dict[str, Any]:
    """As `tiny_config`, of the shape that the classes of video models take for granted: wider than a memory is."""
    config = tiny_config(family, 2 * MEMORY)
    if family == "sam3_tracker":
        config["vision_config"]["scale_factors"] = [4.0, 2.0, 1.0, 0.5]  # as published: the last is not read
    return config


def tiny_family_model(family: str, seed: int = 0, config: dict[str, Any] | None = None) -> PreTrainedModel:
    """The family's own model; all its tensors are random."""
    config = tiny_config(family) if config is None else config
    model = AutoModelForMaskGeneration.from_config(CONFIG_MAPPING[family](**config))
    randomize(model, seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.fill_(16.0)  # or numbers grow from layer to layer
            elif name.endswith("num_batches_tracked"):
                tensor.zero_()
        for own in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
            own.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model.eval()


def tiny_video_config(family: str) -> PretrainedConfig:
    """Of the family's own model of videos."""
    config = video_parts(family)
    memory: dict[str, Any] = {
        "image_size": config["prompt_encoder_config"]["image_size"],
        "num_maskmem": 3,
        "max_object_pointers_in_encoder": 4,
        "memory_attention_hidden_size": 2 * MEMORY,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [_GRID, _GRID],
        "memory_encoder_hidden_size": 2 * MEMORY,
        "memory_encoder_output_channels": MEMORY,
        "mask_downsampler_embed_dim": 2 * MEMORY,
        "memory_fuser_embed_dim": 2 * MEMORY,
        "memory_fuser_intermediate_dim": 32,
    }
    if family == "edgetam":
        memory |= {
            "memory_attention_rope_q_sizes": [_GRID, _GRID],
            "memory_attention_rope_k_sizes": [2, 2],
            **{f"perceiver_resampler_{name}": 4 for name in ("num_latents", "num_latents_2d")},
            **{f"perceiver_resampler_{name}": MEMORY for name in ("hidden_size", "attention_head_dim")},
            **{f"perceiver_resampler_{name}": 1 for name in ("num_attention_heads", "num_layers")},
            "perceiver_resampler_mlp_intermediate_size": 32,
        }
    return getattr(transformers, FAMILIES[family].video[0]).config_class(**config, **memory)


def tiny_video_model(family: str, seed: int = 0) -> PreTrainedModel:
    """The family's own model of videos, whose parts for single pictures are those of `tiny_family_model`."""
    model_class = getattr(transformers, FAMILIES[family].video[0])
    model = randomize(model_class(tiny_video_config(family)), seed + 1)
    model.load_state_dict(tiny_family_model(family, seed, video_parts(family)).state_dict(), strict=False)
    return model.eval()


def save_video_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Its folder, as transformers reads it."""
    return _save(tiny_video_model(family, seed), folder)


def _image_processor(name: str) -> Any:
    """On tensors: what transformers 5 has alone, and 4 calls fast."""
    fast = int(transformers.__version__.split(".")[0]) < 5
    return getattr(transformers, f"{name}ImageProcessor{'Fast' if fast else ''}")


def own_processor(family: str) -> Any:
    """The family's own processor for pictures of the toy's size; where pictures are padded, that of images alone."""
    side = tiny_config(family)["prompt_encoder_config"]["image_size"]
    square = {"height": side, "width": side}
    if FAMILIES[family].squashed:
        mean, std = ([value / 255 for value in values] for values in FAMILIES[family].colors)
        images = _image_processor("Sam2")(size=square, image_mean=mean, image_std=std)
        return transformers.Sam2Processor(images, target_size=side)
    return _image_processor("Sam")(size={"longest_edge": side}, pad_size=square)


def video_processor_of(family: str) -> Any:
    """The family's own processor for videos of the toy's size."""
    side = tiny_config(family)["prompt_encoder_config"]["image_size"]
    mean, std = ([value / 255 for value in values] for values in FAMILIES[family].colors)
    settings = {"size": {"height": side, "width": side}, "image_mean": mean, "image_std": std}
    images = _image_processor("Sam3" if family == "sam3_tracker" else "Sam2")(**settings)
    processor = getattr(transformers, FAMILIES[family].video[1])
    return processor(images, transformers.Sam2VideoVideoProcessor(**settings), target_size=side)


def save_family(family: str, folder: Path, seed: int = 0, config: dict[str, Any] | None = None) -> Path:
    """The model's folder, as transformers reads it."""
    return _save(tiny_family_model(family, seed, config), folder)


def _save(model: PreTrainedModel, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(folder / "config.json", use_diff=False)  # a difference to EdgeTAM's default is on the Hub
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
