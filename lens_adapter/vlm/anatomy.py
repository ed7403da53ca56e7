"""Find the parts of a vision-language model that an adapter reads: by what they do, not by what they are called."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import transformers
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AttentionInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from lens_adapter.errors import UnsupportedModelError
from lens_adapter.vlm.architectures import UNREADABLE, Architecture, CrossAttention, known

_STREAMED = "its layers carry several residual streams at once, and a capture holds one hidden state per token"
_CROSSED = "its layers refine the text alone, and the image states that they attend to stay as they are"

# Gigabytes (of 1e9 bytes) that the float32 copies of a mirror may take. Trained with Adam they take four times as much,
# which a GPU of 80 GB just holds. Two layers of LLaVA-1.5-7B are 1.6 GB, of Qwen2.5-VL-72B 7 GB.
MAX_MIRROR_GB = 16

# What attention to image states is called inside a layer that attends to them apart from its own sequence.
CROSS_NAMES = ("cross", "encoder_decoder")

# Kinds of layer, as `config.layer_types` calls them, that see only the latest of the earlier tokens.
NARROW_KINDS = ("chunked_attention", "hybrid_sliding", "sliding_attention", "window_attention")

# Names under which configs keep the id of the placeholder that image features replace.
IMAGE_TOKEN_NAMES = ("image_token_id", "image_token_index")


@dataclass(frozen=True)
class Anatomy:
    """The parts of one vision-language model. Holds references, no state.

    Attributes:
        model: the model itself, without wrappers.
        config: its own configuration.
        architecture: its `model_type`, e.g. "llava".
        layers: the decoder layers.
        attentions: for each layer its self-attention, as far as that goes through the attention interface, else None.
        kinds: for each layer what `config.layer_types` calls it, e.g. "sliding_attention"; layers of one kind can be
            called with one another's masks.
        path: the modules from `model` down to the decoder (the owner of `layers`), both included.
        hidden_size: width of the hidden states.
        num_heads: query heads of each layer's attention; 0 where that cannot be read.
        image_token_id: id of the image placeholder in `input_ids`; None when the config names none.
    """

    model: PreTrainedModel
    config: PretrainedConfig
    architecture: str
    layers: nn.ModuleList
    attentions: list[Any]
    kinds: list[str]
    path: list[nn.Module]
    hidden_size: int
    num_heads: list[int]
    image_token_id: int | None

    @property
    def decoder(self) -> nn.Module:
        """The module that owns the layers and calls them."""
        return self.path[-1]

    @property
    def known(self) -> Architecture:
        """What the table of architectures says about this one."""
        return known(self.architecture)

    @property
    def cross(self) -> CrossAttention | None:
        """How the layers attend to the image, if it is not in their own sequence."""
        return self.known.cross

    def require_mirrorable(self, layers: Sequence[int]) -> None:
        """Refuse decoder layers of which no copies can go on from what is captured, or only enormous ones.

        Raises:
            UnsupportedModelError: says why.
        """
        gigabytes = 4e-9 * sum(p.numel() for layer in layers for p in self.layers[layer].parameters())
        if self.known.streams:
            reason = _STREAMED
        elif self.known.cross:
            reason = _CROSSED
        elif gigabytes > MAX_MIRROR_GB:
            reason = (
                f"float32 copies of its layers {list(layers)} take {gigabytes:.0f} GB, and more than {MAX_MIRROR_GB} "
                "GB cannot be trained on one GPU"
            )
        else:
            return
        raise UnsupportedModelError(f'{self.architecture!r} cannot be mirrored: {reason}. Use fusion="lite".')

    def one_stream(self, hidden: Tensor) -> Tensor:
        """The hidden states between two decoder layers, as the model has them -> (B, T, D)."""
        if (streams := self.known.streams) is None:
            return hidden
        if hidden.shape[-1] != self.hidden_size:
            hidden = hidden.unflatten(-1, (-1, self.hidden_size))
        if streams.active is None:
            return hidden.mean(streams.axis)
        return hidden.select(streams.axis, getattr(text_config(self.config), streams.active))

    @property
    def readable(self) -> list[int]:
        """Layers whose attention can be read and sees all earlier tokens (if none sees all: those that can be read)."""
        tapped = [layer for layer, attention in enumerate(self.attentions) if attention is not None]
        return [layer for layer in tapped if self.kinds[layer] not in NARROW_KINDS] or tapped

    def attention_implementation(self, layer: int) -> str:
        """Name of the kernel that the attention of `layer` runs, e.g. "sdpa"."""
        if (attention := self.attentions[layer]) is None:
            return "eager"
        own = getattr(attention.config, "lender", attention.config)  # of a tapped module: see attention.py
        return str(own._attn_implementation or "eager")


def unwrap(model: Any) -> PreTrainedModel:
    """A `PreTrainedModel`, or one inside a `PeftModel`, a `Pipeline` or torch.compile's wrapper -> the model itself.

    Raises:
        UnsupportedModelError: anything else.
    """
    if isinstance(model, PreTrainedModel):
        return model
    if isinstance(model, OptimizedModule):
        return unwrap(model._orig_mod)
    from transformers import Pipeline  # slow to import, and seldom needed

    if isinstance(model, Pipeline):
        return unwrap(model.model)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise UnsupportedModelError(
                "This PeftModel uses prompt learning: its virtual tokens move the image tokens. "
                "Use LoRA or another method that leaves the sequence alone."
            )
        return unwrap(model.get_base_model())
    raise UnsupportedModelError(
        "Expected a vision-language model of transformers: a PreTrainedModel of AutoModelForImageTextToText, a "
        f"PeftModel around one, or a Pipeline that holds one; got {type(model).__name__}."
    )


def find_anatomy(model: Any) -> Anatomy:
    """Find decoder layers, attention modules and the image token of a vision-language model.

    Args:
        model: as `unwrap` takes it. Nothing of it is changed.

    Raises:
        UnsupportedModelError: not a vision-language model, or one that cannot be read; the message says why.
    """
    model = unwrap(model)
    config = model.config
    architecture = config.model_type
    row = known(architecture)
    if row.refused:
        raise UnsupportedModelError(f"{architecture!r} ({type(model).__name__}) is not supported: {row.refused}.")
    image_token_id = next(
        (value for name in IMAGE_TOKEN_NAMES if (value := getattr(config, name, None)) is not None), None
    )
    if image_token_id is None and auto_class(config) is None:
        raise UnsupportedModelError(
            f"{architecture!r} ({type(model).__name__}) is not a vision-language model: AutoModelForImageTextToText "
            "does not know it, and its config names no image token. Pass the whole model, not its language model or "
            "its vision tower."
        )
    layers: Any = _find_layers(model)
    among = CROSS_NAMES if row.cross else ("",)
    attentions = [] if layers is None else [find_attention(layer, among) for layer in layers]
    readable = [layer for layer, attention in enumerate(attentions) if attention is not None]
    if not readable:
        raise UnsupportedModelError(f"{architecture!r} ({type(model).__name__}) is not supported: {UNREADABLE}.")
    return Anatomy(
        model=model,
        config=config,
        architecture=architecture,
        layers=layers,
        attentions=attentions,
        kinds=_find_kinds(attentions),
        path=_path_to_owner(model, layers),
        hidden_size=layer_config(attentions[readable[0]].config, readable[0]).hidden_size,
        num_heads=[_num_heads(attention, layer) for layer, attention in enumerate(attentions)],
        image_token_id=image_token_id,
    )


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a base's config that describes its decoder."""
    return config.get_text_config(decoder=True)


