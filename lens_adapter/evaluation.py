"""How good masks are: the field's metrics.

Per expression: IoU = intersection / union in pixels of the original image; an empty union counts as 1. gIoU is the
mean of IoUs, cIoU the sum of intersections over the sum of unions, P@0.5 the share of IoUs above 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lens_adapter.errors import InputError


@dataclass(frozen=True)
class Overlap:
    """Of a mask and its truth: pixels in both and pixels in either."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        return self.intersection / self.union if self.union else 1.0


def overlap(found: np.ndarray, truth: np.ndarray) -> Overlap:
    """Compare two bool masks (H, W).

    Raises:
        InputError: they differ in shape or are not bool.
    """
    if found.shape != truth.shape or found.dtype != bool or truth.dtype != bool:
        raise InputError(
            f"overlap compares two bool masks of one shape; got {found.dtype} {found.shape} and "
            f"{truth.dtype} {truth.shape}. Bring the mask to the image's own size first."
        )
    return Overlap(int((found & truth).sum()), int((found | truth).sum()))


def mask_metrics(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """gIoU, cIoU and P@0.5 of at least one overlap, each in [0, 1]."""
    ious = np.array([o.iou for o in overlaps])
    total = Overlap(sum(o.intersection for o in overlaps), sum(o.union for o in overlaps))
    return {"giou": float(ious.mean()), "ciou": total.iou, "precision_at_50": float((ious > 0.5).mean())}


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rho in [-1, 1]: the correlation of the ranks, ties sharing their mean rank.

    Raises:
        InputError: there is none, for one of the two is constant or they are not equally long.
    """
    if len(a) != len(b) or len(set(a)) < 2 or len(set(b)) < 2:
        raise InputError(
            f"A rank correlation needs two equally long lists of at least two different numbers; got {len(a)} and "
            f"{len(b)} numbers, {len(set(a))} and {len(set(b))} of them different."
        )
    ranks = []
    for values in (np.asarray(a), np.asarray(b)):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def judge_predictions(
    overlaps: Sequence[Overlap], has_target: Sequence[bool], scores: Sequence[float], score_threshold: float
) -> dict[str, float]:
    """What a head is judged by, as far as the predictions hold a case of it.

    Args:
        overlaps, has_target, scores: of each prompt.
        score_threshold: a score below it says "not there", as an empty mask does.

    Returns:
        `mask_metrics` of the prompts with a target; "no_target_accuracy": share of the others of which the head says
        "not there"; "score_rank_correlation" of score and IoU.
    """
    present = [o for o, there in zip(overlaps, has_target, strict=True) if there]
    refused = [o.union == 0 or score < score_threshold for o, score in zip(overlaps, scores, strict=True)]
    figures = mask_metrics(present) if present else {}
    return figures | self_knowledge(overlaps, has_target, scores, refused)


def self_knowledge(
    overlaps: Sequence[Overlap], has_target: Sequence[bool], scores: Sequence[float], refused: Sequence[bool]
) -> dict[str, float]:
    """How well a head knows what it did, as far as the predictions hold a case of it.

    Args:
        overlaps, has_target, scores: of each prompt.
        refused: whether the head says "not there"; counts for prompts without a target.

    Returns:
        "no_target_accuracy" and "score_rank_correlation", as `judge_predictions` has them.
    """
    figures = {}
    if not all(has_target):
        figures["no_target_accuracy"] = float(
            np.mean([r for r, there in zip(refused, has_target, strict=True) if not there])
        )
    pairs = [(float(s), o.iou) for s, o, there in zip(scores, overlaps, has_target, strict=True) if there]
    sure, ious = [score for score, _ in pairs], [iou for _, iou in pairs]
    if len(set(ious)) > 1 and len(set(sure)) > 1:
        figures["score_rank_correlation"] = rank_correlation(sure, ious)
    return figures
