"""The field's metrics, from one finding per prompt, by the protocol of `lens_adapter.evaluation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lens_adapter.errors import InputError
from lens_adapter.output import is_found
from lens_adapter.results import Figure

PROTOCOL = "lens-1"  # names the rules of `lens_adapter.evaluation`; another when a figure comes to mean something else
PRECISIONS = (50, 60, 70, 80, 90)  # percent of IoU
METRICS = (
    "giou",
    "ciou",
    *(f"precision_at_{percent}" for percent in PRECISIONS),
    "first_keypoint_on_target",
    "keypoints_on_target",
    "no_target_accuracy",
    "target_accuracy",
    "score_rank_correlation",
    "score_error",
)
RESAMPLES = 1000


@dataclass(frozen=True)
class Overlap:
    """Counts of pixels: in both a mask and its truth, in the mask, in the truth."""

    intersection: int
    found: int
    truth: int

    @property
    def union(self) -> int:
        return self.found + self.truth - self.intersection

    @property
    def iou(self) -> float:
        """In [0, 1]; an empty union counts as 1."""
        return self.intersection / self.union if self.union else 1.0


def overlap(found: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> Overlap:
    """Compare two bool masks (H, W). Pixels to ignore are taken out of both.

    Raises:
        InputError: they differ in shape or are not bool.

    Examples:
        >>> found = np.array([[True, True, False], [True, True, False]])
        >>> truth = np.array([[False, True, True], [False, True, True]])
        >>> overlap(found, truth)
        Overlap(intersection=2, found=4, truth=4)
        >>> overlap(found, truth, ignore=~truth).iou
        0.5
    """
    masks = [found, truth, *([] if ignore is None else [ignore])]
    if any(mask.shape != truth.shape or mask.dtype != bool for mask in masks):
        got = " and ".join(f"{mask.dtype} {mask.shape}" for mask in masks)
        raise InputError(
            f"overlap compares bool masks of one shape; got {got}. Bring the mask to the image's own size first."
        )
    if ignore is not None:
        found, truth = found & ~ignore, truth & ~ignore
    return Overlap(int((found & truth).sum()), int(found.sum()), int(truth.sum()))


@dataclass(frozen=True)
class Finding:
    """What a head made of one prompt, before any score threshold.

    Attributes:
        overlap: of its mask and the truth.
        score: its own estimate of the mask's IoU, in [0, 1].
        hits: whether each keypoint lies on the target, the hottest first; None: keypoints are not known.
        subset: what the prompt is counted under beside "all"; "": nothing.
        picture: names the image: prompts about one image are not independent.
        index: position in the data.
    """

    overlap: Overlap
    score: float
    hits: tuple[bool, ...] | None = None
    subset: str = ""
    picture: str = ""
    index: int = 0

    @property
    def has_target(self) -> bool:
        return self.overlap.truth > 0

    def refused(self, score_threshold: float) -> bool:
        """The head says "not there": its mask is empty, or its score below the threshold."""
        return self.overlap.found == 0 or not is_found(self.score, score_threshold)

    def judged(self, score_threshold: float) -> Overlap:
        """The overlap under a threshold: the mask of a refused prompt is empty."""
        return Overlap(0, 0, self.overlap.truth) if self.refused(score_threshold) else self.overlap


def measure(findings: Sequence[Finding], score_threshold: float = 0.0) -> dict[str, float]:
    """Metric -> value over these prompts. A metric that none of them supports is left out.

    Args:
        findings: of each prompt.
        score_threshold: a prompt whose score is below it names nothing, and its mask counts as empty.

    Examples:
        >>> good = Finding(Overlap(intersection=80, found=100, truth=80), score=0.9)
        >>> false_alarm = Finding(Overlap(intersection=0, found=20, truth=0), score=0.3)
        >>> measure([good, false_alarm])["giou"], measure([good, false_alarm], score_threshold=0.5)["giou"]
        (0.4, 0.9)
    """
    return _named(_Tally(findings, score_threshold).totals())


def measure_with_intervals(
    findings: Sequence[Finding], score_threshold: float = 0.0, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Figure]:
    """`measure`, with the 2.5 and 97.5 percentiles of a bootstrap over images.

    Whole images are drawn with replacement, as prompts about one image are not independent. For a metric, resamples
    without a prompt that it is about do not count.

    Args:
        findings: as for `measure`.
        score_threshold: as for `measure`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    tally = _Tally(findings, score_threshold)
    values = _named(tally.totals())
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(0, tally.images, tally.images)) for _ in range(resamples))
    made = [tally.totals(np.pad(counts, (0, tally.images - len(counts)))) for counts in drawn]
    figures = {}
    for name, value in values.items():
        low, high = np.nanquantile([one[name] for one in made], (0.025, 0.975))
        figures[name] = Figure(value, (float(low), float(high)))
    return figures


