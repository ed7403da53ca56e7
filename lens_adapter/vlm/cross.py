"""Where layers attend to image states apart from the text: one sequence is made of both, image states first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from lens_adapter.errors import UnsupportedModelError
from lens_adapter.signals import LensSignals
from lens_adapter.vlm.architectures import CrossAttention


def image_states(signals: LensSignals, cross: CrossAttention, architecture: str) -> Tensor:
    """The image states (B, N, D) that the tapped layer was given, in the dtype of its hidden states.

    Raises:
        UnsupportedModelError: they are not as wide as the text's.
    """
    states = signals.layer_kwargs[cross.states]
    states = states.reshape(len(signals.hidden), -1, states.shape[-1]).to(signals.hidden)  # (B, N, D)
    if states.shape[-1] != signals.hidden.shape[-1]:
        raise UnsupportedModelError(
            f"{architecture!r}: expected image states as wide as those of the text ({signals.hidden.shape[-1]}), got "
            f"{states.shape[-1]}; one sequence cannot hold both."
        )
    return states


def behind_image(signals: LensSignals, cross: CrossAttention, count: int, length: int) -> LensSignals:
    """The record of a text, moved behind the image states that its layers attend to.

    Hidden states stay those of the text: the image states are put before them once (see `image_states`), not again for
    every new token.

    Args:
        signals: of the text alone, but for `attention`, whose rows (B, heads, Q, N) are over the image states.
        cross: how its layers attend to these.
        count: N, the number of image states.
        length: T, tokens of the text, cached ones included.

    Returns:
        Rows over N + T tokens, with 0 for the text; ids, -1 for an image state; a mask that leaves out image states
        that show no image; and queries, moved by N.
    """
    queries = cast(Tensor, signals.queries)  # (B, Q)
    seen = _seen_states(signals.layer_kwargs.get(cross.mask), queries[:, -1] - length, count)
    text, mask = signals.attention_mask, None
    if text is not None or seen is not None:
        batch = len(queries)
        image = torch.ones(1, count) if seen is None else seen
        text = torch.ones(batch, length, dtype=torch.long, device=image.device) if text is None else text
        mask = torch.cat([image.to(text).expand(batch, count), text], dim=1)
    return replace(
        signals,
        attention={layer: pad(rows, (0, length)) for layer, rows in signals.attention.items()},
        input_ids=None if signals.input_ids is None else pad(signals.input_ids, (count, 0), value=-1),
        attention_mask=mask,
        queries=queries + count,
    )


def _seen_states(mask: Any, from_end: Tensor, count: int) -> Tensor | None:
    """Which of `count` states a mask (B or 1, 1, q or 1, T) lets the tokens `from_end` (B) see: (B, N); None: all."""
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return None
    rows = from_end[:, None, None, None] % mask.shape[2]  # 0 where one row is for all tokens
    row = mask[..., :count].take_along_dim(rows.to(mask.device), dim=2)[:, 0, 0]
    return row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
