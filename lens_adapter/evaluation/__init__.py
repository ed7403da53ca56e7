"""How good the masks of a head are, by the field's metrics; one protocol for `evaluate`, the trainer and the cards.

The protocol, "lens-1":

- Per expression: an image with three prompts counts three times.
- Masks are compared in pixels of the original image. Pixels to ignore are taken out of both masks.
- A prompt is refused if its mask is empty, or its score below the score threshold: then its mask counts as empty.
- IoU = intersection / union; an empty union counts as 1. A prompt without a target is therefore 1 if refused, else 0.
- `giou`: mean IoU of all prompts. `ciou`: sum of intersections over sum of unions, of all prompts; a false alarm adds
  its pixels to the unions, a refusal of what is not there adds nothing.
- `precision_at_50` ... `_90`: share of the prompts with a target whose IoU is at least 0.5 ... 0.9.
- `first_keypoint_on_target`: share of the prompts with a target whose hottest keypoint lies on it; one without a
  keypoint has missed. `keypoints_on_target`: share of all keypoints of these prompts. Those on ignored pixels do not
  count; a refusal changes nothing here.
- `no_target_accuracy` (N-acc): share of the prompts without a target that are refused. `target_accuracy` (T-acc): share
  of the others that are not.
- `score_rank_correlation` (Spearman) and `score_error` (mean |score - IoU|): of the prompts with a target, with the IoU
  before any refusal, which is what a score estimates.
- Intervals: 2.5 and 97.5 percentiles of 1000 bootstrap resamples of images, not of prompts.

As gRefCOCO's own evaluation counts (Liu, Ding and Jiang, "GRES", CVPR 2023), but for the union of a refused prompt that
has a target: ours is its truth alone, as its mask is empty.
"""

from lens_adapter.evaluation.calibration import Calibration, choose_score_threshold
from lens_adapter.evaluation.metrics import (
    METRICS,
    PROTOCOL,
    Finding,
    Overlap,
    by_subset,
    measure,
    measure_with_intervals,
    overlap,
    rank_correlation,
)
from lens_adapter.evaluation.runner import evaluate, examine, finding_of, this_process
from lens_adapter.results import Evaluation, Figure

__all__ = [
    "METRICS",
    "PROTOCOL",
    "Calibration",
    "Evaluation",
    "Figure",
    "Finding",
    "Overlap",
    "by_subset",
    "choose_score_threshold",
    "evaluate",
    "examine",
    "finding_of",
    "measure",
    "measure_with_intervals",
    "overlap",
    "rank_correlation",
    "this_process",
]
