"""Read hidden states and attention rows off a frozen model while it runs. Every hook of the library is here."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache

from lens_adapter.errors import InputError, LensConfigError, LensError, UnsupportedModelError, brief
from lens_adapter.signals import LensSignals, whole_numbers
from lens_adapter.vlm.anatomy import Anatomy
from lens_adapter.vlm.attention import AttentionCall, Watcher, attention_rows, tap_attention
from lens_adapter.vlm.cross import behind_image, image_states
from lens_adapter.vlm.registers import add_hook, remove_hooks
from lens_adapter.vlm.replica import replicated
from lens_adapter.vlm.state import undone
from lens_adapter.vlm.threads import ThreadHook, compiled_code_rests

Query = Literal["last", "all"] | Sequence[int]

_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")
_SWITCHES = ("use_cache", "output_attentions", "output_hidden_states")
_NOT_FIRED = (
    "If torch.compile was applied to the model, that is the likely cause: compiled code does not see hooks installed "
    'later. Run it inside torch.compiler.set_stance("force_eager").'
)


@contextmanager
def capture(
    anatomy: Anatomy,
    *,
    tap_layer: int,
    layers: Sequence[int] = (),
    query: Query = "last",
) -> Iterator[LensSignals]:
    """Record the forwards of the model that this thread runs inside the context; those of others are not touched.

    The first forward fills the yielded record; every later one (`generate`: one per new token) is appended to its
    `steps`. Tensors are detached. Under dropout the recorded rows are those without it.

    Code that torch.compile made would not see the hooks, so in this thread it rests: the model runs as it was written,
    and its outputs are bit-identical to those of the uncompiled model. Another thread's compiled calls stay compiled
    (torch.compile may compile them anew, since it looks at hooks that are not for them).

    Args:
        anatomy: of the model to be read.
        tap_layer: the decoder layer whose input hidden states (and other arguments) are recorded.
        layers: decoder layers whose attention rows are recorded.
        query: whose rows. "last": the last attended token of each sample, wherever the padding is; "all": every token;
            or positions counted from the end of the attended tokens, -1 being the last. A step records those of
            them that it computed.

    Raises:
        LensConfigError: no such layer.
        InputError: positions that the tokens do not have.
        UnsupportedModelError: a layer whose attention is out of reach.
        LensError: no forward ran inside; or one that did not pass every tap, or holds a chunk of the prompt only.
    """
    recorder = _Recorder(anatomy, tap_layer, whole_numbers("layers", layers), query)
    # Flex attention is compiled code itself, and none that a tap must see into: it keeps its kernel.
    flex = any(anatomy.attention_implementation(layer) == "flex_attention" for layer in range(len(anatomy.layers)))
    with nullcontext() if flex else compiled_code_rests(), recorder.installed():
        yield recorder.signals
    recorder.require_forward()


def prefill(
    anatomy: Anatomy,
    inputs: Mapping[str, Any],
    *,
    tap_layer: int,
    layers: Sequence[int] = (),
    query: Query = "last",
    cache: Cache | None = None,
) -> LensSignals:
    """Run the model on `inputs` (processor outputs) only as far as the signals need, without grad or dropout.

    Returns what `capture` would record of a whole forward. It runs on a replica: hooks, modes and what a model
    remembers between calls are the reading's own, and other threads may use the model meanwhile.

    Args:
        anatomy, tap_layer, layers, query: as for `capture`.
        cache: what earlier tokens left in it is read, and keys and values of these tokens are added. Default: none.

    Raises:
        as `capture`.
    """
    with replicated(anatomy) as private:
        return prefill_replica(private, inputs, tap_layer=tap_layer, layers=layers, query=query, cache=cache)


@torch.no_grad()
def prefill_replica(
    private: Anatomy,
    inputs: Mapping[str, Any],
    *,
    tap_layer: int,
    layers: Sequence[int] = (),
    query: Query = "last",
    cache: Cache | None = None,
) -> LensSignals:
    """As `prefill`, on a replica of the caller's, which several readings may share."""
    switches: dict[str, Any] = {"use_cache": False, "output_attentions": False, "output_hidden_states": False}
    if cache is not None:
        switches |= {"use_cache": True, "past_key_values": cache}
    recorder = _Recorder(private, tap_layer, whole_numbers("layers", layers), query, early_exit=True)
    with recorder.installed(), suppress(_EarlyExit):
        private.model(**{**inputs, **switches})
    recorder.require_forward()
    return recorder.signals


class _EarlyExit(Exception):
    """Thrown through a replica once everything is recorded; never leaves this module."""


