"""What every fusion puts out: heat on the image tokens, and features to describe keypoints with.

A fusion is called as `fusion(signals, raster) -> FusionOutput` and has the attribute `width` (d).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lens_adapter.signals import LensSignals


@dataclass(frozen=True)
class FusionOutput:
    """What a fusion says about n image tokens.

    Attributes:
        heat: float32 (B, n) in [0, 1]; 0 for padded tokens.
        features: (B, n, d), of the image tokens.
        text: (B, d), of the query token (the last attended one).
    """

    heat: Tensor
    features: Tensor
    text: Tensor


def last_token(signals: LensSignals) -> Tensor:
    """Position of the last attended token of each row: long (B,), whichever side is padded."""
    batch, length = signals.hidden.shape[:2]
    if signals.attention_mask is None:
        return torch.full((batch,), length - 1, device=signals.hidden.device)
    return length - 1 - (signals.attention_mask != 0).long().flip(1).argmax(dim=1)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """(B, T, D) at positions (B, n) -> (B, n, D)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def attended_tokens(signals: LensSignals) -> Tensor:
    """Number of attended tokens of each row: (B,)."""
    batch, length = signals.hidden.shape[:2]
    if signals.attention_mask is None:
        return torch.full((batch,), length, device=signals.hidden.device)
    return (signals.attention_mask != 0).sum(dim=1)
