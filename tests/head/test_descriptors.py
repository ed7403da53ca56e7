"""Samples around keypoints and the sparse prompts made of them."""

from __future__ import annotations

import pytest
import torch

from lens_adapter.head.descriptors import Descriptors, sample_neighborhoods
from lens_adapter.head.raster import rasterize
from lens_adapter.signals import Keypoints

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
    keypoints = Keypoints(
        points=torch.rand(batch, count, 2, generator=generator),
        scores=torch.ones(batch, count),
        valid=torch.ones(batch, count, dtype=torch.bool),
    )
    return {
        "raster": rasterize([make_layout(4, 5) for _ in range(batch)]),
        "features": torch.randn(batch, 20, WIDTH, generator=generator),
        "keypoints": keypoints,
        "text": torch.randn(batch, WIDTH, generator=generator),
        "encoding": torch.randn(batch, count, CHANNELS, generator=generator),
        "filler": torch.randn(CHANNELS, generator=generator),
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


def test_one_vector_per_keypoint_then_the_text(descriptors, given):
    sparse = descriptors(**given)
    assert sparse.shape == (2, 4, CHANNELS)
    moved = descriptors(**{**given, "encoding": given["encoding"] + 1})
    torch.testing.assert_close(moved[:, :3], sparse[:, :3] + 1)  # the encoding is added to keypoints
    torch.testing.assert_close(moved[:, 3], sparse[:, 3])  # and not to the text
    with torch.no_grad():
        descriptors.text_vector += 1
    torch.testing.assert_close(descriptors(**given)[:, 3], sparse[:, 3] + 1)
    torch.testing.assert_close(descriptors(**given)[:, :3], sparse[:, :3])


def test_invalid_keypoints_are_filler_and_unseen_by_the_others(descriptors, given):
    valid = torch.tensor([[True, False, True], [False, False, False]])
    points = given["keypoints"].points
    other = points.clone()
    other[~valid] = 0.123

    def run(points: torch.Tensor) -> torch.Tensor:
        return descriptors(**{**given, "keypoints": Keypoints(points, torch.ones(2, 3), valid)})

    sparse = run(points)
    assert sparse.isfinite().all()
    assert torch.equal(sparse[:, :3][~valid], given["filler"].expand(4, -1))
    torch.testing.assert_close(run(other), sparse)
    assert not torch.allclose(sparse[0, 0], descriptors(**given)[0, 0])  # the second keypoint was seen before


def test_the_expression_reaches_every_keypoint(descriptors, given):
    other = descriptors(**{**given, "text": given["text"].flip(0)})
    assert ((other - descriptors(**given)).abs().amax(dim=-1) > 1e-3).all()


def test_gradient_with_no_valid_keypoint_is_finite(descriptors, given):
    given["features"].requires_grad_()
    given["keypoints"] = Keypoints(torch.full((2, 3, 2), 0.5), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    descriptors.train()(**given).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in descriptors.parameters())
    assert given["features"].grad.eq(0).all()


def test_train_and_eval_agree(descriptors, given):
    with torch.no_grad():  # where torch may take its fused path
        evaluated = descriptors(**given)
    torch.testing.assert_close(descriptors.train()(**given), evaluated, atol=1e-5, rtol=1e-5)
