"""Non-maximum suppression and sub-pixel peaks, against cases worked by hand."""

from __future__ import annotations

import pytest
import torch

from lens_adapter.head.keypoints import find_keypoints


def find(heat: torch.Tensor, size=None, count=4, radius=1.5, threshold=0.4):
    heat = heat if heat.dim() == 3 else heat[None]
    size = torch.tensor([list(heat.shape[1:])] * len(heat)) if size is None else torch.tensor(size)
    return find_keypoints(heat, size, count=count, radius=radius, threshold=threshold)


def spikes(height: int, width: int, *peaks: tuple[int, int, float]) -> torch.Tensor:
    heat = torch.zeros(height, width)
    for row, column, value in peaks:
        heat[row, column] = value
    return heat


def centers(height: int, width: int, *cells: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([[(column + 0.5) / width, (row + 0.5) / height] for row, column in cells])


def test_an_empty_map_has_no_keypoint():
    found = find(torch.zeros(5, 6))
    assert not found.valid.any()
    assert found.scores.eq(0).all() and found.points.eq(0.5).all()


def test_one_spike_is_one_keypoint_and_the_rest_is_filler():
    found = find(spikes(5, 8, (1, 6, 0.7)))
    assert found.valid.tolist() == [[True, False, False, False]]
    torch.testing.assert_close(found.points[0, :1], centers(5, 8, (1, 6)))
    torch.testing.assert_close(found.scores[0], torch.tensor([0.7, 0, 0, 0]))
    assert found.points[0, 1:].eq(0.5).all()


def test_keypoints_come_hottest_first():
    found = find(spikes(9, 9, (1, 1, 0.6), (1, 7, 1.0), (7, 4, 0.8)))
    assert found.valid.tolist() == [[True, True, True, False]]
    torch.testing.assert_close(found.points[0, :3], centers(9, 9, (1, 7), (7, 4), (1, 1)))


def test_equal_peaks_come_in_row_major_order():
    found = find(spikes(7, 7, (5, 1, 0.9), (1, 5, 0.9)))
    torch.testing.assert_close(found.points[0, :2], centers(7, 7, (1, 5), (5, 1)))
    assert found.valid.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("radius", "both"), [(2.9, True), (3.0, False), (0.0, True)])
def test_a_peak_at_the_radius_is_suppressed(radius, both):
    found = find(spikes(3, 9, (1, 2, 1.0), (1, 5, 0.9)), count=2, radius=radius)
    assert found.valid.tolist() == [[True, both]]


def test_suppression_is_a_disc():
    # 2 down and 2 right is 2.83 away: outside a disc of 2.5, inside a square of it.
    found = find(spikes(7, 7, (2, 2, 1.0), (4, 4, 0.9), (2, 4, 0.8)), count=3, radius=2.5)
    torch.testing.assert_close(found.points[0, :2], centers(7, 7, (2, 2), (4, 4)))
    assert found.valid.tolist() == [[True, True, False]]


def test_the_threshold_is_a_fraction_of_the_peak_and_strict():
    found = find(spikes(3, 9, (1, 0, 0.5), (1, 4, 0.26), (1, 8, 0.25)), threshold=0.5)
    assert found.valid.tolist() == [[True, True, False, False]]


def test_more_keypoints_asked_than_cells():
    found = find(torch.ones(2, 2), count=7, radius=0.0)
    assert found.valid.tolist() == [[True] * 4 + [False] * 3]
    torch.testing.assert_close(found.points[0, :4], centers(2, 2, (0, 0), (0, 1), (1, 0), (1, 1)))
    assert found.scores[0, 4:].eq(0).all()


