"""Trainable copies of the base's own decoder layers: the paper's attention refinement (LENS, arXiv 2510.16785)."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from lens_adapter.errors import LensConfigError, LensError, UnsupportedModelError
from lens_adapter.signals import LensSignals
from lens_adapter.vlm.anatomy import Anatomy, find_attention
from lens_adapter.vlm.attention import AttentionCall, Watcher, attention_rows, tap_attention
from lens_adapter.vlm.hooks import cache_argument
from lens_adapter.vlm.shared_prefix import repeated


class MirrorLayers(nn.Module):
    """Decoder layers that continue from the tapped hidden states, with the masks and positions the base itself used.

    They are all called with the arguments of the tapped layer. What a base does between its layers is not repeated
    (Qwen3-VL adds visual features after its first ones: tap behind these for a faithful start).

    Args:
        layers: as `build_layers` makes them; owned by this module from now on, so never the base's own.

    Raises:
        UnsupportedModelError: the first layer has no attention that can be read.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        if not len(layers) or find_attention(layers[0]) is None:
            raise UnsupportedModelError(
                "The first mirrored layer must have attention that goes through the attention interface of "
                f"transformers; got {type(layers[0]).__name__ if len(layers) else 'no layer'}."
            )
        self.layers = layers
        copies: dict[int, Any] = {}  # one copy per config, so that what the layers share stays shared among them
        for module in self._configured():
            module.config = copy.deepcopy(module.config, copies)

    def forward(self, signals: LensSignals, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Refine hidden states; gradients flow through both results.

        The layers run under the attention implementation that the signals were read under, since their masks are made
        for it.

        Args:
            signals: hidden states in any float dtype. What rows share (`prefix`) runs once here, too.
            queries: long (B, Q), positions in the sequence, behind any shared prefix.

        Returns:
            rows: float32 (B, heads, Q, T), the first layer's softmax rows of the queries over all keys.
            hidden: (B, T, D), what the last layer puts out.
        """
        if signals.kernel is not None:
            self._run_kernel(signals.kernel)
        parameter = next(self.parameters())
        hidden = signals.hidden.to(parameter.device, parameter.dtype)  # (B, T, D)
        layer_kwargs, prefix = signals.layer_kwargs, signals.prefix
        rows: list[Tensor] = []

        def watch(call: AttentionCall) -> None:
            rows.append(attention_rows(call, queries - hidden.shape[-2]))

        if prefix is None:
            refined = self._run(hidden, layer_kwargs, None, watch)
        else:
            cache, length = DynamicCache(), prefix.length
            shared = self._run(prefix.hidden.to(hidden), prefix.layer_kwargs, cache)[:, :length]
            refined = self._run(hidden[:, length:], layer_kwargs, repeated(cache, length, len(hidden)), watch)
            refined = torch.cat([shared.expand(len(hidden), -1, -1), refined], dim=1)
        if not rows:
            raise LensError(
                "The tap on the first mirrored layer did not fire. Do not compile this module with torch.compile."
            )
        return rows[0], refined

    def _run(
        self, hidden: Tensor, layer_kwargs: dict[str, Any], cache: DynamicCache | None, watch: Watcher | None = None
    ) -> Tensor:
        """Through all layers; `watch` sees the attention of the first one."""
        kwargs = _moved(layer_kwargs, hidden)
        if cache is not None:
            kwargs[cache_argument(kwargs)] = cache
            kwargs |= {"use_cache": True} if "use_cache" in kwargs else {}
        for index, layer in enumerate(self.layers):
            with tap_attention(find_attention(layer), watch) if watch and index == 0 else nullcontext():
                output = layer(hidden, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    @torch.no_grad()
    def warm_start(self, anatomy: Anatomy, first: int) -> None:
        """Copy the weights of the base's layers `first`, `first + 1`, ... into these; nothing is shared.

        Raises:
            LensConfigError: the base has not that many layers.
            LensError: its weights are not plain float tensors of the same names and shapes (quantised, offloaded, or
                with LoRA on them).
        """
        sources = anatomy.layers[first : first + len(self.layers)]
        if first < 0 or len(sources) != len(self.layers):
            raise LensConfigError(
                f"{len(self.layers)} mirrored layers cannot start from layer {first} of a base that has "
                f"{len(anatomy.layers)}."
            )
        for index, (layer, source) in enumerate(zip(self.layers, sources, strict=True), start=first):
            own, theirs = layer.state_dict(), source.state_dict()
            wrong = sorted(set(own) ^ set(theirs)) or [
                name
                for name, tensor in theirs.items()
                if tensor.shape != own[name].shape
                or tensor.is_meta
                or tensor.dtype.itemsize < 2
                or type(tensor) is not Tensor  # quantised ones may pass for float32
            ]
            if wrong:
                raise LensError(
                    f"The mirror cannot start from layer {index} of {type(anatomy.model).__name__}: expected the "
                    f"plain float weights of its config; these differ: {wrong[:4]}. Merge LoRA (merge_and_unload), and "
                    "load the base unquantised and not offloaded, for the warm start."
                )
            layer.load_state_dict(theirs)

    def _run_kernel(self, name: str) -> None:
        for module in self._configured():
            module.config._attn_implementation = name

    def _configured(self) -> list[Any]:
        return [m for m in self.layers.modules() if isinstance(getattr(m, "config", None), PretrainedConfig)]


def _moved(value: Any, like: Tensor) -> Any:
    """Tensors inside `value` on the device of `like`, the floating ones in its dtype too."""
    if isinstance(value, Tensor):
        return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(item, like) for item in value)
    if isinstance(value, dict):
        return {name: _moved(item, like) for name, item in value.items()}
    return value
