"""The two fusions: what heat means, and where it comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lens_adapter.config import LensConfig
from lens_adapter.errors import LensError
from lens_adapter.head.fusion import last_token
from lens_adapter.head.lite import EncoderLayer, LiteFusion, fourier_features
from lens_adapter.head.mirror import MirrorFusion
from lens_adapter.head.raster import rasterize
from lens_adapter.signals import LensSignals
from tests.tiny.largest import Largest

HIDDEN, HEADS = 32, 4  # of the signals in conftest.py


class GivenRows(nn.Module):
    """Mirrored layers whose attention rows are given."""

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, signals, queries):
        self.queries = queries
        return self.rows, signals.hidden + 1


@pytest.fixture
def lite() -> LiteFusion:
    torch.manual_seed(0)
    config = LensConfig(
        fusion="lite",
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_hidden_layers=4,
        attention_layers=[1, 2],
        fusion_layers=1,
        fusion_width=32,
    )
    return LiteFusion(config).eval()


def test_the_query_is_the_last_attended_token():
    hidden = torch.zeros(3, 5, 2)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert last_token(LensSignals(hidden=hidden, attention_mask=mask)).tolist() == [4, 2, 4]
    assert last_token(LensSignals(hidden=hidden)).tolist() == [4, 4, 4]


def test_mirror_heat_is_the_head_mean_row_over_its_peak(make_layout):
    rows = torch.zeros(1, 2, 1, 6)
    rows[0, 0, 0] = torch.tensor([0.5, 0.1, 0.2, 0.0, 0.1, 0.1])
    rows[0, 1, 0] = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.0, 0.4])
    layers = GivenRows(rows)
    hidden = torch.arange(12.0).view(1, 6, 2)
    fused = MirrorFusion(layers, 2)(LensSignals(hidden=hidden), rasterize([make_layout(2, 2, start=1)]))
    # Image tokens 1..4: head means 0.1, 0.2, 0.1, 0.05; the peak outside the image (0.3 at token 0) does not count.
    torch.testing.assert_close(fused.heat, torch.tensor([[0.5, 1.0, 0.5, 0.25]]))
    torch.testing.assert_close(fused.features, hidden[:, 1:5] + 1)
    torch.testing.assert_close(fused.text, hidden[:, 5] + 1)
    assert layers.queries.tolist() == [[5]]


def test_mirror_peak_is_detached(make_layout):
    rows = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]).view(1, 1, 1, 5)
    layers = GivenRows(rows)
    fusion = MirrorFusion(layers, 2)
    heat = fusion(LensSignals(hidden=torch.zeros(1, 5, 2)), rasterize([make_layout(2, 2, start=1)])).heat
    torch.testing.assert_close(heat, torch.tensor([[0.5, 1.0, 0.5, 0.25]]))
    heat[0, 0].backward()
    # Shares r / 0.9, times 0.9 / 0.4: of the first, 1 / 0.4 to itself and minus 0.2 / (0.9 * 0.4) to everybody.
    toward_all = -0.2 / (0.9 * 0.4)
    expected = torch.tensor([0.0, 2.5 + toward_all, toward_all, toward_all, toward_all])
    torch.testing.assert_close(layers.rows.grad[0, 0, 0], expected)


def test_attending_to_the_image_less_does_not_change_the_mirror_heat(make_layout):
    rows = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]).view(1, 1, 1, 5)
    layers = GivenRows(rows)
    fusion = MirrorFusion(layers, 2)
    heat = fusion(LensSignals(hidden=torch.zeros(1, 5, 2)), rasterize([make_layout(2, 2, start=1)])).heat
    heat[0, 3].backward()
    image = layers.rows.grad[0, 0, 0, 1:]
    assert image.abs().max() > 1 and abs(float(image @ rows[0, 0, 0, 1:])) < 1e-6  # no gain along the row itself


def test_mirror_heat_of_an_unattended_image_is_zero(make_layout):
    rows = torch.tensor([1.0, 0, 0, 0, 0]).view(1, 1, 1, 5)
    layers = GivenRows(rows)
    fusion = MirrorFusion(layers, 2)
    heat = fusion(LensSignals(hidden=torch.zeros(1, 5, 2)), rasterize([make_layout(2, 2, start=1)])).heat
    heat.sum().backward()
    assert heat.eq(0).all() and layers.rows.grad.isfinite().all()


def test_lite_heat_is_a_probability_not_divided_by_its_peak(lite, make_signals, make_layout):
    fused = lite(make_signals([12]), rasterize([make_layout(2, 4)]))
    assert fused.heat.shape == (1, 8) and fused.features.shape == (1, 8, 32) and fused.text.shape == (1, 32)
    assert fused.heat.min() > 0 and fused.heat.max() < 1
    with torch.no_grad():
        lite.bias.fill_(-20.0)
    assert lite(make_signals([12]), rasterize([make_layout(2, 4)])).heat.max() < 1e-4  # nothing here


def test_lite_reads_hidden_states_places_and_attention(lite, make_signals, make_layout):
    signals, layout = make_signals([12]), make_layout(2, 4)
    heat = lite(signals, rasterize([layout])).heat
    moved = replace(layout, boxes=layout.boxes.flip(0))
    attention = {1: signals.attention[1], 2: signals.attention[2].flip(-1)}
    for other in (
        lite(replace(signals, hidden=signals.hidden.flip(-1)), rasterize([layout])),
        lite(signals, rasterize([moved])),
        lite(replace(signals, attention=attention), rasterize([layout])),
    ):
        assert (other.heat - heat).abs().max() > 1e-4


def test_uniform_attention_is_zero_to_lite(lite, make_signals, make_layout):
    signals, raster = make_signals([12, 10]), rasterize([make_layout(2, 4), make_layout(2, 4, start=3)])
    mask = signals.attention_mask[:, None, None].float()
    uniform = (mask / mask.sum(-1, keepdim=True)).expand(-1, HEADS, -1, -1)
    channels = lite._attention_channels(
        replace(signals, attention={1: uniform, 2: uniform}), raster, last_token(signals)
    )
    assert channels.shape == (2, 8, 2 * HEADS)
    torch.testing.assert_close(channels, torch.zeros_like(channels), atol=0.011, rtol=0)


def test_lite_finds_its_row_among_all_captured_ones(lite, make_signals, make_layout):
    signals, raster = make_signals([12]), rasterize([make_layout(2, 4)])
    every = {
        layer: torch.rand(1, HEADS, 12, 12).index_copy(2, torch.tensor([11]), row)
        for layer, row in signals.attention.items()
    }
    captured = replace(signals, attention=every, queries=torch.arange(12)[None])
    assert torch.equal(lite(captured, raster).heat, lite(signals, raster).heat)


def test_lite_says_which_attention_it_lacks(lite, make_signals, make_layout):
    raster = rasterize([make_layout(2, 4)])
    with pytest.raises(LensError, match=r"lack \[2\]"):
        lite(make_signals([12], layers=(1,)), raster)
    with pytest.raises(LensError, match="last attended"):
        lite(replace(make_signals([12]), queries=torch.tensor([[3]])), raster)
    with pytest.raises(LensError, match="last attended"):
        lite(replace(make_signals([12]), queries=None), raster)


def test_lite_without_attention_layers(make_signals, make_layout):
    config = LensConfig(
        fusion="lite",
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_hidden_layers=4,
        attention_layers=[],
        fusion_layers=1,
        fusion_width=32,
    )
    fused = LiteFusion(config)(make_signals([12], layers=()), rasterize([make_layout(2, 4)]))
    assert fused.heat.isfinite().all()


@pytest.mark.parametrize("name", ["lite", "mirror"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_signals_meet_a_float32_head(name, dtype, lite, mirror, make_signals, make_layout):
    fusion = lite if name == "lite" else MirrorFusion(mirror, HIDDEN)
    signals, raster = make_signals([12]), rasterize([make_layout(2, 4)])
    full, half = fusion(signals, raster), fusion(make_signals([12], dtype=dtype), raster)
    assert half.heat.dtype == half.features.dtype == half.text.dtype == torch.float32
    rounded = fusion(replace(signals, hidden=signals.hidden.to(dtype).float()), raster)
    assert torch.equal(half.heat, rounded.heat)
    torch.testing.assert_close(half.heat, full.heat, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["lite", "mirror"])
def test_a_row_does_not_depend_on_its_batch(name, lite, mirror, make_signals, make_layout):
    fusion = lite if name == "lite" else MirrorFusion(mirror, HIDDEN)
    layouts = [make_layout(2, 4, start=4), make_layout(3, 3, start=1)]
    signals = make_signals([10, 13])  # the first is padded by 3 tokens
    together = fusion(signals, rasterize(layouts))
    for row, (length, layout) in enumerate(zip([10, 13], layouts, strict=True)):
        cut, count = 13 - length, len(layout.positions)
        alone = LensSignals(
            hidden=signals.hidden[row : row + 1, cut:],
            attention={layer: rows[row : row + 1, ..., cut:] for layer, rows in signals.attention.items()},
            layer_kwargs={"attention_mask": signals.layer_kwargs["attention_mask"][row : row + 1, :, cut:, cut:]},
            queries=torch.tensor([[length - 1]]),
        )
        fused = fusion(alone, rasterize([replace(layout, positions=layout.positions - cut)]))
        torch.testing.assert_close(together.heat[row, :count], fused.heat[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.features[row, :count], fused.features[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.text[row], fused.text[0], atol=1e-5, rtol=0)
        assert together.heat[row, count:].eq(0).all()


@pytest.mark.parametrize("learning", [False, True])
def test_the_layer_of_lite_is_torchs_own(learning):
    layer = EncoderLayer(64).train(learning)
    theirs = nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", batch_first=True, norm_first=True).train(learning)
    theirs.load_state_dict(layer.state_dict())
    x, seen = torch.randn(2, 7, 64), torch.arange(7) >= torch.tensor([[3], [0]])
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(layer(x, seen)[seen], theirs(x, src_key_padding_mask=~seen)[seen])
        torch.testing.assert_close(layer(x, None), theirs(x))


def test_the_layer_of_lite_never_holds_all_pairs_of_tokens():
    layer, length = EncoderLayer(32).eval(), 1000
    with torch.no_grad(), Largest() as largest:
        layer(torch.randn(1, length, 32), torch.ones(1, length, dtype=torch.bool))
    assert largest.numel == 4 * 32 * length  # what the feed-forward is wide


def test_fourier_features_tell_boxes_apart():
    features = fourier_features(torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]]))
    assert features.shape == (3, 64)
    assert torch.cdist(features, features)[~torch.eye(3, dtype=torch.bool)].min() > 1
    # The first octave of the x centre (0.25): sin and cos of a quarter of pi.
    torch.testing.assert_close(features[0, [0, 32]], torch.tensor([0.5, 0.5]).sqrt())
