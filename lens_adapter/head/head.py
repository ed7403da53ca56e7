"""The trainable head: signals of the frozen model -> heatmap, keypoints, sparse prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lens_adapter.config import LensConfig
from lens_adapter.errors import LensConfigError, LensError
from lens_adapter.head.descriptors import Descriptors
from lens_adapter.head.keypoints import find_keypoints
from lens_adapter.head.lite import HEAD_WIDTH, LiteFusion
from lens_adapter.head.mirror import MirrorFusion
from lens_adapter.head.raster import rasterize
from lens_adapter.signals import Keypoints, LensSignals, TokenLayout


@dataclass(frozen=True)
class HeadOutput:
    """What the head says about B prompts.

    Attributes:
        heatmap: float32 (B, H, W) in [0, 1], over the original image; 0 beyond `size`.
        size: long (B, 2), rows and columns (h, w) of each sample's own heatmap.
        keypoints: K of each sample, as found (whatever `keypoint_dropout` does to the prompts).
        sparse: (B, K + 1, C), prompts for SAM's mask decoder: the keypoints, then the query token.
    """

    heatmap: Tensor
    size: Tensor
    keypoints: Keypoints
    sparse: Tensor


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
        self.descriptors = Descriptors(self.fusion.width, config.sam["out_channels"], num_heads)

    def forward(
        self,
        signals: LensSignals,
        layouts: Sequence[TokenLayout],
        encode_points: Callable[[Tensor], Tensor],
        filler: Tensor,
        keypoint_dropout: float = 0.0,
    ) -> HeadOutput:
        """Read one prefill of B prompts.

        Args:
            signals: of the frozen model; hidden states in its own dtype, on any device (a sharded base has several).
            layouts: one per row of the batch.
            encode_points: points (B, K, 2), x then y in fractions of the original image, -> positional encoding
                (B, K, C) in the frame of the mask decoder.
            filler: (C,), the prompt that stands in for a missing keypoint.
            keypoint_dropout: in training, the probability that a sample goes without its keypoint prompts, leaving the
                query token alone.

        Raises:
            LensError: not one layout per row, or the signals lack what the fusion reads.
            InputError: a row without image tokens.
        """
        batch = len(signals.hidden)
        if len(layouts) != batch:
            raise LensError(f"Expected {batch} layouts, one per row of the batch; got {len(layouts)}.")
        device = self.descriptors.text_vector.device
        signals = _to(signals, device)
        raster = rasterize(layouts, device)
        fused = self.fusion(signals, raster)
        heatmap = raster.spread(fused.heat).clamp(0, 1)  # (B, H, W); rounding can take a weighted mean past 1
        keypoints = find_keypoints(
            heatmap,
            raster.size,
            count=self.config.num_keypoints,
            radius=self.config.suppression_radius,
            threshold=self.config.keypoint_threshold,
        )
        shown = keypoints
        if self.training and keypoint_dropout > 0:
            kept = torch.rand(batch, device=device) >= keypoint_dropout
            shown = replace(keypoints, valid=keypoints.valid & kept[:, None])
        sparse = self.descriptors(
            raster,
            fused.features,
            shown,
            fused.text,
            encode_points(keypoints.points),
            filler,
        )
        return HeadOutput(heatmap, raster.size, keypoints, sparse)


def _to(signals: LensSignals, device: torch.device) -> LensSignals:
    """What the fusions read on the head's device; `layer_kwargs` are the mirrored layers' own affair."""
    return replace(
        signals,
        hidden=signals.hidden.to(device),
        attention={layer: rows.to(device) for layer, rows in signals.attention.items()},
        attention_mask=None if signals.attention_mask is None else signals.attention_mask.to(device),
        queries=None if signals.queries is None else signals.queries.to(device),
    )
