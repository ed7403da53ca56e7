"""What mirrored layers are called with, taken apart into samples to store, and put together into batches again.

Layers are called with much the same by every architecture: `TOKEN_AXIS` names all that is understood, and an argument
that is not among it is refused rather than guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lens_adapter.errors import UnsupportedModelError
from lens_adapter.signals import LensSignals
from lens_adapter.vlm.anatomy import Anatomy

# Arguments with a value per token, and where their token axis is, counted from the end; the batch is before it.
TOKEN_AXIS = {
    "position_embeddings": 2,  # (B or 1, T, d), with M-RoPE in transformers 4 (3, B, T, d); mostly a pair of them
    "position_embeddings_global": 2,
    "position_embeddings_local": 2,
    "position_ids": 1,  # (B or 1, T) or (3, B, T)
    "mm_token_type_ids": 1,
    "moe_mm_token_type_ids": 1,
}
KERNELS = ("eager", "sdpa")  # whose masks say which token sees which

_REMEDY = 'Train without cached features, or with fusion="lite", which needs no arguments of layers.'


def require_kernel(name: str) -> None:
    """Refuse attention implementations whose masks do not say all that the layer hides from a token.

    Raises:
        UnsupportedModelError: names those that will do.
    """
    if name not in KERNELS:
        raise UnsupportedModelError(
            f"A mirror's features cannot be cached under the attention implementation {name!r}. Load the base with "
            f"attn_implementation set to one of {KERNELS}."
        )


def take_apart(signals: LensSignals, anatomy: Anatomy, layer: int, rows: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """The arguments of a tapped layer, sample by sample.

    Args:
        signals: of one prefill of B samples.
        anatomy, layer: what was tapped.
        rows: of each sample, long (t,), the tokens to keep.

    Returns:
        Of each sample, `{argument: (t, ...)}`, arguments that are tuples as "name.0", "name.1"; and "sees", bool
        (t, t), which token sees which, or (0, 0) where each sees all before it and itself.

    Raises:
        UnsupportedModelError: an argument that is not understood.
    """
    total = signals.hidden.shape[1]
    kept: dict[str, Tensor] = {}  # with the tokens first, and samples second: (T, B or 1, ...)
    for name, value in signals.layer_kwargs.items():
        if name == "attention_mask" or _is_constant(value):
            continue
        if name == "cache_position" and torch.equal(value.cpu(), torch.arange(total)):
            continue
        for leaf, tensor in _leaves(name, value).items():
            axis = tensor.dim() - TOKEN_AXIS[name] if isinstance(tensor, Tensor) and name in TOKEN_AXIS else 0
            fits = axis >= 1 and tensor.shape[axis] == total and tensor.shape[axis - 1] in (1, len(rows))
            if not fits or tensor.is_complex():
                raise _refusal(anatomy, name, tensor)
            kept[leaf] = tensor.movedim((axis, axis - 1), (0, 1))
    sees = _seen(signals, anatomy, layer)  # (B or 1, T, T)
    samples = []
    for index, tokens in enumerate(rows):
        sample = {name: x[:, index % x.shape[1]][tokens.to(x.device)] for name, x in kept.items()}
        seen = sees[index % len(sees)][tokens[:, None], tokens]  # (t, t)
        samples.append({**sample, "sees": seen[:0, :0] if torch.equal(seen, torch.ones_like(seen).tril()) else seen})
    return samples


def constants(signals: LensSignals) -> dict[str, Any]:
    """The arguments that are the same for every token and sample."""
    return {k: v for k, v in signals.layer_kwargs.items() if _is_constant(v) and k != "attention_mask"} | {
        name: "arange" for name in ("cache_position",) if isinstance(signals.layer_kwargs.get(name), Tensor)
    }


def put_together(
    samples: Sequence[Mapping[str, Tensor]], same: Mapping[str, Any], kernel: str, lengths: Sequence[int], dtype: Any
) -> dict[str, Any]:
    """The arguments of a layer for a batch, padded on the left.

    Args:
        samples: as `take_apart` returned them.
        same: as `constants` returned them.
        kernel: the attention implementation that will run.
        lengths: tokens t of each sample.
        dtype: of the mask where it is added to scores.
    """
    total = max(lengths)
    arguments: dict[str, Any] = dict(same)
    if "cache_position" in same:
        arguments["cache_position"] = torch.arange(total)
    for leaf in (name for name in samples[0] if name != "sees"):
        name, _, place = leaf.partition(".")
        batch = padded([sample[leaf] for sample in samples]).transpose(0, 1)  # (T, B, ...)
        axis = batch.dim() - TOKEN_AXIS[name]
        batch = batch.movedim((0, 1), (axis, axis - 1))  # (..., B, T, ...)
        arguments[name] = (*arguments.get(name, ()), batch) if place else batch
    sees = torch.eye(total, dtype=torch.bool).repeat(len(samples), 1, 1)  # padding sees itself: no row is empty
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        causal = not len(sample["sees"])
        sees[row, total - length :, total - length :] = (
            torch.ones(length, length, dtype=torch.bool).tril() if causal else sample["sees"]
        )
    sees = sees[:, None]  # (B, 1, T, T)
    if kernel == "eager":
        sees = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
    arguments["attention_mask"] = sees
    return arguments


def padded(rows: Sequence[Tensor]) -> Tensor:
    """B tensors (t, ...) -> (B, T, ...), T the longest of their lengths t, with zeros before shorter ones."""
    return pad_sequence(list(rows), batch_first=True, padding_side="left")


def _seen(signals: LensSignals, anatomy: Anatomy, layer: int) -> Tensor:
    """bool (B or 1, T, T): which token the mask of a layer lets see which."""
    mask, total = signals.layer_kwargs.get("attention_mask"), signals.hidden.shape[1]
    everything = torch.ones(1, total, total, dtype=torch.bool)
    if mask is None:
        # sdpa leaves it to its kernel to hide what comes later; eager has no other way than a mask.
        causal = signals.kernel == "sdpa" and getattr(anatomy.attentions[layer], "is_causal", True)
        return everything.tril() if causal else everything
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1:] != (1, total, total):
        raise _refusal(anatomy, "attention_mask", mask)
    mask = mask[:, 0].cpu()
    if mask.dtype == torch.bool:
        return mask
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    if not bool((hidden | (mask == 0)).all()):
        raise _refusal(anatomy, "attention_mask", "a mask that holds other numbers than 0 and the lowest")
    return ~hidden


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, tuple | list) and value:
        return {f"{name}.{place}": item for place, item in enumerate(value)}
    return {name: value}


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _refusal(anatomy: Anatomy, name: str, got: Any) -> UnsupportedModelError:
    got = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else got if isinstance(got, str) else type(got)
    return UnsupportedModelError(
        f"{anatomy.architecture!r}: its layers are called with {name!r} ({got}), which cannot be cached: understood "
        f"are a mask (B, 1, T, T) that hides tokens, and values per token named one of {sorted(TOKEN_AXIS)}. {_REMEDY}"
    )
