from __future__ import annotations

import numpy as np
import pytest

from lens_adapter.pictures.outlines import bounding_box, exact_outlines, outlines


def test_outlines_follow_the_edge_of_a_mask():
    mask = np.zeros((60, 80), bool)
    mask[20:40, 10:70] = True
    (line,) = outlines(mask)
    assert (line[0] == line[-1]).all()
    assert np.abs(line.min(0) - (10, 20)).max() < 0.1 and np.abs(line.max(0) - (70, 40)).max() < 0.1
    mask[25:35, 30:40] = False  # a hole has an outline of its own
    assert len(outlines(mask)) == 2
    assert outlines(np.zeros((5, 5), bool)) == []
    single = np.zeros((5, 5), bool)
    single[2, 3] = True
    assert outlines(single)[0].mean(0) == pytest.approx([3.5, 2.5], abs=0.2)


def test_a_box_runs_along_the_edges_of_pixels():
    mask = np.zeros((5, 7), bool)
    assert bounding_box(mask) == (0, 0, 0, 0)
    mask[2, 3] = True
    assert bounding_box(mask) == (3, 2, 4, 3)
    assert bounding_box(~mask) == (0, 0, 7, 5)


@pytest.mark.parametrize("at_once", [1, 7, 40, 200])
def test_outlines_are_the_same_however_many_pixels_are_looked_at_together(at_once, monkeypatch):
    chance = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.9):
        mask = np.kron(chance.random((9, 7)) < share, np.ones((2, 3), bool))
        whole = [_from_the_first(line) for line in exact_outlines(mask)]
        monkeypatch.setattr("lens_adapter.pictures.outlines._AT_ONCE", at_once)
        assert sorted(map(_from_the_first, exact_outlines(mask))) == sorted(whole)
        monkeypatch.undo()


def _from_the_first(line: np.ndarray) -> list[list[float]]:
    """A closed line, begun at its smallest point."""
    assert (line[0] == line[-1]).all()
    points = line[:-1].tolist()
    start = points.index(min(points))
    return points[start:] + points[:start]
