"""The losses against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lens_adapter.segmentation import LensPrediction
from lens_adapter.signals import Keypoints, SparsePrompts
from lens_adapter.training.losses import HEAT_SIDE, Targets, dice_loss, heat_square, lens_losses, reached_iou

pytestmark = pytest.mark.once  # arithmetic


def prediction(logits: torch.Tensor, heat: torch.Tensor, quality: list[float]) -> LensPrediction:
    n = len(logits)
    none = torch.zeros(n, 1, dtype=torch.bool)
    keypoints = Keypoints(torch.zeros(n, 1, 2), torch.zeros(n, 1), none)
    size = torch.tensor([heat.shape[1:]] * n)
    prompts = SparsePrompts(keypoints, none, torch.zeros(n, 1, 4), torch.zeros(n, 4), heat, size)
    return LensPrediction(logits, torch.tensor(quality), prompts)


def test_reached_iou_and_dice_by_hand():
    logits = torch.tensor([[[5.0, 5.0], [-5.0, -5.0]], [[-5.0] * 2] * 2])
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0] * 2] * 2])
    assert reached_iou(logits, target).tolist() == [pytest.approx(1 / 3), 1.0]
    assert dice_loss(60 * logits, target)[0].item() == pytest.approx(1 - 3 / 5)


def test_what_is_ignored_does_not_count():
    logits = torch.tensor([[[5.0, 5.0], [-5.0, -5.0]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    weight = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])  # the false alarm is ignored
    assert reached_iou(logits, target, weight).item() == pytest.approx(1 / 2)
    assert dice_loss(60 * logits, target, weight).item() == pytest.approx(1 - 3 / 4)


def test_parts_of_the_loss_by_hand():
    logits = torch.tensor([[[2.0, -2.0]], [[-2.0, -2.0]]])  # the second prompt names nothing
    masks = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    heat = torch.full((2, 1, 1), 0.25)
    targets = Targets(masks, torch.stack([torch.ones(HEAT_SIDE, HEAT_SIDE), torch.zeros(HEAT_SIDE, HEAT_SIDE)]))
    found = prediction(logits, heat, [0.5, 0.5])
    parts = lens_losses(found, targets, heat_needs_target=True)
    assert parts["attention"].item() == pytest.approx(-math.log(0.25))  # of the first alone
    assert parts["bce"].item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    sure = 1 / (1 + math.exp(-2))
    assert parts["dice"].item() == pytest.approx(1 - (2 * sure + 1) / (1 + 1 + 1), rel=1e-5)
    assert parts["quality"].item() == pytest.approx((0.5**2 + 0.5**2) / 2)  # reached 1; nothing counts as 0
    both = lens_losses(found, targets, heat_needs_target=False)["attention"].item()
    assert both == pytest.approx((-math.log(0.25) - math.log(0.75)) / 2)


def test_a_batch_without_any_target_has_finite_losses():
    found = prediction(torch.full((1, 2, 2), -3.0), torch.full((1, 2, 2), 0.1), [0.0])
    nothing = Targets(torch.zeros(1, 2, 2), torch.zeros(1, HEAT_SIDE, HEAT_SIDE))
    parts = lens_losses(found, nothing, heat_needs_target=True)
    assert all(part.isfinite() for part in parts.values())
    assert parts["attention"] == parts["dice"] == 0


def test_heatmaps_of_a_padded_batch_are_brought_to_one_square():
    heat = torch.zeros(2, 3, 4)
    heat[0, :2, :2] = torch.tensor([[0.0, 1.0], [0.0, 1.0]])  # a 2 x 2 map, padded
    heat[1] = torch.arange(4.0)
    square = heat_square(heat, torch.tensor([[2, 2], [3, 4]]))
    ramp = torch.linspace(0, 1, HEAT_SIDE)
    torch.testing.assert_close(square[0], ramp.expand(HEAT_SIDE, HEAT_SIDE))
    torch.testing.assert_close(square[1], 3 * ramp.expand(HEAT_SIDE, HEAT_SIDE), atol=1e-5, rtol=0)


def test_losses_are_computed_in_float32():
    logits, masks = torch.randn(2, 4, 4).bfloat16(), torch.rand(2, 4, 4)
    heat = torch.rand(2, 3, 3)
    targets = Targets(masks, torch.rand(2, HEAT_SIDE, HEAT_SIDE))
    expected = lens_losses(prediction(logits.float(), heat, [0.5, 0.25]), targets, heat_needs_target=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = prediction(logits, heat, [0.5, 0.25])
        parts = lens_losses(found, targets, heat_needs_target=False)
    assert {name: part.dtype for name, part in parts.items()} == dict.fromkeys(parts, torch.float32)
    assert all(torch.equal(parts[name], expected[name]) for name in expected)
