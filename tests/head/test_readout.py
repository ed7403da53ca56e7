"""The readout's cells, and what it makes of signals."""

from __future__ import annotations

import pytest
import torch

from lens_adapter.config import LensConfig
from lens_adapter.errors import LensError
from lens_adapter.head.raster import rasterize
from lens_adapter.head.readout import (
    ATTENTION_FLOOR,
    NEIGHBOR_SCALE,
    Readout,
    cells_of,
    head_facts,
    inside_grid,
    log_attention,
    set_readout,
)
from lens_adapter.signals import LensSignals, Reading

HEADS = [[1, 0], [1, 3], [2, 1]]


@pytest.fixture
def readout() -> Readout:
    config = LensConfig(
        fusion="readout",
        num_hidden_layers=4,
        num_attention_heads=4,
        readout={"heads": HEADS},
        attention_layers=[1, 2],
        num_keypoints=4,
    )
    made, draw = Readout(config), torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(buffer.shape, generator=draw) for name, buffer in made.named_buffers()}
    set_readout(made, {**tensors, "deviation": torch.ones(3), "calibration": torch.tensor([1.0, -1.0])})
    return made.eval()


def test_a_cell_and_its_neighbors():
    values = torch.arange(12.0).view(1, 1, 3, 4)
    cells = cells_of(values, torch.tensor([[3, 4]]))[0, 0]  # (5, 3, 4)
    own, above, left, right, below = cells[:, 1, 1].tolist()
    assert own == 5
    assert [above, left, right, below] == pytest.approx([NEIGHBOR_SCALE * value for value in (1, 4, 6, 9)])
    assert cells[1, 0, 2] == pytest.approx(NEIGHBOR_SCALE * 2)  # at the border, itself


def test_a_small_grid_beside_a_large_one_ends_at_its_own_border():
    values = torch.arange(24.0).view(2, 1, 3, 4)
    together = cells_of(values, torch.tensor([[2, 3], [3, 4]]))
    alone = cells_of(values[:1, :, :2, :3], torch.tensor([[2, 3]]))
    assert torch.equal(together[:1, :, :, :2, :3], alone)


def test_attention_in_proportion_to_even_attention(make_layout):
    raster = rasterize([make_layout(2, 2, start=1)])
    rows = torch.tensor([0.2, 0.4, 0.2, 0.1, 0.1]).view(1, 1, 5)
    logs = log_attention(rows, torch.tensor([5]), raster)[0, 0]
    expected = torch.log(torch.tensor([[2.0, 1.0], [0.5, 0.5]]) + ATTENTION_FLOOR)
    torch.testing.assert_close(logs, expected)


def test_facts_of_a_head_are_those_of_its_own_grid(make_layout):
    raster = rasterize([make_layout(2, 2), make_layout(3, 4)])
    logs = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    facts = head_facts(logs, inside_grid(raster))
    torch.testing.assert_close(facts.std[0], logs[0, :, :2, :2].flatten(1).std(1))
    torch.testing.assert_close(facts.peak[1], logs[1].flatten(1).amax(1))


def test_a_row_does_not_depend_on_its_batch(readout, make_layout, make_signals):
    lengths, layouts = [12, 9], [make_layout(2, 4, start=3), make_layout(2, 2, start=5)]
    signals = make_signals(lengths)
    out = readout(Reading(signals, layouts, [(20, 40), (30, 30)]))
    assert out.point_vectors is None and out.text_vector is None and out.presence.shape == (2,)
    assert out.heatmap.min() >= 0 and out.heatmap.max() <= 1 and out.heatmap[1, :, 2:].eq(0).all()
    for row, length in enumerate(lengths):
        cut = max(lengths) - length
        alone = LensSignals(
            hidden=signals.hidden[row : row + 1, cut:],
            attention={layer: rows[row : row + 1, ..., cut:] for layer, rows in signals.attention.items()},
            attention_mask=signals.attention_mask[row : row + 1, cut:],
            queries=torch.tensor([[length - 1]]),
        )
        layout = make_layout(2, 4, start=3 - cut) if row == 0 else make_layout(2, 2, start=5 - cut)
        one = readout(Reading(alone, [layout], [(20, 40)]))
        h, w = one.size[0].tolist()
        torch.testing.assert_close(out.heatmap[row, :h, :w], one.heatmap[0])
        torch.testing.assert_close(out.presence[row], one.presence[0])
        assert torch.equal(out.shown[row], one.shown[0])


def test_one_click_unless_a_prompt_names_several(readout, make_layout, make_signals):
    reading = Reading(make_signals([40]), [make_layout(6, 6, start=2)], [(60, 60)])
    readout.several_weight.zero_()[-1] = -1
    assert int(readout(reading).shown.sum()) == 1
    readout.several_weight[-1] = 1
    several = readout(reading)
    assert int(several.shown.sum()) > 1 and torch.equal(several.shown, several.keypoints.valid)


def test_what_is_missing_is_said(readout, make_layout, make_signals):
    with pytest.raises(LensError, match=r"lack \[2\]"):
        readout(Reading(make_signals([12], layers=(1,)), [make_layout(2, 4)], [(20, 40)]))
    empty = Readout(LensConfig(fusion="readout", num_hidden_layers=4, num_attention_heads=4))
    with pytest.raises(LensError, match="not fitted yet"):
        empty(Reading(make_signals([12]), [make_layout(2, 4)], [(20, 40)]))
