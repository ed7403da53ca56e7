"""Grids over the original image, against cases worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lens_adapter.errors import InputError
from lens_adapter.head.raster import Raster, rasterize
from lens_adapter.signals import TokenLayout


def join(*layouts: TokenLayout) -> TokenLayout:
    return TokenLayout(torch.cat([each.positions for each in layouts]), torch.cat([each.boxes for each in layouts]))


def every_cell(raster: Raster, features: Tensor) -> Tensor:
    """Token features (B, n, D) -> weighted mean per cell (B, H, W, D)."""
    cells = torch.cartesian_prod(*map(torch.arange, raster.total.shape[1:])).T  # (2, H * W)
    weights = raster.weights(*cells[:, None].expand(-1, len(features), -1))
    return (weights @ features).unflatten(1, raster.total.shape[1:])


@pytest.mark.parametrize("grid", [(3, 5), (24, 24), (1, 7), (1, 1), (37, 29)])
def test_an_aligned_grid_is_copied_exactly(grid, make_layout):
    raster = rasterize([make_layout(*grid)])
    values, features = torch.rand(1, grid[0] * grid[1]), torch.randn(1, grid[0] * grid[1], 6)
    assert raster.size.tolist() == [list(grid)]
    assert torch.equal(raster.spread(values), values.view(1, *grid))
    assert torch.equal(every_cell(raster, features), features.view(1, *grid, 6))


def test_positions_of_any_order_land_where_their_boxes_are(make_layout):
    layout = make_layout(3, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = TokenLayout(layout.positions[order], layout.boxes[order])
    values = torch.rand(1, 12)
    assert torch.equal(rasterize([shuffled]).spread(values[:, order]), values.view(1, 3, 4))


def test_a_centre_crop_keeps_its_place_and_the_rest_is_zero(make_layout):
    # The middle half of a 2:1 image in 4x4 tokens: the whole image is 4x8 cells.
    raster = rasterize([make_layout(4, 4, region=(0.25, 0.0, 0.75, 1.0))])
    values = 0.5 + torch.rand(1, 16)
    heat = raster.spread(values)
    assert raster.size.tolist() == [[4, 8]]
    assert torch.equal(heat[:, :, 2:6], values.view(1, 4, 4))
    assert heat[:, :, :2].eq(0).all() and heat[:, :, 6:].eq(0).all()


def test_tokens_that_reach_into_padding_cover_the_image_only(make_layout):
    # A 2:1 image padded to a square, 4x4 tokens, the outer rows of boxes half in the padding.
    layout = make_layout(3, 4, region=(0.0, -0.25, 1.0, 1.25))  # rows of 0.5: -0.25..0.25, 0.25..0.75, 0.75..1.25
    raster = rasterize([layout])
    assert raster.size.tolist() == [[2, 4]]
    values = torch.tensor([0.0, 1.0, 4.0]).repeat_interleave(4)[None]
    # Each grid row is half outer token, half middle token.
    torch.testing.assert_close(raster.spread(values), torch.tensor([0.5, 2.5]).view(1, 2, 1).expand(1, 2, 4))


def test_fine_tiles_outweigh_the_thumbnail(make_layout):
    # 2x2 tiles of 2x2 tokens and a 2x2 thumbnail: 4x4 cells, a thumbnail token is as large as four cells.
    tiles = [
        make_layout(2, 2, start=4 * i, region=(x, y, x + 0.5, y + 0.5))
        for i, (x, y) in enumerate([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
    ]
    raster = rasterize([join(*tiles, make_layout(2, 2, start=16))])
    assert raster.size.tolist() == [[4, 4]]
    only_tiles, only_thumbnail = torch.ones(1, 20), torch.zeros(1, 20)
    only_tiles[:, 16:], only_thumbnail[:, 17] = 0, 1  # the thumbnail's upper right token
    torch.testing.assert_close(raster.spread(only_tiles), torch.full((1, 4, 4), 0.8))  # 1 : 1/4
    expected = torch.zeros(1, 4, 4)
    expected[:, :2, 2:] = 0.2
    torch.testing.assert_close(raster.spread(only_thumbnail), expected)
    # Constant values and features stay constant.
    torch.testing.assert_close(raster.spread(torch.ones(1, 20)), torch.ones(1, 4, 4))
    torch.testing.assert_close(every_cell(raster, torch.ones(1, 20, 3)), torch.ones(1, 4, 4, 3))


def test_misaligned_tokens_share_a_cell_by_area():
    # Two thirds of the width in one token, one third in the other; the lower median makes three columns.
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 0.8, 1.0], [0.8, 0.0, 1.0, 1.0]])
    raster = rasterize([TokenLayout(torch.arange(3), boxes)])  # median width 0.3: 3 cells
    assert raster.size.tolist() == [[1, 3]]
    # Middle cell 1/3..2/3: (1/2 - 1/3) / 0.5 of the first, (2/3 - 1/2) / 0.3 of the second.
    first, second = (1 / 2 - 1 / 3) / 0.5, (2 / 3 - 1 / 2) / 0.3
    heat = raster.spread(torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(heat, torch.tensor([[[1.0, first / (first + second), 0.0]]]))


def test_a_sample_does_not_depend_on_its_batch(make_layout):
    layouts = [
        make_layout(2, 7, start=3),
        make_layout(4, 4, region=(0.25, 0.0, 0.75, 1.0)),
        join(make_layout(3, 3, start=5), make_layout(1, 1, start=30)),
    ]
    together = rasterize(layouts)
    n = together.positions.shape[1]
    values, features = torch.rand(3, n), torch.randn(3, n, 5)
    heat, grid = together.spread(values), every_cell(together, features)
    assert heat.shape == (3, 4, 8) and grid.shape == (3, 4, 8, 5)
    for row, layout in enumerate(layouts):
        alone, count = rasterize([layout]), len(layout.positions)
        (h, w) = alone.size[0].tolist()
        assert together.size[row].tolist() == [h, w]
        assert together.token_mask[row].tolist() == [i < count for i in range(n)]
        assert torch.equal(together.positions[row, :count], layout.positions)
        assert together.positions[row, count:].eq(layout.positions[0]).all()
        torch.testing.assert_close(heat[row, :h, :w], alone.spread(values[row : row + 1, :count])[0])
        torch.testing.assert_close(grid[row, :h, :w], every_cell(alone, features[row : row + 1, :count])[0])
        assert heat[row, h:].eq(0).all() and heat[row, :, w:].eq(0).all()


def test_spread_keeps_full_precision_under_autocast(make_layout):
    raster = rasterize([make_layout(4, 4)])
    values = 0.5 + torch.arange(16)[None] * 1e-5  # all equal in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(raster.spread(values), values.view(1, 4, 4))


def test_a_row_without_image_tokens_is_refused(make_layout):
    empty = TokenLayout(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    with pytest.raises(InputError, match="Row 1"):
        rasterize([make_layout(2, 2), empty])


def test_a_box_without_area_is_refused():
    with pytest.raises(InputError, match="without area"):
        rasterize([TokenLayout(torch.arange(1), torch.tensor([[0.5, 0.0, 0.5, 1.0]]))])


def test_rows_with_one_layout_are_as_if_each_had_its_own(make_layout):
    wide, square = make_layout(2, 7, start=3), make_layout(4, 4)
    for layouts in ([wide, wide, wide], [wide, square, wide]):
        shared = rasterize(layouts)
        apart = rasterize([replace(layout) for layout in layouts])
        for name, tensor in vars(apart).items():
            assert torch.equal(getattr(shared, name), tensor), name
