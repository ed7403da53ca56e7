from __future__ import annotations

import dataclasses
import re
import sys
import xml.etree.ElementTree as ET
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from PIL import Image

from lens_adapter.errors import LensError
from lens_adapter.output import LensOutput
from lens_adapter.pictures import drawing
from lens_adapter.pictures.drawing import fit, font, ink_on, outlines, wrap
from lens_adapter.pictures.overlays import (
    HTML_WIDTH,
    PALETTE,
    Panel,
    _place_labels,
    color_of,
    contact_sheet,
    heatmap_overlay,
    mask_overlay,
    plot_output,
    to_detections,
)

PAPER = (236, 232, 220)


def an_output(width: int, height: int, prompts: int = 2) -> LensOutput:
    """Prompt i has a rectangle that starts at i quarters of the image."""
    masks = torch.zeros(prompts, height, width, dtype=torch.bool)
    for index in range(prompts):
        masks[index, height // 4 : height // 2, index * width // 4 : (index + 1) * width // 4] = True
    return LensOutput(
        prompts=[f"the thing number {index}" for index in range(prompts)],
        image_size=(height, width),
        masks=masks,
        scores=torch.linspace(0.2, 0.9, prompts),
        keypoints=[torch.tensor([[width / 2, height / 2]]) for _ in range(prompts)],
        keypoint_scores=[torch.ones(1) for _ in range(prompts)],
        heatmaps=torch.linspace(0, 1, prompts * 12).view(prompts, 3, 4),
        image=Image.new("RGB", (width, height), PAPER),
    )


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.int64)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 64), (37, 53), (2000, 300), (300, 900), (640, 480)])
def test_plot_has_the_size_of_the_image_and_draws_on_it(size):
    output = an_output(*size)
    picture = output.plot()
    assert picture.size == size and picture.mode == "RGB"
    assert (pixels(picture) != PAPER).any()
    assert (pixels(output.image) == PAPER).all()  # itself untouched


