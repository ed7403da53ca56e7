"""What a config from elsewhere may say: sizes have ends, and where code or weights come from is not its business.

The ends are several times those of any published model. They are there so that one file of a few kilobytes can neither
fill the memory nor run for ever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from lens_adapter.errors import LensConfigError, brief

# Of a head.
MOST_LAYERS = 512  # decoder layers of a base; the deepest ones that are published have 126
MOST_HEADS = 1024  # attention heads of a layer
MOST_WIDTH = 65_536  # hidden states, and whatever else is as wide
MOST_FUSION_LAYERS = 64
MOST_FUSION_WIDTH = 8192
MOST_KEYPOINTS = 1024
MOST_RADIUS = 10_000.0  # cells; no heatmap is as wide
MOST_LETTERS = 10_000  # of a template or a name
MOST_GIGABYTES = 64  # of 1e9 bytes, that a head and its mask decoder may take in float32

# Of SAM; vit_h has 1024 pixels, 64 cells to a side, 1280 channels, 32 layers.
MOST_SAM = {
    "image_size": 4096,
    "patch_size": 4096,
    "window_size": 4096,
    "embed_dim": 8192,
    "depth": 128,
    "num_heads": 256,
    "mlp_ratio": 64,
    "out_channels": 4096,
    "decoder_depth": 64,
    "decoder_num_heads": 256,
    "decoder_mlp_dim": MOST_WIDTH,
    "mask_in_channels": 4096,
    "iou_head_dim": MOST_WIDTH,
}
MOST_SAM_CELLS = 128  # `image_size / patch_size`: attention is over their square, to the square

# Of a base's config.
_MOST_LEVELS = 12
_MOST_VALUES = 1_000_000  # vocabularies may be in it
_MOST_NUMBER = 2**31 - 1
_MOST_PERIOD = 2**53  # of rotary embeddings, the one number that is larger in earnest
_MOST_EXPERTS = 4096
_MOST_MODULES = 2**17  # layers * experts; the largest that are published have some 30 000

# What makes transformers, or a library that it calls, take code or weights from somewhere: dropped wherever it stands.
_SOURCES = {
    *("auto_map", "trust_remote_code", "code_revision", "custom_pipelines", "quantization_config", "kernel_config"),
    *("use_kernels", "backbone", "use_timm_backbone", "use_pretrained_backbone", "backbone_kwargs", "timm_kwargs"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "transformers_weights", "gguf_file"),
    *("distributed_config", "tp_plan", "_commit_hash", "_name_or_path", "name_or_path"),
}
_IMPLEMENTATION = re.compile(r"_?(\w+_)?implementation(_\w+)?")  # attn_implementation, _experts_implementation_internal
_WORDS = {"vocabulary_map", "id2label", "label2id"}  # whose keys are words and no settings
_QUIET = ("_commit_hash", "_name_or_path", "name_or_path")  # in every config that was loaded; only a record


def names_a_source(key: str) -> bool:
    """Whether a key of a config says which implementation is run, or where something is taken from."""
    return key in _SOURCES or _IMPLEMENTATION.fullmatch(key) is not None


def without_sources(value: Any, name: str = "base_config") -> tuple[Any, list[str]]:
    """A copy of what JSON holds without all that names a source, and the keys that said something and are gone.

    Args:
        value: of a field of `LensConfig`.
        name: of the field, for messages.

    Raises:
        LensConfigError: it is nested too deeply, or holds too much.
    """
    dropped: set[str] = set()
    left = _MOST_VALUES

    def copied(part: Any, level: int, words: bool = False) -> Any:
        nonlocal left
        left -= 1
        if level > _MOST_LEVELS or left < 0:
            raise LensConfigError(
                f"LensConfig.{name} must be at most {_MOST_LEVELS} levels deep and hold at most {_MOST_VALUES} values; "
                "got more."
            )
        if isinstance(part, Mapping):
            if isinstance(kind := part.get("dtype"), float | list | tuple):  # which transformers writes anew
                raise LensConfigError(f"LensConfig.{name}: a dtype in it must be a name; got {brief(kind)}.")
            gone = [key for key in part if isinstance(key, str) and names_a_source(key) and not words]
            said = (key for key in gone if key not in _QUIET and part[key] not in (None, False, True, {}, []))
            dropped.update(said)
            return {key: copied(item, level + 1, key in _WORDS) for key, item in part.items() if key not in gone}
        if isinstance(part, list | tuple):
            items = [copied(item, level + 1) for item in part]
            return tuple(items) if isinstance(part, tuple) else items
        return part

    return copied(value, 0), sorted(dropped)


def require_shallow(value: Any, name: str) -> None:
    """Refuse what is nested too deeply, or holds too much; see `without_sources`."""
    without_sources(value, name)


def require_bounded(facts: Mapping[str, Any], where: str = "base_config") -> None:
    """Refuse numbers in a base's config that nothing real has, before anything is made of them.

    Args:
        facts: as `without_sources` gives it.
        where: its name, for messages.

    Raises:
        LensConfigError: names the key, what came, and what is allowed.
    """
    layers = experts = 1

    def check(key: str, value: Any, path: str) -> None:
        nonlocal layers, experts
        if isinstance(value, Mapping):
            for name, part in value.items():
                check("" if key in _WORDS else str(name), part, f"{path}.{name}")
        elif isinstance(value, list | tuple):
            for part in value:
                check(key, part, path)
        elif isinstance(value, str):
            if len(value) > MOST_LETTERS:
                raise LensConfigError(f"LensConfig.{path} must have at most {MOST_LETTERS} letters; got {len(value)}.")
        elif isinstance(value, float) and math.isnan(value):
            raise LensConfigError(f"LensConfig.{path} must be a number; got NaN.")
        elif isinstance(value, int) and not isinstance(value, bool):
            most = _most(key)
            if not -most <= value <= most:
                raise LensConfigError(f"LensConfig.{path} must be at most {most}; got {brief(value)}.")
            if _counts(key, "layer"):
                layers = max(layers, value)
            elif _counts(key, "expert"):
                experts = max(experts, value)

    check(where, facts, where)
    if layers * experts > _MOST_MODULES:
        raise LensConfigError(
            f"LensConfig.{where} must have at most {_MOST_MODULES} experts in all its layers; got {layers} * {experts}."
        )


def _most(key: str) -> int:
    if _counts(key, "layer", "depth", "block", "stage"):
        return MOST_LAYERS
    if _counts(key, "expert"):
        return _MOST_EXPERTS
    if _counts(key, "head"):
        return MOST_HEADS
    if _counts(key, "theta", "base"):
        return _MOST_PERIOD
    if _counts(key, "label"):
        return MOST_WIDTH
    return MOST_WIDTH if key in ("hidden_size", "d_model", "n_embd") else _MOST_NUMBER


def _counts(key: str, *things: str) -> bool:
    """Whether a key is the number of some things, as in num_hidden_layers, n_layer, depth and n_routed_experts."""
    words = key.lower().split("_")
    if not any(word in (thing, f"{thing}s") for word in words for thing in things):
        return False
    return not {"size", "dim", "index", "idx", "window", "vocab", "period", "width", "id"} & {*words}


def is_text(value: Any) -> bool:
    """Whether it is a text that a message or a card can repeat."""
    return isinstance(value, str) and len(value) <= MOST_LETTERS


def is_int(value: Any) -> bool:
    """Whether it is a whole number, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether it is a finite number, and no bool."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float is as large as
        return False
