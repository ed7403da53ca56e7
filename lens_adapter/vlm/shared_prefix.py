"""Several prompts about one image: what stands before the prompts runs through the frozen model once.

The first prompt runs as it always does, with a key-value cache. Of that the shared prefix is kept and goes on with the
text of every prompt, the first one included: that one is then known both ways, and they must agree.

Whether a model can do that is no list of names; it is seen in the run itself: what its layers keep, what its tokens may
look at, which positions they have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging

from lens_adapter.finite import is_finite
from lens_adapter.signals import LensSignals, SharedPrefix
from lens_adapter.vlm.anatomy import Anatomy
from lens_adapter.vlm.attention import AttentionCall, may_look_ahead, tap_attention
from lens_adapter.vlm.hooks import cache_argument, prefill_replica
from lens_adapter.vlm.inputs import require_length, tokenize
from lens_adapter.vlm.replica import replicated

logger = logging.get_logger(__name__)

_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)  # keys and values alone

# Why a model that was tried cannot share a prefix, by the kernel that its attention ran.
_unfit: WeakKeyDictionary[PreTrainedModel, dict[str, str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class SharedInputs:
    """Several prompts about one image, as a model takes them.

    Attributes:
        first: what the processor made of the image and the first prompt: one row of T tokens, none of them padding.
        length: P, how many tokens stand before what differs between the prompts; all image tokens are among them.
        tails: long (N, t), the other tokens of every prompt, padded on the right.
        tail_mask: long (N, t), 0 where padded (with a token of the text, whatever it is: nobody looks at it).
    """

    first: Mapping[str, Any]
    length: int
    tails: Tensor
    tail_mask: Tensor

    def moved(self, move: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> SharedInputs:
        """The same with all tensors where `move` brings those of a mapping."""
        return replace(self, first=move(self.first), **move({"tails": self.tails, "tail_mask": self.tail_mask}))


class _CannotShare(Exception):
    """Says why; never leaves this module."""


def can_share(anatomy: Anatomy, *, tap_layer: int, layers: Sequence[int] = ()) -> bool:
    """Whether prompts about one image may go on from its tokens, as far as that is known before it is tried.

    The first time that it is False, a warning says why; so do the functions below where they return None.
    """
    kernel = anatomy.attention_implementation(tap_layer)
    if kernel in _unfit.get(anatomy.model, {}):
        return False
    try:
        _require_plain_caches(anatomy, _layers_run(tap_layer, layers))
    except _CannotShare as reason:
        return _remember(anatomy, kernel, reason)
    return True


def share_inputs(
    processor: Any,
    first: Mapping[str, Any],
    last_image_token: int,
    prompts: Sequence[str],
    template: str,
    max_length: int | None = None,
) -> SharedInputs | None:
    """Find what comes before the prompts, and make tokens of what does not; the image is not processed again.

    Args:
        processor, prompts, template, max_length: as for `inputs.build_inputs`; at least two prompts, of one image.
        first: what `build_inputs` made of the image and the first prompt.
        last_image_token: its position in the sequence.

    Returns:
        None where the sequence does not end as the first prompt's text alone does (then nothing says how those of the
        others would), or the image stands behind that text.

    Raises:
        InputError: as `build_inputs`.
    """
    texts = tokenize(processor, prompts, template)
    same = 0  # tokens that all texts begin with; each keeps one of its own at least
    while same < min(map(len, texts)) - 1 and len({text[same] for text in texts}) == 1:
        same += 1
    tails = [torch.tensor(text[same:]) for text in texts]
    ids, mask = first["input_ids"], first.get("attention_mask")
    length = ids.shape[1] - len(tails[0])
    unpadded = mask is None or bool((mask != 0).all())
    if length <= last_image_token or not unpadded or not torch.equal(ids[0, length:].cpu(), tails[0]):
        logger.warning_once(
            f"{type(processor).__name__} makes sequences that do not begin with the image and end with the prompt's "
            "text as its tokenizer reads that alone. So the model runs anew for every prompt about an image: slower."
        )
        return None
    require_length(processor, prompts, length + max(map(len, tails)), max_length)
    return SharedInputs(
        first,
        length,
        tails=pad_sequence(tails, batch_first=True, padding_value=int(tails[0][-1])),
        tail_mask=pad_sequence([torch.ones_like(tail) for tail in tails], batch_first=True),
    )


def prefill_shared(
    anatomy: Anatomy, inputs: SharedInputs, *, tap_layer: int, layers: Sequence[int] = ()
) -> LensSignals | None:
    """What `hooks.prefill` would read of the N prompts with query "last", equal up to rounding.

    To be called if `can_share` says so. Rows are padded on the right. `layer_kwargs` are those of the tails; those of
    the prefix are in `prefix`.

    Returns:
        The signals; None where the run shows that the model cannot share a prefix.

    Raises:
        as `hooks.capture`.
    """
    kernel = anatomy.attention_implementation(tap_layer)
    try:
        with replicated(anatomy) as private:
            return _prefill_shared(private, inputs, tap_layer, layers)
    except _CannotShare as reason:
        _remember(anatomy, kernel, reason)
        return None


def repeated(cache: DynamicCache, length: int, count: int) -> DynamicCache:
    """A new cache of `count` rows, each with the first `length` tokens of the only row of `cache`.

    The rows are views of one: no memory is taken before tokens are added.
    """
    fresh = DynamicCache()
    layer: Any
    own: Any
    for index, layer in enumerate(cache.layers):
        if layer.get_seq_length():
            fresh.update(layer.keys[:, :, :length], layer.values[:, :, :length], index)
            own = fresh.layers[index]
            own.keys, own.values = (kept.expand(count, -1, -1, -1) for kept in (own.keys, own.values))
    return fresh


def _prefill_shared(private: Anatomy, inputs: SharedInputs, tap_layer: int, layers: Sequence[int]) -> LensSignals:
    run, length, (count, width) = _layers_run(tap_layer, layers), inputs.length, inputs.tails.shape
    first: Any
    tails: Any
    cache = DynamicCache()
    with _prefix_watched(private, run, length):
        first = prefill_replica(private, inputs.first, tap_layer=tap_layer, layers=layers, cache=cache)
    total = first.hidden.shape[1]
    if first.input_ids is None or first.input_ids.shape[1] != total or cache_argument(first.layer_kwargs) is None:
        raise _CannotShare("its layers are not called with one cache and one token of the text each")
    if any(cache.get_seq_length(layer) != total for layer in run):
        raise _CannotShare("its layers do not keep what they need of earlier tokens in the cache that they are given")
    going_on = {
        "input_ids": inputs.tails,
        "attention_mask": torch.cat([inputs.tail_mask.new_ones(count, length), inputs.tail_mask], dim=1),
    }
    if first.position_ids is not None:
        going_on["position_ids"] = _positions_on(first.position_ids, length, count, width)
    branches = repeated(cache, length, count)
    tails = prefill_replica(private, going_on, tap_layer=tap_layer, layers=layers, cache=branches)
    _require_agreement(first.hidden, tails.hidden, length)
    return replace(
        tails,
        hidden=torch.cat([first.hidden[:, :length].expand(count, -1, -1), tails.hidden], dim=1),
        input_ids=torch.cat([first.input_ids[:, :length].expand(count, -1), tails.input_ids], dim=1),
        prefix=SharedPrefix(length, first.hidden, first.layer_kwargs),
    )


def _remember(anatomy: Anatomy, kernel: str, reason: _CannotShare) -> Literal[False]:
    name = type(anatomy.model).__name__
    logger.warning("%s runs anew for every prompt about an image, which is slower: %s.", name, reason)
    _unfit.setdefault(anatomy.model, {})[kernel] = str(reason)
    return False


def _layers_run(tap_layer: int, layers: Sequence[int]) -> range:
    """The decoder layers whose attention runs in a prefill."""
    return range(max((tap_layer - 1, *layers)) + 1)


def _require_plain_caches(anatomy: Anatomy, run: Sequence[int]) -> None:
    """Every layer that runs keeps keys and values of its tokens, and nothing else."""
    if not run:
        raise _CannotShare("its first layer is tapped, so there is nothing to share")
    if anatomy.cross is not None:
        raise _CannotShare("its layers attend to image states that are not in their own sequence")
    if anatomy.config.is_encoder_decoder:
        raise _CannotShare("an encoder reads the prompt")
    if other := [layer for layer in run if anatomy.attentions[layer] is None]:
        raise _CannotShare(f"layers {other} keep a state of another kind than the keys and values of attention")
    kept = DynamicCache(config=anatomy.config).layers
    if others := sorted({type(kept[k]).__name__ for k in run if k < len(kept) and type(kept[k]) not in _PLAIN}):
        raise _CannotShare(f"it keeps more than keys and values ({', '.join(others)})")
    accepted = inspect.signature(anatomy.model.forward).parameters
    if missing := [name for name in ("past_key_values", "position_ids") if name not in accepted]:
        raise _CannotShare(f"its forward does not take {' and '.join(missing)}")


@contextmanager
def _prefix_watched(anatomy: Anatomy, run: Sequence[int], length: int) -> Iterator[None]:
    """Find out, in the forward that runs inside, whether a token of the prefix may look at a later one."""
    answers: list[Tensor | bool] = []

    def watch(call: AttentionCall) -> None:
        answers.append(may_look_ahead(call, length))

    with ExitStack() as stack:
        for layer in run:
            stack.enter_context(tap_attention(anatomy.attentions[layer], watch))
        yield
    if any(map(bool, answers)):
        raise _CannotShare("its image tokens may look at the text behind them")


def _positions_on(positions: Tensor, length: int, count: int, width: int) -> Tensor:
    """Positions (..., 1, T) of the first prompt's tokens -> (..., N, t) of all tails: text goes on one by one."""
    start = positions[..., length : length + 1]
    if positions.shape[-2] != 1 or not bool(
        (positions[..., length:] == start + torch.arange(positions.shape[-1] - length, device=start.device)).all()
    ):
        raise _CannotShare("the positions of its text tokens do not go on one by one")
    onward = start + torch.arange(width, device=start.device)  # (..., 1, t)
    return onward.expand(*positions.shape[:-2], count, width)


def _require_agreement(first: Tensor, tails: Tensor, length: int) -> None:
    """Hidden states of the first prompt's text must be the same both ways, but for rounding."""
    whole = first[0, length:].float()  # (T - P, D)
    again = tails[0, : len(whole)].float()
    error = ((again - whole).norm(dim=-1) / whole.norm(dim=-1)).max().item()
    allowed = torch.finfo(first.dtype).eps ** 0.5
    # Numbers that are infinite or none are no disagreement: as a reading they are refused by name.
    if not error <= allowed and bool(is_finite(first)):
        raise _CannotShare(
            f"hidden states of a prompt that goes on from its cache differ by {error:.2g} of their length from those "
            f"of the whole prompt (rounding: up to {allowed:.2g})"
        )
