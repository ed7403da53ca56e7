"""A segment-anything of toy dimensions, in its three shapes: ours, its authors' and transformers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from lens_adapter.config import LensConfig
from lens_adapter.sam.segment_anything import SamDecoder


def tiny_sam(**changes: Any) -> dict[str, Any]:
    """A complete `LensConfig.sam` of a 64-pixel SAM of about 70 thousand parameters."""
    dimensions = {
        "variant": "custom",
        "image_size": 64,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "window_size": 3,
        "global_attention_layers": [1],
        "out_channels": 32,
        "decoder_num_heads": 2,
        "decoder_mlp_dim": 64,
        "mask_in_channels": 8,
        "iou_head_dim": 16,
        "include_image_encoder": True,
    }
    return LensConfig(sam={**dimensions, **changes}).sam


def tiny_decoder(seed: int = 0, **changes: Any) -> SamDecoder:
    """A `SamDecoder` whose tensors are all random, those that start at zero or one too."""
    return randomize(SamDecoder(tiny_sam(**changes)), seed)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every floating tensor of `module` anew, around one for the scales of norms and zero else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            is_scale = tensor.ndim == 1 and name.endswith("weight")
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2 + is_scale)
    return module.eval()


def segment_anything_of(decoder: SamDecoder) -> Sam:
    """segment-anything's own `Sam` around the very modules of `decoder`."""
    mean, std = decoder.sam["pixel_mean"], decoder.sam["pixel_std"]
    return Sam(decoder.image_encoder, decoder.prompt_encoder, decoder.mask_decoder, mean, std).eval()


def tiny_sam_model(sam: dict[str, Any], seed: int = 0) -> SamModel:
    """transformers' `SamModel` of the dimensions in `sam`, with random weights."""
    square = {"image_size": sam["image_size"], "patch_size": sam["patch_size"]}
    vision = SamVisionConfig(
        **square,
        hidden_size=sam["embed_dim"],
        output_channels=sam["out_channels"],
        num_hidden_layers=sam["depth"],
        num_attention_heads=sam["num_heads"],
        mlp_ratio=sam["mlp_ratio"],
        use_rel_pos=sam["relative_position"],
        window_size=sam["window_size"],
        global_attn_indexes=sam["global_attention_layers"],
        num_pos_feats=sam["out_channels"] // 2,
    )
    prompt = SamPromptEncoderConfig(
        **square, hidden_size=sam["out_channels"], mask_input_channels=sam["mask_in_channels"]
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=sam["out_channels"],
        mlp_dim=sam["decoder_mlp_dim"],
        num_hidden_layers=sam["decoder_depth"],
        num_attention_heads=sam["decoder_num_heads"],
        iou_head_hidden_dim=sam["iou_head_dim"],
        layer_norm_eps=1e-5,  # segment-anything's; transformers' default is 1e-6
    )
    config = SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=decoder.to_dict()
    )
    return randomize(SamModel(config), seed)


def noise_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB image of smooth random colors."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
