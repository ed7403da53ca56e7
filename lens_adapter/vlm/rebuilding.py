"""Decoder layers of a base, built from its config alone: for a mirror, wherever that config came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, AutoConfig, PretrainedConfig

from lens_adapter.bounds import require_bounded, without_sources
from lens_adapter.errors import LensConfigError, LensError, UnsupportedModelError, brief
from lens_adapter.vlm.anatomy import Anatomy, auto_class, find_anatomy, text_config

# Gigabytes (of 1e9 bytes) of tensors that are no parameters, and of the largest parameter, that are made for a moment.
_MOST_BUFFERS_GB = 2
_MOST_PARAMETER_GB = 64
_NO_LANGUAGE_MODEL = (
    "{kind} is no language model with attention that can be read, so {name} with such a decoder cannot be mirrored. "
    'Use fusion="lite".'
)


def build_layers(base_config: dict[str, Any], indices: Sequence[int]) -> nn.ModuleList:
    """Fresh, randomly initialised float32 copies of some decoder layers, built from a config alone.

    Nothing is downloaded, whatever the config says, and the rest of the model costs no memory. What names a source of
    code or weights does not count (see `lens_adapter.bounds`). The weights are meant to be overwritten, by a warm start
    or a checkpoint: matrices are drawn from normal(0, 0.02), biases are 0, other vectors (of norms) 1.

    Args:
        base_config: `model.config.to_dict()` of the base.
        indices: which of its decoder layers.

    Raises:
        LensConfigError: the dict names no model type, has no such layers, or is none that transformers can build.
        UnsupportedModelError: the model cannot be read, these layers cannot be mirrored, or this version of
            transformers does not know it.
    """
    facts, _ = without_sources(base_config)
    require_bounded(facts)
    try:
        return _build(facts, indices)
    except LensError:
        raise
    except Exception as error:  # anything: the config may be damaged in any way, and other people's code reads it
        raise LensConfigError(
            f"LensConfig.base_config describes no {brief(facts.get('model_type'))} that transformers can build "
            f"({type(error).__name__}: {brief(str(error), 300)}). Expected `model.config.to_dict()` of the base."
        ) from error


def _build(facts: dict[str, Any], indices: Sequence[int]) -> nn.ModuleList:
    config = _read_config(facts)
    auto = None if config is None else auto_class(config)
    if auto is None:
        raise UnsupportedModelError(
            f"{facts['model_type']!r} is not a model of AutoModelForImageTextToText in this version of "
            'transformers, so its decoder layers cannot be rebuilt from a config. Use fusion="lite".'
        )
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32)
    anatomy = find_anatomy(model)
    if not all(0 <= index < len(anatomy.layers) for index in indices):
        raise LensConfigError(f"The base has decoder layers 0 to {len(anatomy.layers) - 1}; got {list(indices)}.")
    anatomy.require_mirrorable(indices)
    layers = nn.ModuleList(anatomy.layers[index] for index in indices)
    if any(_holds_more_than_parameters(module) for module in layers.modules()):
        # That is in no checkpoint, so it is made for real. Of parameters one at a time is, which takes long where they
        # are large.
        _require_small(anatomy)
        with init_empty_weights(include_buffers=False), torch.device("cpu"):
            model = auto.from_config(config, dtype=torch.float32)
        layers = nn.ModuleList(find_anatomy(model).layers[index] for index in indices)
    for module in layers.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_drawn(name, parameter.shape)))
    return layers


def _read_config(facts: Mapping[str, Any]) -> PretrainedConfig | None:
    """The base's config; None: transformers does not know the model.

    Raises:
        LensConfigError: there is no model type, or a part would be fetched from somewhere.
        UnsupportedModelError: its decoder is no language model that can be read.
    """
    if "model_type" not in facts:
        raise LensConfigError("base_config must be the config of the base as a dict; got one without 'model_type'.")
    name = facts["model_type"]
    if name not in CONFIG_MAPPING:  # transformers 4 lists as "lfm2_vl" what calls itself "lfm2-vl"
        name = name.replace("-", "_")
    if name not in CONFIG_MAPPING:
        return None
    default = CONFIG_MAPPING[name]()
    config: PretrainedConfig = AutoConfig.for_model(name, **_with_usual_parts(facts, default))
    kind = type(text_config(config))
    if kind is not type(text_config(default)) and not (kind in MODEL_FOR_CAUSAL_LM_MAPPING and _attends(kind)):
        raise UnsupportedModelError(_NO_LANGUAGE_MODEL.format(kind=brief(kind.model_type), name=brief(name)))
    _require_self_contained(config)
    return config


def _with_usual_parts(facts: Mapping[str, Any], default: PretrainedConfig) -> dict[str, Any]:
    """The facts but for the parts, at any depth, of a kind that no vision-language model is made of.

    In their place comes the default. A part is usual where it is what it is by default, or attends as the models of
    today do. Others, detectors say, may send for the weights of a backbone.

    Args:
        facts: of a config that may have parts.
        default: of the same class.
    """
    kept = {key: value for key, value in facts.items() if key != "model_type"}
    for key in type(default).sub_configs:
        part: Any = getattr(default, key, None)
        given = facts.get(key)
        own = given.get("model_type", getattr(part, "model_type", None)) if isinstance(given, dict) else None
        if given is None or own is None:
            continue
        kind: Any = CONFIG_MAPPING[own] if own in CONFIG_MAPPING else type(part)
        if isinstance(part, kind):
            kept[key] = {**_with_usual_parts(given, part), "model_type": own}
        elif _attends(kind):
            kept[key] = {**_with_usual_parts(given, kind()), "model_type": own}
        elif part is text_config(default):
            raise UnsupportedModelError(_NO_LANGUAGE_MODEL.format(kind=brief(own), name=brief(default.model_type)))
        else:
            del kept[key]
    return kept


def _attends(kind: type[PretrainedConfig]) -> bool:
    """Whether the model that a config is of looks its attention up in the interface of transformers."""
    if kind not in MODEL_MAPPING:
        return False
    made = MODEL_MAPPING[kind]
    model = made[0] if isinstance(made, tuple) else made
    return bool(getattr(model, "_supports_attention_backend", False) or getattr(model, "_supports_sdpa", False))


def _require_self_contained(config: PretrainedConfig) -> None:
    """Refuse a config of which transformers or timm would fetch a part, when the model is made of it."""
    for name in ("backbone", "use_pretrained_backbone", "architecture"):
        value = getattr(config, name, None)
        if name == "architecture":  # of timm: "hf_hub:owner/name" and "local-dir:folder" are read from there
            value = value if isinstance(value, str) and re.search(r"[^\w.-]", value) else None
        if value:
            raise LensConfigError(
                f"LensConfig.base_config has a part, {config.model_type!r}, with {name} {brief(value)}, which would be "
                "fetched from elsewhere: a head's config must describe its base alone."
            )
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            _require_self_contained(part)


def _require_small(anatomy: Anatomy) -> None:
    """Refuse to make for real what would fill the memory."""
    buffers = 1e-9 * sum(tensor.numel() * tensor.itemsize for tensor in anatomy.model.buffers())
    largest = 4e-9 * max(parameter.numel() for parameter in anatomy.model.parameters())
    for name, size, most in (("buffers", buffers, _MOST_BUFFERS_GB), ("a parameter", largest, _MOST_PARAMETER_GB)):
        if size > most:
            raise LensConfigError(
                f"LensConfig.base_config describes a {anatomy.architecture} with {name} of {size:.0f} GB, more than "
                f"{most}. Expected `model.config.to_dict()` of the base."
            )


def _holds_more_than_parameters(module: nn.Module) -> bool:
    """Whether a module has buffers, or tensors in plain attributes."""
    return any(isinstance(value, Tensor) for value in (*vars(module).values(), *module.buffers(recurse=False)))


def _drawn(name: str, shape: torch.Size) -> Tensor:
    if len(shape) > 1:
        return torch.empty(shape).normal_(std=0.02)
    return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
