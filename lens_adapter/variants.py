"""SAM's dimensions: those that are published, the tiny one that ships, and the check of any others."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from lens_adapter import bounds
from lens_adapter.errors import LensConfigError, brief, did_you_mean
from lens_adapter.sam.families import complete_family

# Dimensions of segment-anything's image encoders and decoders, as published with their weights.
_SAM_COMMON = {
    "image_size": 1024,  # pixels of the padded square the image encoder sees
    "patch_size": 16,
    "window_size": 14,
    "relative_position": True,
    "out_channels": 256,  # width of the image embedding, of every prompt and of the mask decoder
    "decoder_depth": 2,
    "decoder_num_heads": 8,
    "decoder_mlp_dim": 2048,
    "mask_in_channels": 16,
    "iou_head_dim": 256,
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}
SAM_VARIANTS: dict[str, dict[str, Any]] = {
    "vit_b": {
        **_SAM_COMMON,
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_ratio": 4.0,
        "global_attention_layers": [2, 5, 8, 11],
        "weights": "facebook/sam-vit-base",
    },
    "vit_l": {
        **_SAM_COMMON,
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "mlp_ratio": 4.0,
        "global_attention_layers": [5, 11, 17, 23],
        "weights": "facebook/sam-vit-large",
    },
    "vit_h": {
        **_SAM_COMMON,
        "embed_dim": 1280,
        "depth": 32,
        "num_heads": 16,
        "mlp_ratio": 4.0,
        "global_attention_layers": [7, 15, 23, 31],
        "weights": "facebook/sam-vit-huge",
    },
    # SlimSAM (arXiv 2312.05284): vit_b with 50 % and 77 % of its image encoder pruned away.
    "slimsam_50": {
        **_SAM_COMMON,
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 12,
        "mlp_ratio": 4.0,
        "global_attention_layers": [2, 5, 8, 11],
        "weights": "nielsr/slimsam-50-uniform",
    },
    "slimsam_77": {
        **_SAM_COMMON,
        "embed_dim": 168,
        "depth": 12,
        "num_heads": 12,
        "mlp_ratio": 696 / 168,
        "global_attention_layers": [2, 5, 8, 11],
        "weights": "nielsr/slimsam-77-uniform",
    },
}

# The tiny SAM that ships with the package, in `lens_adapter/builtin/sam`.
BUILTIN_SAM: dict[str, Any] = {
    "image_size": 192,
    "patch_size": 8,
    "window_size": 8,
    "relative_position": False,
    "out_channels": 64,
    "decoder_depth": 2,
    "decoder_num_heads": 4,
    "decoder_mlp_dim": 128,
    "mask_in_channels": 8,
    "iou_head_dim": 64,
    "pixel_mean": _SAM_COMMON["pixel_mean"],
    "pixel_std": _SAM_COMMON["pixel_std"],
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "global_attention_layers": [3],
    "weights": "builtin",
}


def complete_sam(sam: str | dict[str, Any], *, read: bool = True) -> dict[str, Any]:
    """What `LensConfig.sam` may be -> everything there is to know about it, spelt out and checked.

    Args:
        sam: a name, or a dict that may leave out what follows from its variant.
        read: False: refuse what would have to be read from a folder or repository.

    Raises:
        LensConfigError: an impossible value.
    """
    if not isinstance(sam, (str, dict)):
        raise LensConfigError(f"LensConfig.sam must be the name of a variant or a dict; got {brief(sam)}.")
    known_variants = {**SAM_VARIANTS, "builtin": BUILTIN_SAM, "custom": SAM_VARIANTS["vit_b"]}
    if (family := complete_family(sam, known_variants, read=read)) is not None:
        return family
    given = {"variant": sam} if isinstance(sam, str) else dict(sam)
    variant = given.pop("variant", "custom")
    if not isinstance(variant, str) or variant not in known_variants:
        raise LensConfigError(
            f"LensConfig.sam: variant must be one of {[*known_variants]}; got {brief(variant)}."
            f"{did_you_mean(variant, known_variants)}"
        )
    base = known_variants[variant]
    known = {*base, "include_image_encoder"}
    if unknown := sorted(set(given) - known):
        raise LensConfigError(
            f"LensConfig.sam: unknown keys {brief(unknown)}; known: {sorted(known)}.{did_you_mean(unknown, known)}"
        )
    weights = {"weights": None} if variant == "custom" else {}
    # A copy: nobody who edits a config may edit the table of variants.
    full = deepcopy({"variant": variant, "include_image_encoder": False, **base, **weights, **given})

    def require(key: str, good: bool, allowed: str) -> None:
        if not good:
            raise LensConfigError(f"LensConfig.sam[{key!r}] must be {allowed}; got {brief(full[key])}.")

    whole = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "out_channels", "decoder_depth")
    for key in (*whole, "decoder_num_heads", "decoder_mlp_dim", "mask_in_channels", "iou_head_dim"):
        most = bounds.MOST_SAM[key]
        require(
            key, bounds.is_int(full[key]) and 1 <= full[key] <= most, f"an integer of at least 1 and at most {most}"
        )
    require(
        "image_size", full["image_size"] % full["patch_size"] == 0, f"a multiple of patch_size {full['patch_size']}"
    )
    most = bounds.MOST_SAM_CELLS
    require("image_size", full["image_size"] <= most * full["patch_size"], f"at most {most} times patch_size")
    require("num_heads", full["embed_dim"] % full["num_heads"] == 0, f"a divisor of embed_dim {full['embed_dim']}")
    require("out_channels", full["out_channels"] % 8 == 0, "a multiple of 8")
    # SAM's cross-attention runs at half the width.
    half = full["out_channels"] // 2
    require("decoder_num_heads", half % full["decoder_num_heads"] == 0, f"a divisor of out_channels / 2 = {half}")
    require("mask_in_channels", full["mask_in_channels"] % 4 == 0, "a multiple of 4")
    most = bounds.MOST_SAM["window_size"]
    require(
        "window_size", bounds.is_int(full["window_size"]) and 0 <= full["window_size"] <= most, f"0 (none) to {most}"
    )
    layers = full["global_attention_layers"]
    require(
        "global_attention_layers",
        isinstance(layers, (list, tuple))
        and len(layers) <= full["depth"]
        and all(bounds.is_int(k) and 0 <= k < full["depth"] for k in layers),
        f"a list of layer indices from 0 to {full['depth'] - 1}",
    )
    ratio, most = full["mlp_ratio"], bounds.MOST_SAM["mlp_ratio"]
    require("mlp_ratio", bounds.is_real(ratio) and 0 < ratio <= most, f"a number above 0, at most {most}")
    for key in ("pixel_mean", "pixel_std"):
        value = full[key]
        three = isinstance(value, (list, tuple)) and len(value) == 3 and all(bounds.is_real(number) for number in value)
        require(key, three and min(value) >= 0, "three numbers, R G B, of 0 to 255")
    require("pixel_std", min(full["pixel_std"]) > 0, "three numbers above 0")
    for key in ("relative_position", "include_image_encoder"):
        require(key, isinstance(full[key], bool), "True or False")
    require("weights", full["weights"] is None or bounds.is_text(full["weights"]), "a path, a Hub repository or None")
    return full
