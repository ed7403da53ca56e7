from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lens_adapter.output import LensOutput
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.overlays import _Label, _place_labels, heatmap_overlay, labelled_overlay, mask_overlay
from lens_adapter.pictures.text import font
from tests.tiny.outputs import PAPER, painted_output, pixels


def labels_of(output: LensOutput) -> list[_Label]:
    colors = range(len(output.prompts))
    values = output.prompts, output.scores.tolist(), output.found.tolist()
    return list(_place_labels(output.masks.numpy(), *values, colors))


def test_labels_do_not_cover_a_mask_that_leaves_room():
    output = painted_output(400, 300)
    bare = pixels(mask_overlay(output.image, output.masks, output.keypoints))
    inside = output.masks.any(0).numpy()
    assert (pixels(output.plot())[inside] == bare[inside]).all()


def test_many_prompts_on_one_image_are_all_drawn():
    assert painted_output(320, 240, prompts=24).plot().size == (320, 240)


def test_a_label_is_set_in_a_font_that_has_its_letters():
    stranger = "\u2a5e"  # of matplotlib's own fonts, STIX has it
    output = painted_output(300, 200, prompts=1)
    output.prompts = [f"a {stranger}"]
    (label,) = labels_of(output)
    assert label.face.getname() == font(16, text=stranger).getname() != font(16).getname()


def test_a_label_says_what_was_not_found_and_what_is_empty_all_the_same():
    output = painted_output(600, 400, prompts=3)
    output.masks[1:] = False
    output.found[2] = False
    endings = [label.text.split("  ")[-1] for label in labels_of(output)]
    assert endings == ["0.20", "0.55 empty", "0.90 absent"]


def test_labels_follow_their_colors():
    output = painted_output(400, 300)
    values = output.prompts, output.scores.tolist(), output.found.tolist()
    picture = labelled_overlay(output.image, output.masks, output.keypoints, *values, colors=[4, 5])
    shown = [(pixels(picture) == color_of(index)).all(-1).sum() > 200 for index in range(7)]
    assert shown == [False] * 4 + [True] * 2 + [False]


def test_parts_have_outlines_of_their_own_in_the_color_of_their_mask():
    masks = torch.zeros(1, 200, 300, dtype=torch.bool)
    masks[0, 50:150, 50:250] = True
    halves = masks[0] & torch.stack([torch.arange(300) < 150, torch.arange(300) >= 150])[:, None]
    paper = Image.new("RGB", (300, 200), PAPER)
    middle = (slice(70, 130), slice(145, 155))  # where the halves meet
    whole, apart = (pixels(mask_overlay(paper, masks, parts=parts, unit=2.0))[middle] for parts in (None, [halves]))
    assert not (whole == color_of(0)).all(-1).any() and (apart == color_of(0)).all(-1).any(1).all()
    none = mask_overlay(paper, masks, parts=[halves[:0]], unit=2.0)
    assert not (pixels(none) == color_of(0)).all(-1).any()


def test_an_outline_on_a_large_picture_keeps_its_place():
    masks = torch.zeros(1, 1600, 2400, dtype=torch.bool)
    rows, columns = np.mgrid[:1600, :2400]
    masks[0] = torch.from_numpy((rows - 800) ** 2 + (columns - 1200) ** 2 < 500**2)
    picture = pixels(mask_overlay(Image.new("RGB", (2400, 1600), PAPER), masks, fill=0.0))
    rows, columns = np.nonzero((picture == color_of(0)).all(-1))
    away = np.hypot(rows + 0.5 - 800, columns + 0.5 - 1200)
    assert len(rows) > 2 * np.pi * 500 and away.min() > 490 and away.max() < 510
    turns = np.unique((np.degrees(np.arctan2(rows - 800, columns - 1200)) % 360 // 2).astype(int))
    assert len(turns) == 180  # closed


def test_mask_overlay_tints_inside_and_leaves_outside():
    masks = torch.zeros(1, 100, 100, dtype=torch.bool)
    masks[0, 30:70, 30:70] = True
    picture = pixels(mask_overlay(Image.new("RGB", (100, 100), (0, 0, 0)), masks, fill=0.5))
    assert np.abs(picture[50, 50] - np.array(color_of(0)) / 2).max() <= 1
    assert (picture[:20] == 0).all() and (picture[80:] == 0).all()
    faded = pixels(mask_overlay(Image.new("RGB", (100, 100), (0, 0, 0)), masks, fade=0.5))
    assert np.abs(faded[:20] - 127).max() <= 1


def test_mask_overlay_spreads_a_small_mask_over_a_large_image():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :, 4:] = True
    picture = pixels(mask_overlay(Image.new("RGB", (160, 80)), masks))
    assert (picture[:, :60] == 0).all() and (picture[:, 100:] > 0).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heatmap_is_bright_where_the_heat_is(dtype):
    heatmap = torch.zeros(4, 8, dtype=dtype)
    heatmap[0, 7] = 1  # top right
    brightness = pixels(heatmap_overlay(Image.new("RGB", (160, 80), PAPER), heatmap)).sum(-1)
    assert brightness.shape == (80, 160)
    top, left = np.unravel_index(brightness.argmax(), brightness.shape)
    assert top < 20 and left >= 140


def test_heatmap_draws_its_keypoints():
    image, heatmap = Image.new("RGB", (200, 200), PAPER), torch.zeros(4, 4)
    bare = pixels(heatmap_overlay(image, heatmap))
    ringed = pixels(heatmap_overlay(image, heatmap, torch.tensor([[150.0, 40.0]])))
    rows, columns = np.nonzero((bare != ringed).any(-1))
    assert abs(rows.mean() - 39.5) < 1 and abs(columns.mean() - 149.5) < 1


def test_labels_never_lie_on_each_other():
    output = painted_output(600, 600, prompts=6)
    output.masks[:] = False  # all want the same corner
    boxes = [label.box for label in labels_of(output)]
    assert len(boxes) == 6
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
