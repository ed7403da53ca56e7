"""The composed head: heatmap, keypoints and vectors of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lens_adapter.config import LensConfig
from lens_adapter.errors import InputError, LensConfigError, LensError
from lens_adapter.head.head import LensHead
from lens_adapter.signals import LensSignals, Reading, SparsePrompts, TokenLayout

HIDDEN, HEADS = 32, 4  # of the signals in conftest.py
CHANNELS = 16


def read(signals: LensSignals, layouts: list[TokenLayout]) -> Reading:
    return Reading(signals, layouts, [(30, 40)] * len(layouts))


def vectors(out: SparsePrompts) -> Tensor:
    """(N, K + 1, C), the points, zeros where they are not shown, and the text."""
    points = torch.where(out.shown[..., None], out.point_vectors, 0.0)
    return torch.cat([points, out.text_vector[:, None]], dim=1)


def config(fusion: str, **overrides) -> LensConfig:
    facts = {
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": 4, "fusion_layers": 1,
        "fusion_width": 32, "attention_layers": [1, 2], "num_keypoints": 4, "suppression_radius": 1.0,
        "sam": {"out_channels": CHANNELS, "decoder_num_heads": 2},
    }  # fmt: skip
    return LensConfig(fusion=fusion, **{**facts, **overrides})


@pytest.fixture(params=["mirror", "lite"])
def head(request, mirror) -> LensHead:
    torch.manual_seed(1)
    return LensHead(config(request.param), mirror if request.param == "mirror" else None).eval()


@pytest.fixture
def layouts(make_layout) -> list[TokenLayout]:
    """A grid, a centre crop of a wide image, and tiles with a thumbnail, in sequences of 12, 11 and 14 tokens."""
    left, right = make_layout(2, 2, 1, (0.0, 0.0, 0.5, 1.0)), make_layout(2, 2, 5, (0.5, 0.0, 1.0, 1.0))
    thumbnail = make_layout(1, 1, 10)
    tiled = TokenLayout(
        torch.cat([left.positions, right.positions, thumbnail.positions]),
        torch.cat([left.boxes, right.boxes, thumbnail.boxes]),
    )
    return [make_layout(2, 4, start=3), make_layout(3, 2, start=4, region=(0.25, 0.0, 0.75, 1.0)), tiled]


LENGTHS = [12, 11, 14]


def test_shapes_frames_and_ranges(head, layouts, make_signals):
    out = head(read(make_signals(LENGTHS), layouts))
    assert out.size.tolist() == [[2, 4], [3, 4], [2, 4]]
    assert out.heatmap.shape == (3, 3, 4) and out.heatmap.dtype == torch.float32
    assert vectors(out).shape == (3, 5, CHANNELS)
    assert out.heatmap.min() >= 0 and out.heatmap.max() <= 1
    assert out.heatmap[[0, 2], 2].eq(0).all()  # beyond their own two rows
    assert out.heatmap[1, :, [0, 3]].eq(0).all()  # what the crop left out
    assert out.keypoints.valid[:, 0].all()
    assert out.keypoints.points.min() >= 0 and out.keypoints.points.max() <= 1
    assert torch.equal(out.shown, out.keypoints.valid)
    assert vectors(out).isfinite().all()


def test_the_first_keypoint_is_on_the_hottest_cell(head, layouts, make_signals):
    out = head(read(make_signals(LENGTHS), layouts))
    for row in range(3):
        h, w = out.size[row].tolist()
        cell = int(out.heatmap[row, :h, :w].argmax())
        x, y = out.keypoints.points[row, 0].tolist()
        assert abs(x * w - 0.5 - cell % w) <= 1 and abs(y * h - 0.5 - cell // w) <= 1
        assert out.keypoints.scores[row, 0] == out.heatmap[row].max()


def test_a_row_does_not_depend_on_its_batch(head, layouts, make_signals):
    signals = make_signals(LENGTHS)
    together = head(read(signals, layouts))
    for row, length in enumerate(LENGTHS):
        cut = max(LENGTHS) - length
        alone = LensSignals(
            hidden=signals.hidden[row : row + 1, cut:],
            attention={layer: rows[row : row + 1, ..., cut:] for layer, rows in signals.attention.items()},
            layer_kwargs={"attention_mask": signals.layer_kwargs["attention_mask"][row : row + 1, :, cut:, cut:]},
            attention_mask=signals.attention_mask[row : row + 1, cut:],
            queries=torch.tensor([[length - 1]]),
        )
        layout = replace(layouts[row], positions=layouts[row].positions - cut)
        out = head(read(alone, [layout]))
        h, w = out.size[0].tolist()
        torch.testing.assert_close(together.heatmap[row, :h, :w], out.heatmap[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.keypoints.points[row], out.keypoints.points[0], atol=1e-5, rtol=0)
        assert torch.equal(together.keypoints.valid[row], out.keypoints.valid[0])
        torch.testing.assert_close(vectors(together)[row], vectors(out)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", [lambda out: out.heatmap, vectors], ids=["heatmap", "vectors"])
def test_gradient_reaches_the_fusion(head, layouts, make_signals, source):
    out = head.train()(read(make_signals(LENGTHS), layouts))
    source(out).square().sum().backward()
    gradients = [p.grad for p in head.fusion.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    first = head.fusion.layers.qkv.weight if hasattr(head.fusion.layers, "qkv") else head.fusion.hidden[1].weight
    assert first.grad.abs().max() > 0


def test_every_parameter_learns(head, layouts, make_signals):
    out = head.train()(read(make_signals(LENGTHS), layouts))
    (out.heatmap.square().sum() + vectors(out).square().sum()).backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None]


def test_keypoint_dropout_leaves_the_text_alone(head, layouts, make_signals):
    signals = make_signals(LENGTHS)
    dropped = head.train()(read(signals, layouts), keypoint_dropout=1.0)
    assert not dropped.shown.any() and dropped.text_vector.isfinite().all()
    assert dropped.keypoints.valid[:, 0].all()  # still reported
    kept = head.eval()(read(signals, layouts), keypoint_dropout=1.0)
    assert torch.equal(vectors(kept), vectors(head(read(signals, layouts)))) and kept.shown[:, 0].all()
    assert not torch.equal(kept.text_vector, dropped.text_vector)  # what is dropped is not seen by the text either


def test_keypoint_dropout_is_per_sample(mirror, make_layout, make_signals):
    head = LensHead(config("mirror"), mirror).train()
    torch.manual_seed(0)
    signals, layouts = make_signals([10] * 64), [make_layout(2, 4)] * 64
    shown = head(read(signals, layouts), keypoint_dropout=0.5).shown
    dropped = ~shown.any(dim=-1)
    assert 16 < int(dropped.sum()) < 48


def test_half_precision_signals(head, layouts, make_signals):
    out = head(read(make_signals(LENGTHS, dtype=torch.bfloat16), layouts))
    assert out.heatmap.isfinite().all() and vectors(out).isfinite().all()
    assert vectors(out).dtype == torch.float32


def test_a_head_in_bfloat16(head, layouts, make_signals):
    # The mask is -inf in bfloat16: the mirror leaves NaN at the padding, which nobody may read.
    signals = make_signals(LENGTHS, dtype=torch.bfloat16)
    out = head.to(torch.bfloat16)(read(signals, layouts))
    assert out.heatmap.dtype == torch.float32 and out.heatmap.isfinite().all()
    assert vectors(out).dtype == torch.bfloat16 and vectors(out).isfinite().all()


def test_signals_come_to_the_device_of_the_head(head, layouts, make_signals):
    class Seen(Exception):
        pass

    def look(module, given):
        signals, raster = given
        tensors = [signals.hidden, signals.attention_mask, signals.queries, *signals.attention.values()]
        assert all(tensor.is_meta for tensor in (*tensors, *vars(raster).values()))
        raise Seen

    head.to("meta").fusion.register_forward_pre_hook(look)  # the meta device stands in for a second accelerator
    with pytest.raises(Seen):
        head(read(make_signals(LENGTHS), layouts))


def test_training_under_autocast(head, layouts, make_signals):
    head.train()
    with torch.autocast("cpu", torch.bfloat16):
        out = head(read(make_signals(LENGTHS, dtype=torch.bfloat16), layouts))
    assert out.heatmap.dtype == torch.float32
    (out.heatmap.sum() + vectors(out).float().square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_saved_weights_give_the_same_head(head, layouts, make_signals):
    torch.manual_seed(2)
    other = LensHead(head.config, type(head.fusion.layers)() if head.config.fusion == "mirror" else None).eval()
    other.load_state_dict(head.state_dict())
    signals = make_signals(LENGTHS)
    assert torch.equal(vectors(other(read(signals, layouts))), vectors(head(read(signals, layouts))))


def test_a_base_whose_heads_do_not_divide_its_width(make_layout):
    head = LensHead(config("mirror", hidden_size=36, num_attention_heads=8), torch.nn.Linear(1, 1))
    assert head.descriptors.attention.num_heads == 4


def test_lite_on_a_7b_base_has_at_most_ten_million_parameters():
    with torch.device("meta"):
        head = LensHead(LensConfig(fusion="lite", attention_layers=[14, 15, 16]))
    assert sum(p.numel() for p in head.parameters()) <= 10_000_000


def test_refusals(mirror, make_layout, make_signals):
    with pytest.raises(LensConfigError, match="mirror_layers"):
        LensHead(config("mirror"))
    with pytest.raises(LensConfigError, match="mirror_layers"):
        LensHead(config("lite"), mirror)
    head = LensHead(config("mirror"), mirror)
    with pytest.raises(LensError, match="each of 2 rows"):
        head(read(make_signals([10, 10]), [make_layout(2, 4)]))
    nowhere = TokenLayout(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    with pytest.raises(InputError, match="Row 1"):
        head(read(make_signals([10, 10]), [make_layout(2, 4), nowhere]))
