"""See the calls of one attention module, and compute the softmax rows of chosen query tokens from them.

Nothing of a kernel is copied. The attention modules of transformers look their kernel up at every call, by the name in
their `config`. A tap lends a module a view of its config that names our function instead, to the thread that tapped it
alone: there the module calls us, we show the call to the watchers, and run the kernel it meant, on the very arguments
it passed. Rows come from the modeling file's own eager kernel, given the wanted query rows alone, so that soft caps,
sinks and biases follow by themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from threading import Thread, current_thread
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig

from lens_adapter.vlm.anatomy import attention_kernels
from lens_adapter.vlm.state import undone
from lens_adapter.vlm.threads import fork_safe_lock


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention kernel: the module that made it, and what it passed.

    `query` is (B, heads, q, d); `key` and `value` are (B, key heads, T, d); `mask` is what the kernel was given: None,
    (B, T), (B or 1, heads or 1, q, T), or the BlockMask of flex attention; `kernel` is the kernel's name.
    """

    module: Any
    kernel: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


Watcher = Callable[[AttentionCall], None]


class _TapName(str):
    """Equal to a kernel's name, so that models that test for it behave the same, yet found as ours in the interface."""

    def __hash__(self) -> int:
        return hash(("lens", str(self)))


_lending = fork_safe_lock()  # held while a module's config is exchanged


@contextmanager
def tap_attention(attention: Any, watcher: Watcher) -> Iterator[None]:
    """While open, `watcher` sees every kernel call that `attention` makes in this thread, just before it runs.

    Outputs stay bit-identical, and calls in other threads are not touched. Taps may nest, within a thread or across:
    the outermost one's watcher comes first.
    """
    thread, tap = current_thread(), partial(watcher)  # a tap of its own, should the same watcher come twice

    def remove() -> None:
        with _lending:
            config = attention.config
            if not isinstance(config, WatchedConfig):  # not lent yet, or its user has set another meanwhile
                return
            taps = config.watchers.get(thread, [])
            if tap in taps:
                taps.remove(tap)
            if not taps:
                config.watchers.pop(thread, None)
                config.inside.discard(thread)
            if not config.watchers:
                attention.config = config.lender

    with undone(remove):
        with _lending:
            if not isinstance(attention.config, WatchedConfig):
                attention.config = _view_for(attention)
            attention.config.watchers.setdefault(thread, []).append(tap)
        yield


class WatchedConfig:
    """What a tapped module has for its config: the same values (the very same `__dict__`), but for the kernel's name in
    a thread that watches."""

    __slots__ = ()
    lender: PretrainedConfig  # the module's own
    module_class: Any
    watchers: dict[Thread, list[Watcher]]
    inside: set[Thread]  # those whose kernel runs


@cache
def _watched_class(config_class: Any) -> Any:
    own = config_class._attn_implementation

    def name(self: Any) -> str | None:
        true: str | None = own.fget(self)
        # Code that is being compiled is another thread's: the watchers' own runs as it was written.
        if torch.compiler.is_compiling() or (here := current_thread()) not in self.watchers or here in self.inside:
            return true
        return _tap_name(self.module_class, true or "eager")

    def reduce(self: Any, _: Any) -> Any:
        return copy.copy, (self.lender,)  # copies and pickles are of what was lent

    # No `__init__` of its own: transformers would make another dataclass of it.
    body = {
        "__slots__": ("lender", "module_class", "watchers", "inside"),
        "__init__": config_class.__init__,
        "_attn_implementation": property(name, own.fset),
        "__reduce_ex__": reduce,
    }
    return type(config_class.__name__, (WatchedConfig, config_class), body)


def _view_for(attention: Any) -> Any:
    lender = attention.config
    view = object.__new__(_watched_class(lender.__class__))
    facts = {"lender": lender, "module_class": type(attention), "watchers": {}, "inside": set()}
    for name, value in (facts | {"__dict__": vars(lender)}).items():
        object.__setattr__(view, name, value)
    return view


def _tap_name(module_class: Any, kernel: str) -> _TapName:
    """By what name a module that means `kernel` finds our function."""
    interface, _ = attention_kernels(module_class)
    # transformers 4 asks the interface only when the name is not equal to "eager".
    asks_always = hasattr(interface, "get_interface")
    tap = _TapName(kernel if asks_always or kernel != "eager" else "lens_eager")
    AttentionInterface.register(tap, _watched_attention)  # a second time changes nothing
    return tap


