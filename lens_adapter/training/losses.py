"""What a head learns from: L_attn + 2 BCE + 4 dice (LENS, arXiv 2510.16785), and the error of its quality estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lens_adapter.segmentation import LensPrediction

HEAT_SIDE = 128  # the heatmap is compared with the mask at this size, as in the paper


@dataclass(frozen=True)
class Targets:
    """The truth about N prompts.

    Attributes:
        masks: float (N, s, s), covered fraction of each cell of the mask decoder's own output: as
            `MaskDecoder.downsample` makes it.
        heat: float (N, 128, 128), covered fraction of each cell of the whole image.
        ignored: bool (N, s, s) and (N, 128, 128), cells that do not count; None: all count.
    """

    masks: Tensor
    heat: Tensor
    ignored: tuple[Tensor, Tensor] | None = None

    @property
    def present(self) -> Tensor:
        """bool (N,): the prompt names something."""
        return self.masks.flatten(1).amax(1) > 0

    def to(self, device: torch.device) -> Targets:
        masks, heat = self.masks.to(device), self.heat.to(device)
        if self.ignored is None:
            return Targets(masks, heat)
        return Targets(masks, heat, (self.ignored[0].to(device), self.ignored[1].to(device)))


def lens_losses(found: LensPrediction, targets: Targets, *, heat_needs_target: bool) -> dict[str, Tensor]:
    """The unweighted parts of the loss in float32, whatever precision the head multiplied in; each is a mean over the
    prompts it is about.

    Args:
        found: of `LensAdapter.forward`.
        targets: of the same N prompts, on the same device.
        heat_needs_target: leave prompts without a target out of the heatmap's loss. True for the mirror, whose map is
            divided by its own peak and cannot say "nothing".

    Returns:
        "attention" (BCE of the heatmap), "bce" and "dice" of the mask, "quality" (squared error of the estimated IoU).
    """
    with torch.autocast(found.logits.device.type, enabled=False):  # logarithms of probabilities: not in half precision
        return _lens_losses(found, targets, heat_needs_target)


def _lens_losses(found: LensPrediction, targets: Targets, heat_needs_target: bool) -> dict[str, Tensor]:
    logits, quality = found.logits.float(), found.quality.float()
    present = targets.present
    some = present.sum().clamp(min=1)
    counted_mask, counted_heat = (
        (torch.ones_like(targets.masks), torch.ones_like(targets.heat))
        if targets.ignored is None
        else tuple((~ignored).float() for ignored in targets.ignored)
    )
    heat = heat_square(found.prompts.heatmap, found.prompts.size).clamp(1e-6, 1 - 1e-6)
    attention = F.binary_cross_entropy(heat, (targets.heat >= 0.5).float(), reduction="none")
    attention = weighted_mean(attention, counted_heat)
    bce = F.binary_cross_entropy_with_logits(logits, targets.masks, reduction="none")
    reached = reached_iou(logits.detach(), targets.masks, counted_mask) * present  # a mask for nothing is wrong
    return {
        "attention": (attention * present).sum() / some if heat_needs_target else attention.mean(),
        "bce": weighted_mean(bce, counted_mask).mean(),
        "dice": (dice_loss(logits, targets.masks, counted_mask) * present).sum() / some,
        "quality": F.mse_loss(quality, reached),
    }


def heat_square(heat: Tensor, size: Tensor) -> Tensor:
    """Padded heatmaps (N, H, W), each (h, w) of `size` (N, 2) large -> (N, 128, 128), bilinear, corners aligned."""
    steps = torch.linspace(0, 1, HEAT_SIDE, device=heat.device)
    height, width = heat.shape[1:]
    h, w = (size.float() - 1).unbind(-1)  # (N,)
    # grid_sample counts from -1 at the first cell to 1 at the last one of the padded map.
    y = 2 * steps * h[:, None] / max(height - 1, 1) - 1  # (N, 128)
    x = 2 * steps * w[:, None] / max(width - 1, 1) - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)  # (N, 128, 128, 2)
    return F.grid_sample(heat[:, None].float(), grid, mode="bilinear", padding_mode="border", align_corners=True)[:, 0]


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """(N, h, w) each -> (N,)"""
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N, h, w) each -> (N,), with one pixel added above and below the fraction line."""
    probability = logits.sigmoid()
    if weight is not None:
        probability, target = probability * weight, target * weight
    probability, target = probability.flatten(1), target.flatten(1)
    return 1 - (2 * (probability * target).sum(1) + 1) / (probability.sum(1) + target.sum(1) + 1)


def reached_iou(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N, h, w) each -> (N,): IoU of the thresholded mask; 1 where both are empty."""
    counted = torch.ones_like(target, dtype=torch.bool) if weight is None else weight > 0
    found, truth = ((logits > 0) & counted).flatten(1), ((target >= 0.5) & counted).flatten(1)
    union = (found | truth).sum(1)
    return torch.where(union > 0, (found & truth).sum(1) / union.clamp(min=1), 1.0)
