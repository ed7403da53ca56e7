"""Whether a head fits the base in hand."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from transformers import PretrainedConfig
from transformers.utils import logging

from lens_adapter.config import LensConfig
from lens_adapter.errors import CheckpointMismatchError
from lens_adapter.vlm.anatomy import Anatomy

logger = logging.get_logger(__name__)

# What tells apart two text configs of one architecture, beside the widths that every LensConfig holds.
_BUILD = ("model_type", "intermediate_size", "num_key_value_heads", "head_dim", "vocab_size")


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a base's config that describes its decoder."""
    return config.get_text_config(decoder=True)


def check_base(config: LensConfig, anatomy: Anatomy) -> None:
    """Refuse a base that a head was not trained for; warn where only the name or the revision differs.

    Raises:
        CheckpointMismatchError: names what was expected and what came.
    """
    expected = {
        "architecture": config.base_model_type or anatomy.architecture,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
    }
    got = {
        "architecture": anatomy.architecture,
        "hidden_size": anatomy.hidden_size,
        "num_hidden_layers": len(anatomy.layers),
        "num_attention_heads": anatomy.num_heads,
    }
    if config.base_model_type == anatomy.architecture:
        trained_for = type(anatomy.config).from_dict(deepcopy(config.require_base_config()))
        for facts, base in ((expected, trained_for), (got, anatomy.config)):
            facts |= {f"text {key}": getattr(text_config(base), key, None) for key in _BUILD}
    name = anatomy.config.name_or_path or None
    wrong = [f"{key} {expected[key]} (got {got[key]})" for key in expected if expected[key] != got[key]]
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
