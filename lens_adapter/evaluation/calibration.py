"""The score threshold: below it, a prompt is taken to name nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lens_adapter.errors import CalibrationError
from lens_adapter.evaluation.metrics import Finding


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does on the prompts that it was chosen on.

    Attributes:
        score_threshold: for `LensConfig.score_threshold`; 0: none does better than to refuse nothing.
        balanced_accuracy: mean of the share of prompts with a target that are kept and of others that are refused.
        prompts: how many there were with a target, and without.
    """

    score_threshold: float
    balanced_accuracy: float
    prompts: tuple[int, int]

    def __str__(self) -> str:
        there, absent = self.prompts
        return (
            f"score_threshold {self.score_threshold:.4f}: balanced accuracy {self.balanced_accuracy:.3f} on {there} "
            f"prompts with and {absent} without a target"
        )


def choose_score_threshold(findings: Sequence[Finding]) -> Calibration:
    """The score that best tells prompts with a target from prompts without, on validation data.

    Candidates lie halfway between neighboring scores. The one with the best balanced accuracy is chosen; of equally
    good ones, the one in the widest gap. If none is better than 0, which refuses nothing, it is 0.

    Raises:
        CalibrationError: the findings lack prompts of one kind.

    Examples:
        >>> from lens_adapter.evaluation import Overlap
        >>> there = Finding(Overlap(intersection=80, found=100, truth=80), score=0.75)
        >>> absent = Finding(Overlap(intersection=0, found=20, truth=0), score=0.25)
        >>> print(choose_score_threshold([there, absent]))
        score_threshold 0.5000: balanced accuracy 1.000 on 1 prompts with and 1 without a target
    """
    there = np.array([finding.has_target for finding in findings], bool)
    if not there.any() or there.all():
        raise CalibrationError(
            f"A score threshold is chosen on prompts with a target and prompts without; got {there.sum()} and "
            f"{(~there).sum()}. Add prompts to the validation data that name nothing in their image (mask: null)."
        )
    # An empty mask is a refusal whatever its score.
    score = np.array([-1.0 if finding.overlap.found == 0 else finding.score for finding in findings])
    scores = np.unique(score)
    candidates = np.concatenate([[0.0], (scores[1:] + scores[:-1]) / 2])
    gaps = np.concatenate([[np.inf], np.diff(scores)])
    candidates, gaps = candidates[candidates >= 0], gaps[candidates >= 0]
    refused, rightly = (np.searchsorted(np.sort(score[kind]), candidates) / kind.sum() for kind in (there, ~there))
    accuracy = (1 - refused + rightly) / 2
    best = max(range(len(candidates)), key=lambda k: (round(float(accuracy[k]), 12), gaps[k]))
    return Calibration(float(candidates[best]), float(accuracy[best]), (int(there.sum()), int((~there).sum())))
