"""Metrics against cases worked by hand and against the field's own tools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy.stats import spearmanr

from lens_adapter.errors import InputError
from lens_adapter.evaluation import Overlap, judge_predictions, mask_metrics, overlap, rank_correlation


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (10, 12)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


EMPTY = box(0, 0, 0, 0)


def test_overlap_by_hand():
    measured = overlap(box(0, 0, 4, 4), box(2, 2, 6, 6))
    assert measured == Overlap(intersection=4, union=28)
    assert measured.iou == pytest.approx(1 / 7)


def test_an_empty_union_counts_as_one():
    assert overlap(EMPTY, EMPTY).iou == 1.0
    assert overlap(EMPTY, box(0, 0, 1, 1)).iou == overlap(box(0, 0, 1, 1), EMPTY).iou == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_that_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    found, truth = rng.random((2, 17, 23)) < rng.random((2, 1, 1))
    encoded = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (found, truth)]
    ((expected,),) = coco.iou(encoded[:1], encoded[1:], [0])
    assert overlap(found, truth).iou == pytest.approx(expected)


@pytest.mark.parametrize(
    "found", [box(0, 0, 2, 2, (10, 11)), np.zeros((10, 12), np.uint8), np.zeros((10, 12), np.float32)]
)
def test_masks_that_cannot_be_compared(found):
    with pytest.raises(InputError, match="two bool masks of one shape"):
        overlap(found, EMPTY)


def test_mask_metrics_by_hand():
    overlaps = [Overlap(1, 2), Overlap(90, 100), Overlap(0, 8), Overlap(0, 0)]  # IoU 0.5, 0.9, 0 and 1
    metrics = mask_metrics(overlaps)
    assert metrics == {
        "giou": pytest.approx((0.5 + 0.9 + 0 + 1) / 4),
        "ciou": pytest.approx(91 / 110),
        "precision_at_50": 0.5,  # exactly 0.5 is not above it
    }
    assert mask_metrics([Overlap(0, 0)]) == {"giou": 1.0, "ciou": 1.0, "precision_at_50": 1.0}


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


def test_an_absent_object_is_refused_by_an_empty_mask_or_a_low_score():
    overlaps = [Overlap(0, 0), Overlap(0, 9), Overlap(0, 9), Overlap(5, 10), Overlap(9, 10)]
    figures = judge_predictions(overlaps, [False] * 3 + [True] * 2, [0.9, 0.3, 0.5, 0.6, 0.7], score_threshold=0.5)
    assert figures == {
        "giou": pytest.approx(0.7),
        "ciou": pytest.approx(14 / 20),
        "precision_at_50": 0.5,
        "no_target_accuracy": pytest.approx(2 / 3),
        "score_rank_correlation": pytest.approx(1.0),
    }
    assert set(judge_predictions(overlaps[3:4], [True], [0.6], 0.5)) == {"giou", "ciou", "precision_at_50"}
    assert judge_predictions(overlaps[:1], [False], [0.6], 0.5) == {"no_target_accuracy": 1.0}