def test_plot_changes_with_masks_keypoints_scores_and_prompts():
    output = an_output(200, 160)
    others = [
        dataclasses.replace(output, masks=output.masks.roll(30, dims=1)),
        dataclasses.replace(output, keypoints=[points + 20 for points in output.keypoints]),
        dataclasses.replace(output, scores=output.scores + 0.05),
        dataclasses.replace(output, prompts=["the thing number 0", "another"]),
    ]
    pictures = [pixels(plot_output(each)) for each in (output, *others)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_plot_without_prompts_is_the_image():
    assert (pixels(an_output(120, 120, prompts=0).plot()) == PAPER).all()


def test_plot_labels_an_empty_mask():
    output = an_output(200, 160, prompts=1)
    output.masks[:] = False
    output.keypoints = [torch.zeros(0, 2)]
    output.keypoint_scores = [torch.zeros(0)]
    assert (pixels(output.plot()) == color_of(0)).all(-1).sum() > 200  # the label's ground


def test_labels_do_not_cover_a_mask_that_leaves_room():
    output = an_output(400, 300)
    bare = pixels(mask_overlay(output.image, output.masks, output.keypoints))
    inside = output.masks.any(0).numpy()
    assert (pixels(plot_output(output))[inside] == bare[inside]).all()


def test_many_prompts_on_one_image_are_all_drawn_and_told_apart():
    assert an_output(320, 240, prompts=24).plot().size == (320, 240)
    colors = [color_of(index) for index in range(3 * len(PALETTE))]
    assert len(set(colors)) == len(colors) and tuple(colors[: len(PALETTE)]) == PALETTE
    assert color_of(len(colors)) == color_of(0)


def test_letters_that_the_usual_font_lacks_come_from_another():
    usual = font(16).getname()
    assert font(16, text="the café at 北緯").getname() == usual or font(16, text="北").getmask("北").getbbox()
    stranger = "\u2a5e"  # of matplotlib's own fonts, STIX has it
    assert not drawing._has(font(16).path, stranger)
    other = font(16, text=f"a {stranger}")
    assert other.getname() != usual and drawing._has(other.path, stranger) and drawing._has(other.path, "a")
    assert font(16, text="\U000f0123 and\na line").getname() == usual  # nobody has this one
    named = an_output(300, 200, prompts=1)
    named.prompts = [f"a {stranger}"]
    (label,) = _place_labels(named, [0])
    assert label.face.getname() == other.getname()


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


def test_save_writes_what_plot_draws(tmp_path):
    output = an_output(90, 60)
    output.save(tmp_path / "overlay.png")
    assert (pixels(Image.open(tmp_path / "overlay.png")) == pixels(output.plot())).all()


def test_plot_without_an_image_says_so():
    with pytest.raises(LensError, match=r"LensOutput\.image.*None"):
        dataclasses.replace(an_output(20, 20), image=None).plot()


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


def test_outlines_follow_the_edge_of_a_mask():
    mask = np.zeros((60, 80), bool)
    mask[20:40, 10:70] = True
    (line,) = outlines(mask)
    assert (line[0] == line[-1]).all()
    assert np.abs(line.min(0) - (10, 20)).max() < 0.1 and np.abs(line.max(0) - (70, 40)).max() < 0.1
    mask[25:35, 30:40] = False  # a hole has an outline of its own
    assert len(outlines(mask)) == 2
    assert outlines(np.zeros((5, 5), bool)) == []
    single = np.zeros((5, 5), bool)
    single[2, 3] = True
    assert outlines(single)[0].mean(0) == pytest.approx([3.5, 2.5], abs=0.2)


@pytest.mark.parametrize("columns", [0, 1, 3, 4])
def test_contact_sheet_has_room_for_every_panel(columns):
    panel = Panel(an_output(60, 40, columns), question="How many?", answer="two")
    one = contact_sheet([panel], title="A page")
    two = contact_sheet([panel, panel], title="A page", subtitle="of two")
    assert one.mode == "RGB" and one.width == two.width
    assert two.height > one.height
    assert (pixels(one)[:, :30] == 255).all()  # the margin


def test_contact_sheet_shows_overlap_question_and_answer():
    output = an_output(60, 40)
    sheets = [
        contact_sheet([panel], title="A page").tobytes()
        for panel in (
            Panel(output),
            Panel(output, ious=[0.5, None]),
            Panel(output, ious=[0.5, 0.7]),
            Panel(output, question="How many?"),
            Panel(output, question="How many?", answer="two"),
        )
    ]
    assert len(set(sheets)) == len(sheets)


def test_contact_sheet_refuses_what_it_cannot_draw():
    with pytest.raises(LensError, match="at least one panel"):
        contact_sheet([], title="A page")
    with pytest.raises(LensError, match=r"Panel\.ious: expected 2 numbers, got 1"):
        Panel(an_output(60, 40), ious=[0.5])


def test_supervision_gets_boxes_masks_scores_and_names():
    output = an_output(40, 20)
    output.masks[1] = False
    detections = output.to_supervision()
    assert detections.xyxy.tolist() == [[0, 5, 10, 10], [0, 0, 0, 0]]
    assert (np.asarray(detections.mask) == output.masks.numpy()).all()
    assert detections.confidence.tolist() == output.scores.tolist()
    assert detections.data["class_name"].tolist() == output.prompts
    assert detections.class_id.tolist() == [0, 1]


def test_supervision_without_prompts_is_empty():
    assert len(an_output(40, 20, prompts=0).to_supervision()) == 0


def test_supervision_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(LensError, match=r"pip install 'lens_adapter\[supervision\]'"):
        to_detections(an_output(40, 20))


def test_text_is_cut_and_wrapped_to_its_width():
    face = font(16)
    long = "the small green triangle to the left of the large yellow square"
    assert fit("short", face, 200) == "short" and fit("two\nlines", face, 200) == "two lines"
    assert fit(long, face, 120).endswith("…") and face.getlength(fit(long, face, 120)) <= 120
    assert fit(long, face, 1) == ""
    lines = wrap(long, face, 200, 2)
    assert len(lines) == 2 and lines[1].endswith("…") and all(face.getlength(line) <= 200 for line in lines)
    assert " ".join(wrap(long, face, 200, 9)) == long
    assert wrap("", face, 200, 2) == []


def test_text_reads_on_every_color():
    assert ink_on((255, 255, 255)) != ink_on((0, 0, 0))
    assert ink_on((240, 228, 66)) == ink_on((255, 255, 255))


def filled(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Pixels whose centers lie in an odd number of the polygons."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    centers = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = [Path(np.concatenate([line, line[:1]])).contains_points(centers) for line in polygons]
    return np.logical_xor.reduce([np.zeros(len(centers), bool), *inside]).reshape(height, width)


def shoelace(line: np.ndarray) -> float:
    following = np.roll(line, -1, axis=0)
    return float((line[:, 0] * following[:, 1] - line[:, 1] * following[:, 0]).sum() / 2)


def test_polygons_give_back_every_pixel_of_parts_and_holes():
    rng = np.random.default_rng(0)
    masks = [rng.random((23, 31)) < density for density in (0.1, 0.5, 0.9)]
    masks += [np.ones((23, 31), bool), np.zeros((23, 31), bool)]
    ring = np.zeros((23, 31), bool)
    ring[2:20, 3:25] = True
    ring[5:9, 6:12] = ring[12:16, 14:20] = False
    ring[6, 8] = True  # an island in a hole
    output = an_output(31, 23, prompts=6)
    output.masks = torch.from_numpy(np.stack([*masks, ring]))
    polygons = output.to_polygons()
    for mask, lines in zip(output.masks.numpy(), polygons, strict=True):
        assert (filled(lines, 23, 31) == mask).all()
        assert all(line.shape[1] == 2 and (line[0] != line[-1]).any() for line in lines)
    assert [len(lines) for lines in polygons[3:]] == [1, 0, 4]
    assert polygons[3][0].min(axis=0).tolist() == [0, 0] and polygons[3][0].max(axis=0).tolist() == [31, 23]
    areas = sorted(shoelace(line) for line in polygons[-1])
    assert areas == [-23.5, -23.5, 0.5, 395.5]  # holes, island, outline; corners of pixels are cut


def test_a_notebook_shows_the_overlay_and_a_table():
    output = an_output(900, 300)
    output.prompts = ["<script>alert('x')</script>", "a & b"]
    output.masks[1] = False
    output.keypoints[1] = torch.tensor([[1.0, 2.4], [3, 4], [5, 6], [7, 8], [9, 10]])
    page = output._repr_html_()
    cells = re.findall(r"<td [^>]*>(.*?)</td>", page)
    assert cells[1:5] == [
        "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;",
        "0.20",
        "16,875 px (6.2%)",
        "(450, 150)",
    ]
    assert cells[6:] == ["a &amp; b", "0.90", "empty", "(1, 2), (3, 4), (5, 6) and 2 more"]
    assert "<script" not in page and ET.fromstring(page).tag == "div"
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    shown = Image.open(BytesIO(b64decode(data)))
    assert shown.format == "PNG" and shown.size == (HTML_WIDTH, round(HTML_WIDTH / 3))
    small = output.plot().resize(shown.size)
    assert np.abs(pixels(shown.convert("RGB")) - pixels(small)).max() == 0
    output.image = None
    assert output._repr_html_().startswith("<table>")


def test_labels_never_lie_on_each_other():
    output = an_output(600, 600, prompts=6)
    output.masks[:] = False  # all want the same corner
    boxes = [label.box for label in _place_labels(output, range(6))]
    assert len(boxes) == 6
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
