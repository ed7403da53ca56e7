from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lens_adapter.output import LensOutput
from lens_adapter.pictures import text
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.labels import MOST_COVERED, Label, place_labels
from lens_adapter.pictures.overlays import heatmap_overlay, labelled_overlay, mask_overlay
from lens_adapter.pictures.text import font
from tests.pictures.situations import SITUATIONS, disc, output_of, textured
from tests.tiny.outputs import PAPER, painted_output, pixels


def labels_of(output: LensOutput) -> list[Label]:
    points = [each.numpy() for each in output.keypoints]
    values = output.prompts, output.scores.tolist(), output.found.tolist(), range(len(output.prompts))
    return place_labels(output.image_size[::-1], output.masks.numpy(), points, *values)


@pytest.mark.parametrize("name", [name for name in SITUATIONS if name != "24 megapixels"])  # some seconds
def test_labels_are_on_the_picture_and_clear_of_each_other(name):
    output = SITUATIONS[name]()
    height, width = output.image_size
    labels = labels_of(output)
    assert len(labels) == (len(output.prompts) if min(width, height) > 100 else 0)
    covered = 0
    for index, label in enumerate(labels):
        left, top, right, bottom = label.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert label.face.getlength(label.text) < right - left
        covered += (right - left) * (bottom - top)
        for other in (each.box for each in labels[:index]):
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    assert covered <= MOST_COVERED * width * height


@pytest.mark.parametrize("name", ["a scene", "a crowded scene", "twelve things", "tiny things", "instances"])
def test_labels_hide_no_thing_where_there_is_room(name):
    output = SITUATIONS[name]()
    for label in labels_of(output):
        left, top, right, bottom = (round(edge) for edge in label.box)
        hidden = output.masks[:, top:bottom, left:right].sum((1, 2)) / output.masks.sum((1, 2))
        assert hidden.max() < 0.02, label.text


def test_a_label_far_from_its_mask_has_a_line_to_it():
    output = SITUATIONS["masks that overlap"]()
    lines = {label.text.split("  ")[0]: label.leader for label in labels_of(output)}
    assert lines["the crowd"] is None
    x, y = lines["the hat"][2:]
    assert output.masks[3, int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5].any()
    bare = output.masks.clone()
    bare[:] = False
    assert all(label.leader is None for label in labels_of(replace(output, masks=bare)))


def test_where_masks_overlap_there_is_one_color_and_not_a_mixture():
    size = (200, 100)
    wide, small = disc(size, 0.5, 0.5, 0.45, 2), disc(size, 0.5, 0.5, 0.25)
    paper = Image.new("RGB", size, PAPER)
    for masks, colors in (([wide, small], [0, 1]), ([small, wide], [1, 0])):
        picture = pixels(mask_overlay(paper, torch.from_numpy(np.stack(masks)), colors=colors, fill=0.5))
        for x, color in ((110, 1), (150, 0)):  # in both, in the wide one only
            expected = (np.array(PAPER) + color_of(color)) / 2
            assert np.abs(picture[50, x] - expected).max() <= 1


def test_outlines_that_run_along_each_other_show_in_turn():
    size = (400, 300)
    ball, other = disc(size, 0.4, 0.5, 0.3), disc(size, 0.9, 0.5, 0.1)
    paper = Image.new("RGB", size, PAPER)
    masks = torch.from_numpy(np.stack([ball, ball | other, ball]))  # the second one in two parts
    picture = pixels(mask_overlay(paper, masks, fill=0, unit=2))
    amounts = [(picture[:, :300] == color_of(index)).all(-1).sum() for index in range(3)]
    alone = (pixels(mask_overlay(paper, masks[:1], fill=0, unit=2)) == color_of(0)).all(-1).sum()
    assert min(amounts) > 0.15 * alone
    assert (picture[:, 300:] == color_of(1)).all(-1).sum() > 100  # and whole where it runs alone
    assert not any((picture[:, 300:] == color_of(index)).all(-1).any() for index in (0, 2))


def test_a_fill_leaves_the_texture_to_be_seen():
    size = (300, 200)
    image = textured(size)
    output = output_of(image, {"the middle": disc(size, 0.5, 0.5, 0.4)})
    inside = np.zeros(size[::-1], bool)
    inside[110:150, 120:180] = True  # beside outline, keypoint and label
    before, after = (pixels(picture)[inside].std(0) for picture in (image, output.plot()))
    assert (after > 0.75 * before).all()


def test_lines_grow_with_the_picture():
    widths = []
    for side in (100, 400, 1600):
        mask = torch.zeros(1, side, side, dtype=torch.bool)
        mask[:, side // 4 : side // 2] = True
        picture = pixels(mask_overlay(Image.new("RGB", (side, side), PAPER), mask, fill=0))
        widths.append(int((picture[: side * 3 // 8, side // 2] != PAPER).any(-1).sum()))
    assert 2 <= widths[0] < widths[1] < widths[2] and widths[2] / widths[1] == pytest.approx(4, abs=0.8)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_every_color_can_be_told_from_any_ground(level):
    size = (160, 120)
    mask = torch.from_numpy(disc(size, 0.5, 0.5, 0.3))[None]
    for index in range(21):
        picture = mask_overlay(Image.new("RGB", size, (level,) * 3), mask, colors=[index], fill=0, unit=2)
        across = pixels(picture)[60]
        # WCAG asks for a contrast of 3 between what is drawn and what is around it.
        assert max(contrast(color, (level,) * 3) for color in across) > 3


def contrast(first, second) -> float:
    """By WCAG 2, 1 to 21."""
    levels = np.array([first, second]) / 255
    linear = np.where(levels <= 0.04, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    darker, brighter = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (brighter + 0.05) / (darker + 0.05)


def test_a_keypoint_does_not_hide_a_tiny_thing():
    size = (640, 480)
    output = output_of(textured(size), {"a bird": disc(size, 0.5, 0.5, 0.01)})
    bare, ringed = (
        pixels(mask_overlay(output.image, output.masks, points)) for points in ([torch.zeros(0, 2)], output.keypoints)
    )
    changed = (bare != ringed).any(-1)
    assert 0 < changed.sum() < 0.4 * output.masks.sum()


def test_a_prompt_that_no_font_here_can_write_is_named_by_its_number(monkeypatch):
    monkeypatch.setattr(text, "_font_with", lambda letters: None)  # none but the usual one
    output = painted_output(400, 300)
    output.prompts = ["木の左の犬", "a cup"]
    assert [label.text.split("  ")[0] for label in labels_of(output)] == ["prompt 1", "a cup"]


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
