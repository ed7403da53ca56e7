from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter.errors import LensError
from lens_adapter.output import LensOutput
from lens_adapter.signals import Keypoints, LensSignals, TokenLayout


def an_output(prompts: int = 2, height: int = 6, width: int = 8, **changed: Any) -> LensOutput:
    fields: dict[str, Any] = {
        "prompts": ["a"] * prompts,
        "image_size": (height, width),
        "masks": torch.zeros(prompts, height, width, dtype=torch.bool),
        "scores": torch.zeros(prompts),
        "keypoints": [torch.zeros(3, 2)] * prompts,
        "keypoint_scores": [torch.zeros(3)] * prompts,
        "heatmaps": torch.zeros(prompts, 2, 2),
    }
    return LensOutput(**{**fields, **changed})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("masks", torch.zeros(2, 8, 6, dtype=torch.bool)),  # H and W swapped
        ("masks", torch.zeros(1, 6, 8, dtype=torch.bool)),
        ("masks", torch.zeros(2, 6, 8)),  # not bool
        ("scores", torch.zeros(2, 1)),
        ("heatmaps", torch.zeros(2, 4)),
        ("keypoints", [torch.zeros(3, 2)]),
        ("keypoints", [torch.zeros(3, 2), torch.zeros(3, 3)]),
        ("keypoint_scores", [torch.zeros(3)] * 3),
        ("keypoint_scores", [torch.zeros(3), torch.zeros(2)]),
        ("logits", torch.zeros(2, 3, 4)),
        ("image", Image.new("RGB", (6, 8))),  # 6 wide, 8 high
    ],
)
def test_output_of_a_wrong_shape_is_refused_by_name(field, value):
    with pytest.raises(LensError, match=rf"LensOutput\.{field}: expected .* got"):
        an_output(**{field: value})


def test_output_takes_what_fits():
    output = an_output(logits=torch.zeros(2, 6, 8), image=Image.new("RGB", (8, 6)))
    assert output.image_size == (6, 8) and output.logits is not None
    none_found = an_output(keypoints=[torch.zeros(0, 2)] * 2, keypoint_scores=[torch.zeros(0)] * 2)
    assert [len(points) for points in none_found.keypoints] == [0, 0]


def test_an_output_is_printed_in_one_line():
    output = an_output(scores=torch.tensor([0.93, 0.126]))
    output.masks[:] = False
    output.masks[0, 0, 0] = True
    first, second = output.prompts
    assert repr(output) == f"LensOutput(8 x 6 pixels, 2 prompts: {first!r} 0.93, {second!r} 0.13 empty)"


def test_records_are_plain_data():
    output = an_output()
    records = json.loads(json.dumps(output.to_records()))
    assert [record["prompt"] for record in records] == output.prompts
    assert [record["area"] for record in records] == output.masks.sum((1, 2)).tolist()
    assert [record["segmentation"] for record in records] == output.to_coco_rle()
    assert [record["keypoints"] for record in records] == [points.tolist() for points in output.keypoints]
    assert an_output(0).to_records() == []


def test_coco_rle_decodes_to_the_same_masks():
    masks = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[1] = False
    encoded = an_output(3, 17, 23, masks=masks).to_coco_rle()
    assert all(rle["size"] == [17, 23] and isinstance(rle["counts"], str) for rle in encoded)
    decoded = np.stack([coco.decode(rle) for rle in encoded]).astype(bool)
    assert (decoded == masks.numpy()).all()
    assert [int(coco.area(rle)) for rle in encoded] == masks.sum((1, 2)).tolist()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 7)])
def test_coco_rle_is_pycocotools_own(size):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, *size, generator=generator) > torch.linspace(0, 1, 40)[:, None, None]
    masks[1, : size[0] // 2], masks[2, size[0] // 2 :] = False, False  # away from the top, away from the bottom
    expected = [coco.encode(np.asfortranarray(mask.numpy(), np.uint8))["counts"].decode() for mask in masks]
    assert [rle["counts"] for rle in an_output(40, *size, masks=masks).to_coco_rle()] == expected


def test_coco_rle_without_prompts_is_empty():
    assert an_output(0).to_coco_rle() == []


def test_coco_rle_takes_masks_in_any_memory_order():
    masks = (torch.arange(48).view(2, 8, 3) % 5 == 0).transpose(1, 2)  # (2, 3, 8), not contiguous
    decoded = [coco.decode(rle) for rle in an_output(2, 3, 8, masks=masks).to_coco_rle()]
    assert (np.stack(decoded).astype(bool) == masks.numpy()).all()


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
