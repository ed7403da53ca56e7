"""Metrics against cases worked by hand and against the field's own tools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy.stats import spearmanr
from torchmetrics.classification import BinaryJaccardIndex
from torchmetrics.functional.classification import binary_jaccard_index
from torchmetrics.functional.regression import spearman_corrcoef

from lens_adapter.errors import CalibrationError, InputError
from lens_adapter.evaluation import (
    METRICS,
    Finding,
    Overlap,
    by_subset,
    choose_score_threshold,
    measure,
    measure_with_intervals,
    overlap,
    rank_correlation,
)


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (10, 12)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


EMPTY = box(0, 0, 0, 0)


def encoded(*masks: np.ndarray) -> list:
    return [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def random_masks(seed: int, count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((count, 17, 23)) < rng.random((count, 1, 1))


# -- one mask ---------------------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    measured = overlap(box(0, 0, 4, 4), box(2, 2, 6, 6))
    assert measured == Overlap(intersection=4, found=16, truth=16) and measured.union == 28
    assert measured.iou == pytest.approx(1 / 7)


def test_ignored_pixels_are_taken_out_of_both():
    ignore = box(0, 0, 3, 12)
    assert overlap(box(0, 0, 4, 4), box(2, 2, 6, 6), ignore) == Overlap(intersection=2, found=4, truth=12)
    assert overlap(box(0, 0, 2, 2), box(1, 1, 3, 3), ignore).iou == 1.0  # nothing is left


def test_an_empty_union_counts_as_one():
    assert overlap(EMPTY, EMPTY).iou == 1.0
    assert overlap(EMPTY, box(0, 0, 1, 1)).iou == overlap(box(0, 0, 1, 1), EMPTY).iou == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_that_of_pycocotools_and_torchmetrics(seed):
    found, truth, ignore = random_masks(seed)
    ((expected,),) = coco.iou(encoded(found), encoded(truth), [0])
    assert overlap(found, truth).iou == pytest.approx(expected)
    assert overlap(found, truth).iou == pytest.approx(
        binary_jaccard_index(torch.from_numpy(found).int(), torch.from_numpy(truth).int()).item()
    )
    labels = torch.from_numpy(np.where(ignore, -1, truth))
    counted = binary_jaccard_index(torch.from_numpy(found).int(), labels, ignore_index=-1)
    measured = overlap(found, truth, ignore)
    assert measured.iou == pytest.approx(counted.item())
    # A crowd of COCO is such a region: of a mask, its "IoU" with a crowd is the share that does not count.
    ((ignored,),) = coco.iou(encoded(found), encoded(ignore), [1])
    assert measured.found == pytest.approx(found.sum() * (1 - ignored))
    ((expected,),) = coco.iou(encoded(found & ~ignore), encoded(truth & ~ignore), [0])
    assert measured.iou == pytest.approx(expected)


@pytest.mark.parametrize(
    "found", [box(0, 0, 2, 2, (10, 11)), np.zeros((10, 12), np.uint8), np.zeros((10, 12), np.float32)]
)
def test_masks_that_cannot_be_compared(found):
    for masks in ((found, EMPTY), (EMPTY, EMPTY, found)):
        with pytest.raises(InputError, match="bool masks of one shape"):
            overlap(*masks)


# -- many masks -------------------------------------------------------------------------------------------------------

HALF = Overlap(1, 2, 1)  # IoU 0.5
MISS = Overlap(0, 5, 3)
ALARM = Overlap(0, 9, 0)
QUIET = Overlap(0, 0, 0)


def test_metrics_by_hand():
    findings = [
        Finding(HALF, 0.6, hits=(True, False, True)),
        Finding(Overlap(90, 95, 95), 0.8, hits=()),
        Finding(MISS, 0.1, hits=(False, True)),
        Finding(ALARM, 0.4, hits=(False,)),
        Finding(ALARM, 0.05, hits=(False,)),
        Finding(QUIET, 0.9, hits=()),
    ]
    assert measure(findings, score_threshold=0.2) == {
        "giou": pytest.approx((0.5 + 0.9 + 0 + 0 + 1 + 1) / 6),
        "ciou": pytest.approx((1 + 90) / (2 + 100 + 3 + 9)),  # the refused masks are empty
        "precision_at_50": pytest.approx(2 / 3),  # exactly 0.5 is enough
        **{f"precision_at_{percent}": pytest.approx(1 / 3) for percent in (60, 70, 80, 90)},
        "first_keypoint_on_target": pytest.approx(1 / 3),  # without a keypoint, it has missed
        "keypoints_on_target": pytest.approx(3 / 5),
        "no_target_accuracy": pytest.approx(2 / 3),
        "target_accuracy": pytest.approx(2 / 3),
        "score_rank_correlation": pytest.approx(1),  # 0.6 0.8 0.1 against 0.5 0.9 0
        "score_error": pytest.approx((0.1 + 0.1 + 0.1) / 3),
    }
    assert tuple(measure(findings)) == METRICS
    never = measure(findings)
    assert never["no_target_accuracy"] == pytest.approx(1 / 3) and never["target_accuracy"] == 1.0
    assert never["ciou"] == pytest.approx(91 / (2 + 100 + 8 + 9 + 9))


def test_a_metric_that_no_prompt_supports_is_left_out():
    assert measure([]) == {}
    assert measure([Finding(ALARM, 0.9), Finding(QUIET, 0.9)]) == {"giou": 0.5, "no_target_accuracy": 0.5}
    alone = measure([Finding(HALF, 0.75)])
    assert not {"no_target_accuracy", "score_rank_correlation", "keypoints_on_target"} & set(alone)
    assert alone["score_error"] == 0.25 and "first_keypoint_on_target" not in alone
    assert measure([Finding(HALF, 0.75, hits=())])["first_keypoint_on_target"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    whole, ious, scores, findings = BinaryJaccardIndex(), [], [], []
    for k in range(12):
        found, truth, _ = random_masks(100 * seed + k)
        pair = torch.from_numpy(found).int(), torch.from_numpy(truth).int()
        whole.update(*pair)
        ious.append(binary_jaccard_index(*pair))
        scores.append(float(rng.random()))
        findings.append(Finding(overlap(found, truth), scores[-1]))
    figures = measure(findings)
    assert figures["ciou"] == pytest.approx(whole.compute().item())
    assert figures["giou"] == pytest.approx(torch.stack(ious).mean().item())
    expected = spearman_corrcoef(torch.tensor(scores), torch.stack(ious)).item()
    assert figures["score_rank_correlation"] == pytest.approx(expected, abs=1e-5)


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 4, -7]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, (2, 30)).tolist()  # many ties
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)


@pytest.mark.parametrize("a, b", [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([1, 2], [1, 2, 3]), ([], [])])
def test_no_rank_correlation_is_invented(a, b):
    with pytest.raises(InputError, match="at least two different numbers"):
        rank_correlation(a, b)


# -- intervals and subsets --------------------------------------------------------------------------------------------


def of_iou(iou: float, **more) -> Finding:
    return Finding(Overlap(round(1000 * iou), 1000, round(1000 * iou)), **{"score": 0.5, **more})


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of samples of 30 images, whose prompts are alike, the interval holds the true mean about 95 times in 100."""
    rng = np.random.default_rng(3)
    held = {"images": 0, "prompts": 0}
    for _ in range(50):
        ious = rng.random(30).repeat(4)
        named = {"images": [f"{k // 4}" for k in range(120)], "prompts": [f"{k}" for k in range(120)]}
        for kind, pictures in named.items():
            findings = [of_iou(iou, picture=name) for iou, name in zip(ious, pictures, strict=True)]
            low, high = measure_with_intervals(findings, resamples=100)["giou"].interval
            held[kind] += low <= 0.5 <= high
    assert held["images"] >= 43
    assert held["prompts"] < 40  # as if the prompts told more than the images do


