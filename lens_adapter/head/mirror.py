"""The paper's fusion: trainable copies of the base's own decoder layers."""

from __future__ import annotations

from torch import nn

from lens_adapter.head.fusion import FusionOutput, last_token, take
from lens_adapter.head.raster import Raster
from lens_adapter.signals import LensSignals

_LEAST = 1e-12  # what no attention is divided by less than


class MirrorFusion(nn.Module):
    """The paper's fusion: trainable copies of the base's own decoder layers.

    Heat is the head-mean attention of the first copy, row of the query token, as shares of the image
    tokens, divided by its own detached peak: the hottest token always has 1. Method: LENS, arXiv 2510.16785.

    Args:
        layers: called as `layers(signals, queries (B, Q))`, returns the attention rows (B, heads, Q, T) of its first
            layer and its output (B, T, D) in its own dtype.
        width: D, the base's hidden size.
    """

    def __init__(self, layers: nn.Module, width: int):
        super().__init__()
        self.layers = layers
        self.width = width

    def forward(self, signals: LensSignals, raster: Raster) -> FusionOutput:
        query = last_token(signals)  # (B,)
        rows, hidden = self.layers(signals, query[:, None])  # (B, heads, 1, T), (B, T, D)
        row = rows[:, :, 0].float().mean(dim=1)  # (B, T)
        row = row.gather(1, raster.positions).masked_fill(~raster.token_mask, 0.0)  # (B, n)
        # First the share of each image token, which changes no value below but leaves training no gain in attending
        # to the image less. All zero where no image is attended.
        share = row / row.sum(dim=1, keepdim=True).clamp(min=_LEAST)
        heat = share / share.detach().amax(dim=1, keepdim=True).clamp(min=_LEAST)  # in [0, 1]
        return FusionOutput(heat, take(hidden, raster.positions), take(hidden, query[:, None])[:, 0])
