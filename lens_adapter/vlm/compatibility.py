"""Whether a head fits the base in hand."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import logging

from lens_adapter.config import LensConfig
from lens_adapter.errors import CheckpointMismatchError, LensConfigError, brief
from lens_adapter.vlm.anatomy import Anatomy, layer_config, text_config

logger = logging.get_logger(__name__)

# What tells apart two text configs of one architecture, beside the widths that every LensConfig holds.
_BUILD = ("model_type", "intermediate_size", "num_key_value_heads", "head_dim", "vocab_size")


def check_base(config: LensConfig, anatomy: Anatomy) -> None:
    """Refuse a base that a head was not trained for; warn where only the name or the revision differs.

    Raises:
        CheckpointMismatchError: names what was expected and what came.
        LensConfigError: the head does not say what it was trained for, in words that transformers reads.
    """
    layers = range(min(config.num_hidden_layers, len(anatomy.layers)))
    readable = [layer for layer in layers if anatomy.num_heads[layer]]
    facts: dict[str, tuple[Any, Any]] = {  # expected and got; of each layer, where these may differ
        "architecture": (config.base_model_type or anatomy.architecture, anatomy.architecture),
        "hidden_size": (config.hidden_size, anatomy.hidden_size),
        "num_hidden_layers": (config.num_hidden_layers, len(anatomy.layers)),
        "num_attention_heads": (
            {layer: config.heads_of(layer) for layer in readable},
            {layer: anatomy.num_heads[layer] for layer in readable},
        ),
    }
    if config.base_model_type == anatomy.architecture:
        bases = (text_config(_trained_for(config, type(anatomy.config))), text_config(anatomy.config))
        for key in _BUILD:
            expected, got = ({k: getattr(layer_config(base, k), key, None) for k in layers} for base in bases)
            facts[f"text {key}"] = (expected, got)
    name = anatomy.config.name_or_path or None
    wrong = [_difference(key, *both) for key, both in facts.items() if both[0] != both[1]]
    if wrong:
        raise CheckpointMismatchError(
            f"This head was trained for {config.base_model_name_or_path or 'a base'} with {', '.join(wrong)}; the "
            f"model in hand is {name or anatomy.architecture}. Load the base that the head names, or a head for it."
        )
    trained = (config.base_model_name_or_path, config.base_model_revision)
    revision = getattr(anatomy.config, "_commit_hash", None)
    if trained[0] and name and trained[0] != name and not Path(name).exists():
        logger.warning("This head was trained for %s; the model in hand is %s. Masks may be poor.", trained[0], name)
    elif trained[0] == name and trained[1] and revision and trained[1] != revision:
        logger.warning("This head was trained for revision %s of %s; got %s.", trained[1], name, revision)


def _trained_for(config: LensConfig, kind: type[PretrainedConfig]) -> PretrainedConfig:
    """The config of the base that a head was trained for."""
    try:
        trained_for: PretrainedConfig = kind.from_dict(deepcopy(config.require_base_config()))
    except Exception as error:  # anything: it may be damaged in any way, and other people's code reads it
        raise LensConfigError(
            f"LensConfig.base_config is no config of {config.base_model_type!r} for this version of transformers "
            f"({type(error).__name__}: {brief(str(error), 300)}). Fetch the head again."
        ) from error
    return trained_for


def _difference(fact: str, expected: Any, got: Any) -> str:
    """What was expected and what came; of the first layer that differs, where layers have values of their own."""
    if isinstance(expected, dict):
        alike = all(values[k] == values[min(values)] for values in (expected, got) for k in values)
        layer = next(k for k in expected if expected[k] != got[k])
        fact, expected, got = fact if alike else f"{fact} of layer {layer}:", expected[layer], got[layer]
    return f"{fact} {expected} (got {got})"
