"""One mask for several things -> a mask each: what separates them, at the decoder's resolution and at the picture's."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from lens_adapter.instances import _components, at_full_size, separate
from lens_adapter.sam.square import threshold_masks, upsample_logits
from tests.tiny.adapters import tiny_trio
from tests.tiny.sam import noise_image

NOWHERE = torch.zeros(0, 2)


def field(*boxes: tuple[int, int, int, int], size: int = 32) -> Tensor:
    """Logits: 8 in each box (left, top, right, bottom), -8 elsewhere."""
    logits = torch.full((size, size), -8.0)
    for left, top, right, bottom in boxes:
        logits[top:bottom, left:right] = 8
    return logits


def at(*cells: tuple[int, int], size: int = 32) -> Tensor:
    """Points in the middle of cells (x, y), in fractions."""
    return (torch.tensor(cells).reshape(-1, 2) + 0.5) / size


@pytest.mark.parametrize("seed", range(6))
def test_components_are_scipys(seed):
    mask = torch.rand(40, 30, generator=torch.Generator().manual_seed(seed)) < 0.35 + 0.1 * seed
    ours, (theirs, count) = _components(mask), ndimage.label(mask.numpy())
    pairs = set(zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True))
    assert len(pairs) == count + 1 and (0, 0) in pairs  # one to one


def test_a_snake_is_one_component():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert _components(mask).unique().numel() == 2


def test_an_empty_mask_has_no_things():
    assert separate(field(), at((3, 3))).unique().tolist() == [0]


def test_things_that_do_not_touch_need_no_keypoints_and_come_by_size():
    labels = separate(field((2, 2, 10, 10), (12, 2, 28, 20), (2, 22, 11, 30)), NOWHERE)
    assert (labels[4, 4], labels[10, 20], labels[25, 5], labels[0, 0]) == (3, 1, 2, 0)
    assert (labels > 0).equal(field((2, 2, 10, 10), (12, 2, 28, 20), (2, 22, 11, 30)) > 0)


def test_a_speck_goes_to_the_nearest_thing_unless_a_keypoint_lies_on_it():
    speck = field((2, 2, 12, 12), (20, 2, 30, 12), (14, 5, 16, 7))  # nearer to the left one
    labels = separate(speck, NOWHERE)
    assert labels[6, 15] == labels[6, 5] != labels[6, 25] and labels.max() == 2
    assert separate(speck, at((14, 5))).max() == 3


def test_keypoints_tell_things_apart_that_touch_where_the_logits_dip():
    touching = field((2, 10, 16, 20), (16, 10, 30, 20))
    points = at((8, 15), (23, 15))
    assert separate(touching, points).max() == 1  # one long thing, hot twice
    touching[:, 15:17] = touching[:, 15:17].clamp(max=2)
    labels = separate(touching, points)
    assert labels.max() == 2 and (labels[:, :15] == labels[15, 8] * (touching[:, :15] > 0)).all()
    assert separate(touching, points[:1]).max() == 1
    assert separate(touching, at((8, 15), (16, 3))).max() == 1  # a keypoint beside the mask says nothing
    assert separate(touching, at((8, 15), (23, 15), (25, 12), (5, 12))).max() == 2


def test_masks_of_the_keypoints_decide_where_there_are_some():
    united = field((2, 10, 30, 20))
    points = at((5, 15), (15, 15), (25, 15))
    alone = torch.stack([field((2, 10, 20, 20)), field((2, 10, 19, 20)), field((20, 10, 30, 20))])
    labels = separate(united, points, point_logits=alone)
    assert labels.max() == 2 and (labels[10:20, 2:20] == 1).all() and (labels[10:20, 20:30] == 2).all()


def test_the_level_is_the_masks():
    logits = field((2, 2, 14, 12), (14, 2, 28, 12))
    logits[2:12, 13:15] = 0.5
    assert separate(logits, NOWHERE).max() == 1 and separate(logits, NOWHERE, level=1.0).max() == 2


SAM = {"image_size": 128, "patch_size": 16}  # 32 x 32 logits


@pytest.mark.parametrize("size", [(96, 128), (41, 60), (300, 211), (9, 128)])
def test_at_full_size_they_are_disjoint_and_together_the_mask(size):
    noise = torch.randn(1, 36, 36, generator=torch.Generator().manual_seed(3))
    logits = F.avg_pool2d(noise, 5, 1) - 0.05  # blots of all sizes
    labels = separate(logits[0], torch.rand(8, 2, generator=torch.Generator().manual_seed(1)))
    mask = upsample_logits(logits, size, SAM)[0] > 0
    masks = at_full_size(labels, mask, lambda one: threshold_masks(one, size, 0.0, SAM))
    assert masks.shape[1:] == mask.shape and len(masks) > 1 and masks.dtype == torch.bool
    assert masks.sum(0).max() == 1 and masks.any(0).equal(mask) and masks.flatten(1).any(1).all()


def test_what_lies_in_the_padding_only_is_no_instance():
    logits = field((2, 2, 10, 10), (2, 20, 14, 30))
    size = (64, 128)  # the lower half of the square is padding
    mask = upsample_logits(logits[None], size, SAM)[0] > 0
    masks = at_full_size(separate(logits, NOWHERE), mask, lambda one: threshold_masks(one, size, 0.0, SAM))
    assert len(masks) == 1 and masks[0].equal(mask)


def test_one_thing_alone_is_the_mask_itself():
    mask = torch.ones(4, 6, dtype=torch.bool)
    masks = at_full_size(torch.ones(2, 2, dtype=torch.long), mask, lambda one: pytest.fail("not needed"))
    assert masks.data_ptr() == mask.data_ptr() and len(masks) == 1
    assert at_full_size(torch.ones(2, 2, dtype=torch.long), mask & False, lambda one: one).shape == (0, 4, 6)


@pytest.mark.parametrize("fusion", ["mirror", "lite"])
def test_segment_gives_instances_if_asked(fusion):
    (adapter, *_), image, prompts = tiny_trio("llava", fusion), noise_image(40, 56), ["a dog", "two cats"]
    out = adapter.segment(image, prompts, instances=True, score_threshold=0.0)
    plain = adapter.segment(image, prompts, score_threshold=0.0)
    assert plain.instances is None and plain.masks.equal(out.masks)
    for instances, mask, score in zip(out.instances, out.masks, out.scores, strict=True):
        assert instances.masks.any(0).equal(mask) if mask.any() else len(instances) == 0
        assert len(instances) < 2 or instances.masks.sum(0).max() == 1
        assert (instances.scores == score).all() and len(instances.scores) == len(instances)
    absent = adapter.segment(image, prompts, instances=True, score_threshold=0.9999)
    assert [len(one) for one in absent.instances] == [0, 0] and not absent.found.any()
    pictures = adapter.segment([image, image], [prompts, prompts], batch_size=3, instances=True, score_threshold=0.0)
    for one, same in itertools.product(pictures, [out]):
        assert all(a.masks.equal(b.masks) for a, b in zip(one.instances, same.instances, strict=True))
