"""The trainable head: what was read off the frozen base -> heatmap, keypoints, and vectors for a mask decoder."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from lens_adapter.config import LensConfig
from lens_adapter.errors import LensConfigError
from lens_adapter.head.dense import DensePrompt
from lens_adapter.head.descriptors import Descriptors
from lens_adapter.head.keypoints import find_keypoints
from lens_adapter.head.lite import HEAD_WIDTH, LiteFusion
from lens_adapter.head.mirror import MirrorFusion
from lens_adapter.head.raster import rasterize
from lens_adapter.signals import LensSignals, Reading, SparsePrompts


class LensHead(nn.Module):
    """Heatmap, keypoints and descriptors of the LENS method (arXiv 2510.16785), without the mask decoder.

    Args:
        config: widths, fusion and keypoint settings.
        mirror_layers: trainable copies of the base's decoder layers (see `MirrorFusion`); for `fusion="mirror"` only.

    Raises:
        LensConfigError: `mirror_layers` and `config.fusion` do not go together.
    """

    def __init__(self, config: LensConfig, mirror_layers: nn.Module | None = None):
        super().__init__()
        if (config.fusion == "mirror") != (mirror_layers is not None):
            raise LensConfigError(
                f"LensConfig.fusion is {config.fusion!r} and mirror_layers is {type(mirror_layers).__name__}; "
                'give mirror_layers with "mirror" and none with "lite".'
            )
        self.config = config
        self.fusion: MirrorFusion | LiteFusion
        if mirror_layers is not None:
            self.fusion = MirrorFusion(mirror_layers, config.hidden_size)
            num_heads = math.gcd(config.heads_of(config.tap_layer), config.hidden_size)  # a base may have wider heads
        else:
            self.fusion = LiteFusion(config)
            num_heads = config.fusion_width // HEAD_WIDTH
        self.dense = DensePrompt(config.sam["out_channels"]) if config.dense_prompt else None
        self.descriptors = Descriptors(self.fusion.width, config.sam["out_channels"], num_heads)

    def forward(self, reading: Reading, keypoint_dropout: float = 0.0) -> SparsePrompts:
        """Heat, keypoints and their vectors, of N prompts.

        Args:
            reading: of the frozen base; hidden states in its own dtype, on any device (a sharded base has several).
            keypoint_dropout: in training, the probability that a prompt goes without its keypoints, which leaves the
                text alone.

        Raises:
            LensError: the signals lack what the fusion reads.
            InputError: a row without image tokens.
        """
        device = self.descriptors.text_vector.device
        raster = rasterize(reading.layouts, device)
        fused = self.fusion(_to(reading.signals, device), raster)
        heatmap = raster.spread(fused.heat).clamp(0, 1)  # (N, H, W); rounding can take a weighted mean past 1
        keypoints = find_keypoints(
            heatmap,
            raster.size,
            count=self.config.num_keypoints,
            radius=self.config.suppression_radius,
            threshold=self.config.keypoint_threshold,
        )
        shown = keypoints.valid
        if self.training and keypoint_dropout > 0:
            shown = shown & (torch.rand(len(shown), device=device) >= keypoint_dropout)[:, None]
        points, text = self.descriptors(raster, fused.features, keypoints.points, shown, fused.text)
        return SparsePrompts(keypoints, shown, points, text, heatmap, raster.size)


def _to(signals: LensSignals, device: torch.device) -> LensSignals:
    """What the fusions read on the head's device; `layer_kwargs` are the mirrored layers' own affair."""
    return replace(
        signals,
        hidden=signals.hidden.to(device),
        attention={layer: rows.to(device) for layer, rows in signals.attention.items()},
        attention_mask=None if signals.attention_mask is None else signals.attention_mask.to(device),
        queries=None if signals.queries is None else signals.queries.to(device),
    )