def test_intervals_are_seeded_and_hold_their_value():
    rng = np.random.default_rng(0)
    findings = [
        Finding(Overlap(9, 10, 10) if k % 3 else ALARM, float(rng.random()), (bool(k % 2),), picture=f"{k // 2}")
        for k in range(24)
    ]
    once, again = (measure_with_intervals(findings, 0.5) for _ in range(2))
    other = measure_with_intervals(findings, 0.5, seed=1)
    assert once == again and once["giou"].value == other["giou"].value and once["giou"] != other["giou"]
    assert {name: figure.value for name, figure in once.items()} == measure(findings, 0.5)
    assert all(figure.interval[0] <= figure.value <= figure.interval[1] for figure in once.values())


def test_a_resample_without_a_case_does_not_count():
    findings = [of_iou(0.5, picture="a"), Finding(ALARM, 0.5, picture="b")]
    assert measure_with_intervals(findings)["no_target_accuracy"] == (0.0, (0.0, 0.0))


def test_subsets_come_after_all():
    findings = [of_iou(0.5, subset=name) for name in ("short", "", "long", "short", "all")]
    assert {name: len(group) for name, group in by_subset(findings).items()} == {"all": 5, "short": 2, "long": 1}
    assert list(by_subset(findings)) == ["all", "short", "long"]


# -- calibration ------------------------------------------------------------------------------------------------------


def there(score: float) -> Finding:
    return of_iou(0.5, score=score)


def absent(score: float, found: int = 9) -> Finding:
    return Finding(Overlap(0, found, 0), score)


def test_the_threshold_lies_in_the_widest_of_the_best_gaps():
    chosen = choose_score_threshold([there(0.9), there(0.8), there(0.2), absent(0.1), absent(0.3), absent(0.35)])
    # between 0.35 and 0.8: 2 of 3 and 3 of 3 are right; between 0.1 and 0.2: 3 of 3 and 1 of 3
    assert chosen.score_threshold == pytest.approx(0.575)
    assert chosen.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2) and chosen.prompts == (3, 3)
    assert "0.5750" in str(chosen) and "0.833" in str(chosen)


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    findings = [there(s) for s in rng.beta(3, 2, 40)] + [absent(s, int(s > 0.2)) for s in rng.beta(2, 3, 25)]

    def balanced(threshold: float) -> float:
        figures = measure(findings, threshold)
        return (figures["no_target_accuracy"] + figures["target_accuracy"]) / 2

    chosen = choose_score_threshold(findings)
    assert chosen.balanced_accuracy == pytest.approx(balanced(chosen.score_threshold))
    assert chosen.balanced_accuracy == pytest.approx(max(balanced(t) for t in np.linspace(0, 1, 2001)))


def test_nothing_is_refused_where_scores_tell_nothing():
    assert choose_score_threshold([there(0.5), absent(0.5)]).score_threshold == 0.0
    assert choose_score_threshold([there(0.2), absent(0.8)]).score_threshold == 0.0
    empty = choose_score_threshold([there(0.5), absent(0.7, found=0)])  # its mask says it already
    assert (empty.score_threshold, empty.balanced_accuracy) == (0.0, 1.0)


@pytest.mark.parametrize("findings", [[], [there(0.5)], [absent(0.5)]])
def test_one_kind_of_prompt_is_not_enough(findings):
    with pytest.raises(CalibrationError, match="prompts with a target and prompts without"):
        choose_score_threshold(findings)
