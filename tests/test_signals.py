from __future__ import annotations

import pytest
import torch

from lens_adapter.errors import LensError
from lens_adapter.signals import Keypoints, LensSignals, TokenLayout


def test_token_layout_checks_its_boxes_and_grid():
    positions, boxes = torch.arange(6), torch.zeros(6, 4)
    assert TokenLayout(positions, boxes, (2, 3)).grid == (2, 3)
    with pytest.raises(LensError, match=r"TokenLayout\.boxes: expected .*\(6, 4\), got \(5, 4\)"):
        TokenLayout(positions, boxes[:5])
    with pytest.raises(LensError, match=r"TokenLayout\.positions"):
        TokenLayout(positions[None], boxes)
    with pytest.raises(LensError, match=r"\(2, 2\) does not hold 6"):
        TokenLayout(positions, boxes, (2, 2))


@pytest.mark.parametrize(
    ("field", "shape"), [("points", (2, 5)), ("points", (2, 5, 3)), ("scores", (2, 4)), ("valid", (1, 5))]
)
def test_keypoints_of_a_wrong_shape_are_refused_by_name(field, shape):
    fields = {"points": torch.zeros(2, 5, 2), "scores": torch.zeros(2, 5), "valid": torch.zeros(2, 5, dtype=torch.bool)}
    assert Keypoints(**fields).points.shape == (2, 5, 2)
    with pytest.raises(LensError, match=rf"Keypoints\.{field}: expected"):
        Keypoints(**{**fields, field: torch.zeros(shape)})


def test_signals_do_not_share_their_containers():
    one, other = LensSignals(), LensSignals()
    one.attention[3] = torch.zeros(1)
    one.steps.append(other)
    assert other.attention == {} and other.steps == [] and other.layer_kwargs == {}


def test_records_are_printed_as_shapes():
    signals = LensSignals()
    assert repr(signals) == "LensSignals(attention={}, layer_kwargs={})"
    signals.hidden = torch.rand(1, 600, 64, dtype=torch.bfloat16)
    signals.attention = {2: torch.rand(1, 4, 1, 600)}
    signals.layer_kwargs = {"rotary": (torch.rand(1, 600, 16), torch.rand(1, 600, 16)), "cache": object(), "use": True}
    signals.kernel = "sdpa"
    signals.steps = [LensSignals(hidden=torch.rand(1, 1, 64))] * 30
    shown = repr(signals)
    assert "hidden=bfloat16 (1, 600, 64), attention={2: float32 (1, 4, 1, 600)}" in shown
    assert "'rotary': (float32 (1, 600, 16), float32 (1, 600, 16)), 'cache': object, 'use': True" in shown
    assert "kernel='sdpa'" in shown and "... 30 in all]" in shown and "tensor" not in shown and len(shown) < 700
    layout = TokenLayout(positions=torch.arange(4), boxes=torch.rand(4, 4), grid=(2, 2))
    assert repr(layout) == "TokenLayout(positions=int64 (4,), boxes=float32 (4, 4), grid=(2, 2))"