def layer_config(config: PretrainedConfig, layer: int) -> Any:
    """What the decoder's config says about one of its layers, which may differ (Gemma 4: wider heads in some)."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


def find_attention(layer: nn.Module, among: Sequence[str] = ("",)) -> Any:
    """The first module inside `layer` that looks its kernel up in the attention interface; None if there is none.

    Only modules count whose path in the layer holds a word of `among`.
    """
    module: Any
    for name, module in layer.named_modules():
        if not any(word in name for word in among):
            continue
        if isinstance(getattr(module, "config", None), PretrainedConfig) and attention_kernels(module.__class__):
            return module
    return None


@cache
def attention_kernels(module_class: Any) -> Any:
    """The attention interface that a module class looks its kernel up in, and the eager kernel it falls back on.

    Read off the `forward` itself: both are globals of the modeling file that it names. None: it uses no interface.
    """
    for owner in module_class.__mro__:
        if not (function := vars(owner).get("forward")):
            continue
        forward = inspect.unwrap(function)
        if not hasattr(forward, "__code__"):
            continue
        names = {name: forward.__globals__.get(name) for name in forward.__code__.co_names}
        interface = next((value for value in names.values() if isinstance(value, AttentionInterface)), None)
        eager = next((value for name, value in names.items() if name.endswith("eager_attention_forward")), None)
        if interface is not None and eager is not None:
            return interface, eager
    return None


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class of vision-language models that knows this config; None: it is not one.

    transformers 4 keeps some models in AutoModelForVision2Seq alone.
    """
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    if type(config) in getattr(transformers, "MODEL_FOR_VISION_2_SEQ_MAPPING", ()):
        return transformers.AutoModelForVision2Seq  # type: ignore[attr-defined]  # transformers 5 has none
    return None


def _num_heads(attention: Any, layer: int) -> int:
    """Query heads of an attention module: what it says of itself, else what its config says."""
    if attention is None:
        return 0
    own = getattr(attention, "num_heads", None)
    return own if isinstance(own, int) else layer_config(attention.config, layer).num_attention_heads


def _find_layers(model: PreTrainedModel) -> Any:
    if path := known(model.config.model_type).layers:
        return model.get_submodule(path)
    layers = getattr(model.get_decoder(), "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else _search_layers(model)


def _search_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The first list whose modules attend through the interface with the text config (a vision tower has another)."""
    decoder_config = text_config(model.config)
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        attentions = [find_attention(layer) for layer in module]
        if any(attention is not None and attention.config is decoder_config for attention in attentions):
            return module
    return None


def _find_kinds(attentions: list[Any]) -> list[str]:
    """What the decoder's config calls each layer; where it is silent, what the attention module says of itself."""
    config = next(attention.config for attention in attentions if attention is not None)
    kinds = getattr(config, "layer_types", None) or []
    if len(kinds) == len(attentions):
        return list(kinds)
    narrow = [attention is not None and getattr(attention, "sliding_window", None) for attention in attentions]
    return ["sliding_attention" if window else "full_attention" for window in narrow]


def _path_to_owner(model: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    name = next(name for name, module in model.named_modules() if module is layers)
    parts = name.split(".")[:-1]
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
