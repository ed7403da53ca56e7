"""Transformers' SAMs of toy dimensions, with random weights: one of each family that the installed version has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForMaskGeneration, PreTrainedModel

from lens_adapter.sam.families import FAMILIES
from tests.tiny.sam import randomize

INSTALLED = [name for name in FAMILIES if name in CONFIG_MAPPING]
SIDE, PATCH, WIDTH = 64, 8, 32
_GRID = SIDE // PATCH


def tiny_config(family: str) -> dict[str, Any]:
    """Of a picture of 64 pixels, in 8 x 8 cells of width 32."""
    vit = {
        "hidden_size": 32,
        "output_channels": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "mlp_dim": 64,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": WIDTH // 2,
    }
    pyramid = {
        "backbone_feature_sizes": [[4 * _GRID] * 2, [2 * _GRID] * 2, [_GRID] * 2],
        "fpn_hidden_size": WIDTH,
    }
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "patch_stride": [2, 2],
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
    side, patch = (2 * SIDE, 2 * PATCH) if family == "edgetam" else (SIDE, PATCH)  # whose backbone halves twice first
    decoder = {
        "hidden_size": WIDTH,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    return {
        "vision_config": vision,
        "prompt_encoder_config": {
            **{"hidden_size": WIDTH, "image_size": side, "patch_size": patch, "mask_input_channels": 8},
        },
        "mask_decoder_config": {**decoder, "vit_dim": 32} if family == "sam_hq" else decoder,
    }


def tiny_family_model(family: str, seed: int = 0) -> PreTrainedModel:
    """The family's own model; all its tensors are random."""
    config = tiny_config(family)
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


def save_family(family: str, folder: Path, seed: int = 0) -> Path:
    """The model's folder, as transformers reads it."""
    model = tiny_family_model(family, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(folder / "config.json", use_diff=False)  # a difference to EdgeTAM's default is on the Hub
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