def attention_rows(call: AttentionCall, from_end: Tensor) -> Tensor:
    """Softmax rows of some query tokens of a kernel call, by the eager kernel of the model's own modeling file.

    Args:
        call: as a watcher receives it.
        from_end: long (B, Q), query tokens counted from the end of the sequence, -1 being the last (from the end,
            because queries and masks may hold fewer rows than the sequence has tokens).

    Returns:
        float32 (B, heads, Q, T). Differentiable when grad is enabled; dropout is off.
    """
    from_end = from_end.to(call.query.device)
    _, eager = attention_kernels(call.module.__class__)
    query = _rows_of(call.query, from_end)
    options = dict(call.options)
    if "dropout" in options:
        options["dropout"] = 0.0
    for name in ("position_bias", "sinks"):
        if isinstance(value := options.get(name), Tensor) and value.dim() == 4:  # else the same for every query
            options[name] = _rows_of(value, from_end)
    _, weights = eager(call.module, query, call.key, call.value, _row_mask(call, from_end), *call.arguments, **options)
    return weights.float()  # (B, heads, Q, T)


def may_look_ahead(call: AttentionCall, length: int) -> Tensor | bool:
    """Whether any of the first `length` tokens may attend to a later one, in a call without earlier keys; a tensor
    where that is in a mask (which may be on an accelerator: nobody waits for it here)."""
    mask = call.mask
    if isinstance(mask, Tensor) and mask.dim() == 4:
        behind = mask[:, :, :length, length:]
        return (behind if behind.dtype == torch.bool else behind > torch.finfo(behind.dtype).min / 2).any()
    if hasattr(mask, "mask_mod"):  # flex attention: not asked
        return True
    return call.kernel == "eager" or not _is_causal(call)


def _is_causal(call: AttentionCall) -> bool:
    """Whether a kernel that was given no mask of its own hides later tokens; the eager one never does."""
    causal = call.options.get("is_causal")
    return bool(getattr(call.module, "is_causal", True) if causal is None else causal)


def _watched_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function: the watchers, then the kernel the module meant."""
    config, thread = module.config, current_thread()
    try:
        config.inside.add(thread)  # from here on nothing is different for this thread either
        name = module.config._attn_implementation or "eager"
        interface, eager = attention_kernels(module.__class__)
        asks = interface.get_interface if hasattr(interface, "get_interface") else interface.get
        call = AttentionCall(module, name, query, key, value, attention_mask, args, kwargs)
        for watcher in config.watchers[thread]:  # first: one that has all it wants may end the forward here
            watcher(call)
        return asks(name, eager)(module, query, key, value, attention_mask, *args, **kwargs)
    finally:
        config.inside.discard(thread)


def _rows_of(tensor: Tensor, from_end: Tensor) -> Tensor:
    """(B, heads, q, d) -> (B, heads, Q, d); dimensions of length one are broadcast."""
    rows = from_end + tensor.shape[2]
    return tensor.take_along_dim(rows[:, None, :, None], dim=2)


def _row_mask(call: AttentionCall, from_end: Tensor) -> Tensor | None:
    """What the eager kernel must add to the scores of the rows `from_end`: (B or 1, heads or 1, Q, T), or None."""
    mask, queries, keys = call.mask, call.query.shape[2], call.key.shape[2]
    rows = (from_end + queries)[:, None, :, None]  # (B, 1, Q, 1)
    columns = torch.arange(keys, device=call.query.device)  # (T,)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        allowed = _rows_of(mask, from_end)[..., :keys]
        if allowed.dtype != torch.bool:
            return allowed
    elif hasattr(mask, "mask_mod"):  # flex attention
        batch = torch.arange(len(from_end), device=rows.device)[:, None, None, None]
        allowed = mask.mask_mod(batch, torch.zeros_like(batch), rows, columns)
    else:
        causal = _is_causal(call)
        if call.kernel == "eager" or not causal:
            allowed = columns >= 0
        elif "flash" in call.kernel:  # aligned at the last key, and itself in charge of the sliding window
            places = rows + (keys - queries)
            window = call.options.get("sliding_window") or keys
            allowed = (columns <= places) & (columns > places - window)
        else:  # sdpa: aligned at the first key; a single query sees everything
            allowed = (columns <= rows) | (queries == 1)
        if isinstance(mask, Tensor):  # (B, T) of padding, flash attention only
            allowed = allowed & mask[:, None, None, -keys:].bool()
        elif call.kernel == "eager" or not causal:
            return None
    lowest = torch.finfo(call.query.dtype).min
    return torch.zeros(allowed.shape, dtype=call.query.dtype, device=allowed.device).masked_fill(~allowed, lowest)
