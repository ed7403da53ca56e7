"""Samples around keypoints and the vectors made of them."""

from __future__ import annotations

import pytest
import torch

from lens_adapter.head.descriptors import Descriptors, sample_neighborhoods
from lens_adapter.head.raster import rasterize

WIDTH, CHANNELS = 16, 8


def index_tokens(h: int, w: int) -> torch.Tensor:
    """(1, h * w, 2), features of a row-major grid of tokens: the row and the column of each."""
    row, column = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
    return torch.stack([row, column], dim=-1).reshape(1, -1, 2)


@pytest.fixture
def given(make_layout):
    return inputs(make_layout)


def inputs(make_layout, batch: int = 2, count: int = 3):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(batch, count, 2, generator=generator)
    return {
        "raster": rasterize([make_layout(4, 5) for _ in range(batch)]),
        "features": torch.randn(batch, 20, WIDTH, generator=generator),
        "points": points,
        "shown": torch.ones(batch, count, dtype=torch.bool),
        "text": torch.randn(batch, WIDTH, generator=generator),
    }


@pytest.fixture
def descriptors() -> Descriptors:
    torch.manual_seed(0)
    return Descriptors(WIDTH, CHANNELS, 2).eval()


def test_samples_at_a_cell_are_its_neighbors(make_layout):
    points = torch.tensor([[[2.5 / 5, 1.5 / 4]]])  # the centre of row 1, column 2
    samples = sample_neighborhoods(rasterize([make_layout(4, 5)]), index_tokens(4, 5), points)
    expected = [[row, column] for row in (0, 1, 2) for column in (1, 2, 3)]
    torch.testing.assert_close(samples[0, 0], torch.tensor(expected).float())


def test_samples_between_cells_are_bilinear(make_layout):
    points = torch.tensor([[[(2 + 0.25 + 0.5) / 5, (1 + 0.6 + 0.5) / 4]]])
    samples = sample_neighborhoods(rasterize([make_layout(4, 5)]), index_tokens(4, 5), points)
    expected = [[row + 0.6, column + 0.25] for row in (0, 1, 2) for column in (1, 2, 3)]
    torch.testing.assert_close(samples[0, 0], torch.tensor(expected))


def test_samples_are_clamped_to_the_sample_not_to_the_padding(make_layout):
    raster = rasterize([make_layout(2, 3), make_layout(6, 7)])
    features = torch.full((2, 42, 2), 99.0)
    features[0, :6] = index_tokens(2, 3)
    points = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).expand(2, -1, -1)
    samples = sample_neighborhoods(raster, features, points)[:1]
    assert samples.max() <= 2
    torch.testing.assert_close(samples[0, 0, -1], torch.tensor([1.0, 2.0]))  # lower right corner of its own grid
    torch.testing.assert_close(samples[0, 1, 0], torch.tensor([0.0, 0.0]))


def test_one_cell_is_all_its_neighbors(make_layout):
    samples = sample_neighborhoods(rasterize([make_layout(1, 1)]), torch.ones(1, 1, 3), torch.full((1, 1, 2), 0.5))
    torch.testing.assert_close(samples, torch.ones(1, 1, 9, 3))


def test_one_vector_per_keypoint_and_one_for_the_text(descriptors, given):
    points, text = descriptors(**given)
    assert points.shape == (2, 3, CHANNELS) and text.shape == (2, CHANNELS)
    with torch.no_grad():
        descriptors.text_vector += 1
    points_again, text_again = descriptors(**given)
    torch.testing.assert_close(text_again, text + 1)
    torch.testing.assert_close(points_again, points)


def test_keypoints_that_are_not_shown_are_unseen_by_the_others(descriptors, given):
    shown = torch.tensor([[True, False, True], [False, False, False]])
    other = given["points"].clone()
    other[~shown] = 0.123
    points, text = descriptors(**{**given, "shown": shown})
    assert points.isfinite().all() and text.isfinite().all()
    points_again, text_again = descriptors(**{**given, "shown": shown, "points": other})
    torch.testing.assert_close(points_again[shown], points[shown])
    torch.testing.assert_close(text_again, text)
    all_points, all_text = descriptors(**given)
    assert not torch.allclose(points[0, 0], all_points[0, 0])  # the second keypoint was seen before
    assert not torch.allclose(text, all_text)


def test_the_expression_reaches_every_keypoint(descriptors, given):
    points, text = descriptors(**given)
    other_points, other_text = descriptors(**{**given, "text": given["text"].flip(0)})
    assert ((other_points - points).abs().amax(dim=-1) > 1e-3).all()
    assert ((other_text - text).abs().amax(dim=-1) > 1e-3).all()


def test_gradient_with_no_valid_keypoint_is_finite(descriptors, given):
    given["features"].requires_grad_()
    given |= {"points": torch.full((2, 3, 2), 0.5), "shown": torch.zeros(2, 3, dtype=torch.bool)}
    points, text = descriptors.train()(**given)
    (text.sum() + torch.where(given["shown"][..., None], points, 0.0).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in descriptors.parameters())
    assert given["features"].grad.eq(0).all()


def test_train_and_eval_agree(descriptors, given):
    with torch.no_grad():  # where torch may take its fused path
        evaluated = descriptors(**given)
    torch.testing.assert_close(descriptors.train()(**given), evaluated, atol=1e-5, rtol=1e-5)