class _Recorder:
    """The state of one `capture` or `prefill`."""

    def __init__(
        self, anatomy: Anatomy, tap_layer: int, layers: tuple[int, ...], query: Query, early_exit: bool = False
    ) -> None:
        self.anatomy, self.tap_layer, self.layers, self.early_exit = anatomy, tap_layer, layers, early_exit
        self.query = (
            query if isinstance(query, str) else whole_numbers('query, where it is not "last" or "all",', query)
        )
        self.signals = LensSignals()
        self.forwards = 0
        self.current: Any = None  # the `LensSignals` of the forward that is running
        self.total = 0  # its tokens, cached ones included
        self.num_states = 0  # image states before them, where layers attend to those apart from the text
        self.arguments: dict[nn.Module, dict[str, Any]] = {}  # what the running modules of the path were called with
        self._check()

    def _check(self) -> None:
        count = len(self.anatomy.layers)
        for name, indices in (("tap_layer", (self.tap_layer,)), ("layers", self.layers)):
            if not all(0 <= index < count for index in indices):
                raise LensConfigError(
                    f"{name} must be decoder layers from 0 to {count - 1}; got {brief(list(indices))}."
                )
        attentions = self.anatomy.attentions
        if missing := [layer for layer in self.layers if attentions[layer] is None]:
            possible = [layer for layer, attention in enumerate(attentions) if attention is not None]
            raise UnsupportedModelError(
                f"{self.anatomy.architecture!r}: layers {missing} have no attention that can be read; "
                f"those that have: {possible}."
            )
        positions = self.query not in ("last", "all")
        if positions and (isinstance(self.query, str) or not self.query or any(index >= 0 for index in self.query)):
            raise InputError(
                f'query must be "last", "all" or positions counted from the end (-1 is the last token); '
                f"got {brief(self.query)}."
            )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """With the hooks of this recorder on the model, in this thread."""
        anatomy, tapped = self.anatomy, self.anatomy.layers[self.tap_layer]
        modules = dict.fromkeys([*anatomy.path, anatomy.decoder, tapped])

        def hook(module: nn.Module, kind: str, function: Callable[..., Any], **options: bool) -> None:
            add_hook(module, kind, ThreadHook(function, self), **options)

        def remove() -> None:
            for module in modules:
                remove_hooks(module, self)

        with undone(remove), ExitStack() as stack:
            for module in anatomy.path:
                hook(module, "forward_pre_hook", self._note, with_kwargs=True)
                hook(module, "forward_hook", self._forget, always_call=True)
            hook(anatomy.decoder, "forward_pre_hook", self._begin)
            hook(anatomy.decoder, "forward_hook", self._end, always_call=True)
            hook(tapped, "forward_pre_hook", self._record_hidden, with_kwargs=True)
            for layer in dict.fromkeys(self.layers):
                stack.enter_context(tap_attention(anatomy.attentions[layer], self._record_rows(layer)))
            yield

    def require_forward(self) -> None:
        if not self.forwards:
            name = type(self.anatomy.model).__name__
            raise LensError(f"No forward of {name} ran inside capture, in the thread that opened it. {_NOT_FIRED}")

    # The ids and the 2-D mask are arguments of the model, not of its decoder; and PEFT calls `forward` of the model
    # directly, past its hooks. So every module on the way is asked, and the outermost answer counts.
    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.arguments[module] = _named(module, args, kwargs)

    def _forget(self, module: nn.Module, *_: Any) -> None:
        self.arguments.pop(module, None)

    def _noted(self, *names: str, prefix: str = "") -> Any:
        for module in self.anatomy.path:
            for name in names:
                own = prefix + name if module is self.anatomy.model else name
                if (value := self.arguments.get(module, {}).get(own)) is not None:
                    return value
        return None

    def _begin(self, decoder: nn.Module, _: Any) -> None:
        _refuse_chunks()
        own = self.arguments[decoder]
        tokens = own.get("input_ids") if own.get("inputs_embeds") is None else own["inputs_embeds"]  # (B, T, ...)
        prefix = self.anatomy.cross.prefix if self.anatomy.cross else ""
        if tokens is None:
            raise UnsupportedModelError(
                f"{self.anatomy.architecture!r}: {type(decoder).__name__} was called with neither "
                "inputs_embeds nor input_ids."
            )
        if self.anatomy.cross and not self.forwards and own.get(self.anatomy.cross.states) is None:
            raise LensError(f"A forward of {type(self.anatomy.model).__name__} had no image to attend to.")
        batch, length = tokens.shape[:2]
        mask = self._noted("attention_mask", prefix=prefix)
        places, past = self._noted("cache_position"), self._noted(*_CACHES)
        # Only a 2-D mask says which tokens are padding. Others are ready-made: then every token counts as attended.
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if mask is not None:
            self.total = mask.shape[1]
        elif places is not None:  # transformers 4, whose static caches do not know their length
            self.total = int(places[-1]) + 1
        else:
            self.total = length + (0 if past is None else int(past.get_seq_length()))
        positions = self._positions(mask, batch, tokens.device)
        if length < self.total:  # some may be of earlier forwards
            positions = positions[:, (positions >= self.total - length).all(dim=0)]
        self.current = LensSignals(
            input_ids=_detached(self._noted("input_ids", prefix=prefix)),
            attention_mask=_detached(mask),
            position_ids=_detached(self._noted("position_ids")),
            queries=positions.contiguous(),
            kernel=self.anatomy.attention_implementation(self.tap_layer),
        )

    def _positions(self, mask: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """Positions (B, Q) of the wanted tokens in the sequence."""
        every = torch.arange(self.total, device=device).expand(batch, self.total)
        if self.query == "all":
            return every
        attended = every if mask is None else torch.where(mask.to(device).bool(), every, -1).sort(dim=1).values
        wanted = [-1] if self.query == "last" else list(self.query)
        if min(wanted) >= -self.total:
            # Not by a list: an accelerator would be sent it, and waited for.
            chosen = torch.stack([attended[:, place] for place in wanted], dim=1)
            if not (chosen < 0).any():
                return chosen
        raise InputError(
            f"query asks for the tokens {brief(wanted)} from the end; a sample has too few attended tokens."
        )

    def _record_hidden(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.current is None or self.current.hidden is not None:
            return
        arguments = _named(module, args, kwargs)
        name = "hidden_states" if "hidden_states" in arguments else next(iter(arguments))
        self.current.hidden = self.anatomy.one_stream(arguments.pop(name).detach()).clone()
        self.current.layer_kwargs = _stateless(arguments, self.total)
        self._exit_if_complete()

    def _record_rows(self, layer: int) -> Watcher:
        @torch.no_grad()
        def record(call: AttentionCall) -> None:
            if self.current is None or layer in self.current.attention:
                return
            rows = attention_rows(call, self.current.queries - self.total)
            if not self.anatomy.cross:
                # One column per token: a static cache is longer than the sequence, a sliding one drops the first keys.
                dropped = max(self.total - rows.shape[-1], 0)
                rows = pad(rows[..., : self.total], (dropped, 0))
            self.current.attention[layer] = rows
            self._exit_if_complete()

        return record

    def _missing(self) -> list[str]:
        hidden = [] if self.current.hidden is not None else [f"the input of layer {self.tap_layer}"]
        return hidden + [f"the attention of layer {k}" for k in self.layers if k not in self.current.attention]

    def _exit_if_complete(self) -> None:
        if self.early_exit and self.current is not None and not self._missing():
            self._finish()
            raise _EarlyExit

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if output is None:  # the forward failed, and what it left is no record
            self.current = None
        if self.current is None:
            return
        if missing := self._missing():
            self.current = None
            raise LensError(
                f"A forward of {type(self.anatomy.model).__name__} did not pass {', '.join(missing)}. {_NOT_FIRED}"
            )
        self._finish()

    def _finish(self) -> None:
        if cross := self.anatomy.cross:
            if not self.forwards:  # later forwards may leave the states to the cache
                states = image_states(self.current, cross, self.anatomy.architecture)  # (B, N, D)
                self.num_states = states.shape[1]
                self.current.hidden = torch.cat([states, self.current.hidden], dim=1)
            self.current = behind_image(self.current, cross, self.num_states, self.total)
        if self.forwards:
            self.signals.steps.append(self.current)
        else:
            vars(self.signals).update(vars(self.current))
        self.forwards += 1
        self.current = None


def _refuse_chunks() -> None:
    """No argument tells a chunk of the prompt from the whole of it, so the `generate` that is running is asked."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "generate":
            size = getattr(frame.f_locals.get("generation_config"), "prefill_chunk_size", None)
            if size is not None:
                raise LensError(
                    f"capture records a prompt as a whole, and generate(..., prefill_chunk_size={size}) runs it in "
                    "chunks. Leave prefill_chunk_size out, or run generate outside capture."
                )
        frame = frame.f_back


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, positional ones included."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def cache_argument(layer_kwargs: Mapping[str, Any]) -> str | None:
    """The name by which the layer that was called with `layer_kwargs` takes a cache; None: it was given none."""
    return next((name for name in _CACHES if name in layer_kwargs), None)


def _stateless(arguments: dict[str, Any], total: int) -> dict[str, Any]:
    """A layer's arguments without caches, so that calling it again neither reads nor writes one."""
    kept = {name: _detached(value) for name, value in arguments.items()}
    kept.update({name: None for name in _CACHES if name in kept})
    kept.update({name: False for name in _SWITCHES if name in kept})
    mask = kept.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 4:
        kept["attention_mask"] = mask[..., :total]  # a static cache is longer than the sequence
    return kept


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(_detached(item) for item in value)
    if isinstance(value, dict):
        return {name: _detached(item) for name, item in value.items()}
    return None if isinstance(value, Cache) else value