def by_subset(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """ "all" first, then each subset in the order of the data."""
    groups = {"all": list(findings)}
    for finding in findings:
        if finding.subset not in ("", "all"):
            groups.setdefault(finding.subset, []).append(finding)
    return groups


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rho in [-1, 1]: the correlation of the ranks, ties sharing their mean rank.

    Raises:
        InputError: there is none, for one of the two is constant or they are not equally long.

    Examples:
        >>> rank_correlation([0.1, 0.5, 0.9], [10, 20, 30])
        1.0
    """
    different = [len(np.unique(values)) for values in (a, b)]
    if len(a) != len(b) or min(different) < 2:
        raise InputError(
            f"A rank correlation needs two equally long lists of at least two different numbers; got {len(a)} and "
            f"{len(b)} numbers, {different[0]} and {different[1]} of them different."
        )
    return _rank_correlation(np.asarray(a), np.asarray(b))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """(N,) each; NaN where one is constant."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            return np.nan
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.asarray(np.corrcoef(np.stack(ranks)))[0, 1])


class _Tally:
    """Sums of findings by image, so that an image can be counted as often as it was drawn."""

    def __init__(self, findings: Sequence[Finding], score_threshold: float):
        judged = [f.judged(score_threshold) for f in findings]
        iou = np.array([o.iou for o in judged])  # (N,), as all columns
        there = np.array([f.has_target for f in findings], bool)
        refused = np.array([f.refused(score_threshold) for f in findings], bool)
        self.score = np.array([f.score for f in findings], np.float64)
        self.reached = np.array([f.overlap.iou for f in findings])  # what the score is an estimate of
        self.with_target = np.flatnonzero(there)
        known = np.array([f.hits is not None for f in findings], bool) & there
        hits = [f.hits or () for f in findings]
        # metric -> numerator and denominator (N,): it is the ratio of their sums
        self.ratios = {
            "giou": (iou, np.ones_like(iou)),
            **{f"precision_at_{percent}": ((iou >= percent / 100) & there, there) for percent in PRECISIONS},
            "first_keypoint_on_target": (known * [any(h[:1]) for h in hits], known),
            "keypoints_on_target": (known * [sum(h) for h in hits], known * [len(h) for h in hits]),
            "no_target_accuracy": (refused & ~there, ~there),
            "target_accuracy": (~refused & there, there),
            "score_error": (np.abs(self.score - self.reached) * there, there),
        }
        if there.any():
            self.ratios["ciou"] = tuple(np.array([(o.intersection, o.union) for o in judged], np.float64).T)
        names, self.image = np.unique([f.picture for f in findings], return_inverse=True)
        self.images = len(names)
        terms = [term for ratio in self.ratios.values() for term in ratio]
        self.sums = np.array([np.bincount(self.image, term) for term in terms], np.float64)  # (2 metrics, images)

    def totals(self, counts: np.ndarray | None = None) -> dict[str, float]:
        """Metric -> value, NaN where no prompt supports it; `counts` (images,): how often each image was drawn."""
        counts = np.ones(self.images, int) if counts is None else counts
        above, below = (self.sums @ counts).reshape(-1, 2).T
        values = dict(
            zip(self.ratios, np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0), strict=True)
        )
        rows = np.repeat(self.with_target, counts[self.image[self.with_target]])
        values["score_rank_correlation"] = _rank_correlation(self.score[rows], self.reached[rows])
        return values


def _named(values: dict[str, float]) -> dict[str, float]:
    return {name: float(values[name]) for name in METRICS if name in values and not np.isnan(values[name])}