@pytest.mark.parametrize("offset", [(0.3, -0.2), (-0.45, 0.1), (0.0, 0.0)])
def test_the_maximum_of_a_quadratic_is_found_exactly(offset):
    # A tilted paraboloid around (3 + dy, 4 + dx): central differences are exact on it.
    y0, x0 = 3 + offset[0], 4 + offset[1]
    row, column = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    y, x = row - y0, column - x0
    heat = 1 - 0.02 * y**2 - 0.01 * x**2 - 0.01 * x * y
    found = find(heat, count=1)
    torch.testing.assert_close(found.points[0], torch.tensor([[(x0 + 0.5) / 9, (y0 + 0.5) / 7]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scores[0, 0], heat[3, 4])


def test_the_offset_is_at_most_one_cell():
    row = torch.arange(5.0)[:, None]
    heat = torch.tensor([0.0, 0.05, 0.255, 0.45, 0.0]) + 0.3 - 0.075 * (row - 2) ** 2
    found = find(heat, count=2, radius=1.0)
    # The peak (2, 3): along x its gradient is -0.1275 and its curvature -0.645.
    torch.testing.assert_close(found.points[0, 0], torch.tensor([(3 - 0.1275 / 0.645 + 0.5) / 5, 0.5]))
    # Its disc leaves (1, 2), a slope: gradient 0.2 and curvature -0.01 along x would move it by 20 cells.
    torch.testing.assert_close(found.scores[0, 1], heat[1, 2])
    torch.testing.assert_close(found.points[0, 1], torch.tensor([(2 + 1 + 0.5) / 5, (1 + 1 + 0.5) / 5]))


def test_a_peak_whose_quadratic_has_no_maximum_does_not_move():
    # A diagonal ridge: curvatures -0.2 and -0.3, mixed 0.495, so the Hessian is a saddle's; gradients are not zero.
    heat = torch.zeros(5, 5)
    heat[1:4, 1:4] = torch.tensor([[0.99, 0.9, 0.0], [0.8, 1.0, 0.9], [0.0, 0.9, 0.99]])
    torch.testing.assert_close(find(heat, count=1).points[0], centers(5, 5, (2, 2)))


@pytest.mark.parametrize("cell", [(0, 0), (0, 6), (4, 0), (4, 6), (0, 3), (2, 0), (4, 3), (2, 6)])
def test_a_peak_on_the_border_stays_there(cell):
    row, column = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    heat = torch.exp(-((row - cell[0]) ** 2 + (column - cell[1]) ** 2) / 4)
    torch.testing.assert_close(find(heat, count=1).points[0], centers(5, 7, cell))


def test_a_peak_on_the_border_still_moves_along_it():
    x0 = 3.25
    row, column = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    found = find(1 - 0.01 * row**2 - 0.01 * (column - x0) ** 2, count=1)
    torch.testing.assert_close(found.points[0], torch.tensor([[(x0 + 0.5) / 7, 0.5 / 5]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_thin_maps(shape):
    found = find(torch.ones(*shape), count=1)
    assert found.valid.all()
    torch.testing.assert_close(found.points[0], centers(*shape, (0, 0)))


def test_padding_never_wins():
    heat = torch.full((1, 6, 6), 9.0)
    heat[0, :3, :4] = spikes(3, 4, (2, 3, 0.5))
    found = find(heat, size=[[3, 4]])
    assert found.valid.tolist() == [[True, False, False, False]]
    torch.testing.assert_close(found.points[0, :1], centers(3, 4, (2, 3)))
    torch.testing.assert_close(found.scores[0, 0], torch.tensor(0.5))


def test_a_map_does_not_depend_on_its_batch():
    sizes = [[4, 9], [8, 3], [5, 5]]
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(3, 8, 9, generator=generator)
    together = find(heat, size=sizes, count=6)
    for row, (h, w) in enumerate(sizes):
        alone = find(heat[row, :h, :w], count=6)
        assert torch.equal(together.points[row], alone.points[0])
        assert torch.equal(together.scores[row], alone.scores[0])
        assert torch.equal(together.valid[row], alone.valid[0])


def test_no_gradient():
    found = find(torch.rand(5, 5, requires_grad=True))
    assert not found.points.requires_grad and not found.scores.requires_grad


@pytest.mark.parametrize("radius", [0, 1, 2.3, 4, 40])
def test_every_keypoint_is_the_hottest_cell_beyond_those_before_it(radius):
    heat = torch.rand(9, 13, generator=torch.Generator().manual_seed(0)) ** 3
    left, expected = {(y, x): heat[y, x].item() for y in range(9) for x in range(13)}, []
    while left and len(expected) < 6:
        y, x = max(left, key=left.__getitem__)
        expected.append(left[y, x])
        left = {cell: left[cell] for cell in left if (cell[0] - y) ** 2 + (cell[1] - x) ** 2 > radius**2}
    found = find(heat, count=6, radius=radius, threshold=0.0)
    assert found.scores[0][found.valid[0]].tolist() == expected
