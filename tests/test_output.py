from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter.errors import LensError
from lens_adapter.output import LensOutput, is_found


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
        ("found", torch.ones(1, dtype=torch.bool)),
        ("found", torch.ones(2)),  # not bool
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


def test_all_prompts_are_found_unless_something_else_is_said():
    assert an_output().found.tolist() == [True, True] and an_output(0).found.tolist() == []
    found = torch.tensor([False, True])
    assert replace(an_output(found=found), image=None).found is found


def test_a_score_at_the_threshold_is_found():
    assert is_found(0.5, 0.5) and is_found(0.0, 0.0) and not is_found(0.4999, 0.5)


def test_an_output_is_printed_in_one_line():
    output = an_output(scores=torch.tensor([0.93, 0.126]))
    output.masks[:] = False
    output.masks[0, 0, 0] = True
    first, second = output.prompts
    assert repr(output) == f"LensOutput(8 x 6 pixels, 2 prompts: {first!r} 0.93, {second!r} 0.13 empty)"
    output.found[1] = False
    assert repr(output).endswith(f"{second!r} 0.13 absent)")


def test_records_are_plain_data():
    output = an_output(found=torch.tensor([True, False]))
    records = json.loads(json.dumps(output.to_records()))
    assert [record["prompt"] for record in records] == output.prompts
    assert [record["found"] for record in records] == [True, False]
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
