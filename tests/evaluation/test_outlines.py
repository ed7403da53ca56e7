"""The boundary F-measure, by hand."""

import numpy as np
import pytest

from lens_adapter.evaluation.outlines import boundary_f


def square(left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[10 : 10 + side, left : left + side] = True
    return mask


def test_the_same_outline_and_one_next_to_it():
    assert boundary_f(square(10), square(10)) == 1.0
    assert boundary_f(square(10), square(12)) == 1.0
    assert boundary_f(square(10), square(14)) < 1.0


def test_far_away_and_nothing():
    empty = np.zeros((40, 40), bool)
    assert boundary_f(square(0), square(25)) == 0.0
    assert boundary_f(empty, square(10)) == boundary_f(square(10), empty) == 0.0
    assert boundary_f(empty, empty) == 1.0


def test_half_of_an_outline():
    """A line of 10 pixels against one of 20 that begins with it: all of the first is near, 12 of the second are."""
    short, long = np.zeros((9, 40), bool), np.zeros((9, 40), bool)
    short[4, :10] = long[4, :20] = True
    assert boundary_f(short, long) == pytest.approx(2 * 1.0 * 0.6 / 1.6)


def test_a_hole_is_an_outline_too():
    whole, ring = square(10, 20), square(10, 20)
    ring[17:23, 17:23] = False
    assert boundary_f(whole, whole) == 1.0
    assert 0.7 < boundary_f(whole, ring) < 0.95


def test_at_the_border_of_the_picture():
    everything = np.ones((20, 30), bool)
    assert boundary_f(everything, everything) == 1.0
