from __future__ import annotations

import json
import sys
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from PIL import Image
from pycocotools import mask as coco

from lens_adapter.errors import InputError, LensError
from lens_adapter.output import Instances, LensOutput, is_found
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.contact_sheet import contact_sheet
from tests.tiny.outputs import PAPER, painted_output, pixels


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
        ("instances", [Instances(torch.zeros(0, 6, 8, dtype=torch.bool), torch.zeros(0))]),
        ("instances", [Instances(torch.zeros(1, 8, 6, dtype=torch.bool), torch.zeros(1))] * 2),
        ("instances", [Instances(torch.zeros(1, 6, 8, dtype=torch.bool), torch.zeros(2))] * 2),
        ("instances", [Instances(torch.zeros(1, 6, 8), torch.zeros(1))] * 2),  # not bool
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


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 64), (37, 53), (2000, 300), (300, 900), (640, 480)])
def test_plot_has_the_size_of_the_image_and_draws_on_it(size):
    output = painted_output(*size)
    picture = output.plot()
    assert picture.size == size and picture.mode == "RGB"
    assert (pixels(picture) != PAPER).any()
    assert (pixels(output.image) == PAPER).all()  # itself untouched


def test_plot_changes_with_masks_keypoints_scores_and_prompts():
    output = painted_output(200, 160)
    others = [
        replace(output, masks=output.masks.roll(30, dims=1)),
        replace(output, keypoints=[points + 20 for points in output.keypoints]),
        replace(output, scores=output.scores + 0.05),
        replace(output, prompts=["the thing number 0", "another"]),
    ]
    pictures = [pixels(each.plot()) for each in (output, *others)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_plot_without_prompts_is_the_image():
    assert (pixels(painted_output(120, 120, prompts=0).plot()) == PAPER).all()


def test_an_output_without_prompts_goes_everywhere(tmp_path):
    output = painted_output(120, 90, prompts=0)
    output.save(tmp_path / "nothing.png")
    assert repr(output).startswith("LensOutput(120 x 90 pixels, 0 prompts")
    assert output.to_records() == output.to_coco_rle() == output.to_polygons() == []
    assert "<table>" in output._repr_html_() and len(output.to_supervision()) == 0
    assert contact_sheet([output.to_panel(ious=[])], title="A page").width > 0


def test_plot_labels_an_empty_mask():
    output = painted_output(200, 160, prompts=1)
    output.masks[:] = False
    output.keypoints = [torch.zeros(0, 2)]
    output.keypoint_scores = [torch.zeros(0)]
    assert (pixels(output.plot()) == color_of(0)).all(-1).sum() > 200  # the label's ground


def test_an_output_is_a_sequence_of_its_prompts():
    output = with_instances()
    output.logits = torch.rand(2, 20, 40)
    assert len(output) == 2 and [one.prompts for one in output] == [[prompt] for prompt in output.prompts]
    for index, one in enumerate(output):
        assert one.image_size == output.image_size and one.image is output.image
        assert (one.masks[0] == output.masks[index]).all() and one.scores[0] == output.scores[index]
        assert one.keypoints[0] is output.keypoints[index] and one.found[0] == output.found[index]
        assert (one.logits[0] == output.logits[index]).all() and one.instances == [output.instances[index]]
    assert output[-1].prompts == output[1:].prompts == output[output.prompts[1]].prompts == output.prompts[1:]
    assert output[0].masks.data_ptr() == output.masks.data_ptr()  # a view
    assert output[::-1].scores.tolist() == output.scores.tolist()[::-1] and len(output[2:]) == 0
    assert bool(an_output(0)) and len(an_output(0)) == 0 and [*an_output(0)] == []


def test_a_prompt_that_is_not_there_is_named():
    output = an_output()
    output.prompts = ["a dog", "a cat"]
    for choose in (output.__getitem__, lambda which: output.plot(prompts=which)):
        for index in (2, -3):
            with pytest.raises(IndexError, match=f"has 2 prompts; got index {index}"):
                choose(index)
        with pytest.raises(InputError, match=r"no prompt 'a cow'.*\['a dog', 'a cat'\]"):
            choose("a cow")
    for wrong in (True, 1.0, None):
        with pytest.raises(InputError, match="by its index or its text"):
            output[wrong]


def test_plot_draws_chosen_prompts_in_their_own_colors():
    output = painted_output(400, 300, prompts=3)
    first = pixels(output.plot(prompts=0))
    for same in (output.prompts[0], [0], [output.prompts[0]], (-3,)):
        assert (pixels(output.plot(prompts=same)) == first).all()
    assert (pixels(output.plot(prompts=[])) == PAPER).all()
    shown = [(pixels(output.plot(prompts=[2, 1])) == color_of(index)).all(-1).sum() > 200 for index in range(3)]
    assert shown == [False, True, True]


def test_plot_lays_a_heatmap_under_its_prompt():
    output = painted_output(400, 300)
    output.heatmaps[:] = 0
    output.heatmaps[0, 0, 0] = output.heatmaps[1, 2, 3] = 1  # top left, bottom right
    corners = (slice(0, 30), slice(0, 30)), (slice(270, 300), slice(370, 400))
    for prompts, hot in ((0, [True, False]), (1, [False, True]), (None, [True, True])):
        picture = pixels(output.plot(prompts=prompts, heatmap=True))
        assert [bool(picture[corner].max(-1).mean() > 200) for corner in corners] == hot
    assert (pixels(output.plot(prompts=[], heatmap=True)) == PAPER).all()


def test_masks_are_written_as_pictures(tmp_path):
    output = painted_output(40, 20, prompts=2)
    output.prompts = ["../../etc/passwd: the Dog's * <name>?", "собака " * 30]
    output.masks[1] = output.found[1] = False
    files = output.save_masks(tmp_path / "new" / "masks")
    assert [file.name for file in files] == [
        "1-etc-passwd-the-Dog-s-name.png",
        "2-" + ("собака-" * 30)[:40].strip("-") + ".png",
    ]
    assert sorted(tmp_path.rglob("*.png")) == sorted(files)
    for file, mask in zip(files, output.masks, strict=True):
        picture = Image.open(file)
        assert picture.mode == "L" and (pixels(picture) == mask.numpy() * 255).all()
    many = painted_output(10, 10, prompts=12)
    many.prompts = ["a cup"] * 11 + ["?!"]
    names = [file.name for file in many.save_masks(tmp_path)]
    assert names[0] == "01-a-cup.png" and names[-1] == "12.png" and len(set(names)) == 12
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        output.save_masks(tmp_path / "file" / "masks")


def test_save_makes_its_folder_and_asks_for_a_suffix(tmp_path):
    output = painted_output(90, 60)
    output.save(tmp_path / "new" / "folder" / "overlay.JPG", prompts=1)
    assert Image.open(tmp_path / "new" / "folder" / "overlay.JPG").format == "JPEG"
    for name in ("overlay", "overlay.txt"):
        with pytest.raises(InputError, match="must end like a picture"):
            output.save(tmp_path / "other" / name)
    assert not (tmp_path / "other").exists()


def test_save_writes_what_plot_draws(tmp_path):
    output = painted_output(90, 60)
    output.save(tmp_path / "overlay.png")
    assert (pixels(Image.open(tmp_path / "overlay.png")) == pixels(output.plot())).all()


def test_plot_without_an_image_says_so():
    with pytest.raises(LensError, match=r"LensOutput\.image.*None"):
        replace(painted_output(20, 20), image=None).plot()


def test_supervision_gets_boxes_masks_scores_and_names():
    output = painted_output(40, 20)
    output.masks[1] = False
    detections = output.to_supervision()
    assert detections.xyxy.tolist() == [[0, 5, 10, 10], [0, 0, 0, 0]]
    assert (np.asarray(detections.mask) == output.masks.numpy()).all()
    assert detections.confidence.tolist() == output.scores.tolist()
    assert detections.data["class_name"].tolist() == output.prompts
    assert detections.class_id.tolist() == [0, 1]


def test_supervision_leaves_out_what_was_not_found():
    output = painted_output(40, 20, prompts=3)
    output.masks[1] = False
    output.found[1] = False
    detections = output.to_supervision()
    assert detections.class_id.tolist() == [0, 2]  # of the prompts
    assert detections.data["class_name"].tolist() == [output.prompts[0], output.prompts[2]]
    assert detections.xyxy.tolist() == [[0, 5, 10, 10], [20, 5, 30, 10]]
    assert detections.confidence.tolist() == output.scores[[0, 2]].tolist()
    output.found[:] = False
    assert len(output.to_supervision()) == 0


def with_instances() -> LensOutput:
    """Two prompts about 40 x 20 pixels: the first one's rectangle in two parts, the second one not found."""
    output = painted_output(40, 20)
    output.masks[1] = output.found[1] = False
    left = output.masks[0] & (torch.arange(40) < 4)
    parts = torch.stack([output.masks[0] & ~left, left])
    output.instances = [Instances(parts, torch.tensor([0.75, 0.5])), Instances(parts[:0], torch.zeros(0))]
    return output


def test_supervision_gets_a_row_per_instance_if_asked():
    output = with_instances()
    detections = output.to_supervision(instances=True)
    assert detections.xyxy.tolist() == [[4, 5, 10, 10], [0, 5, 4, 10]]
    assert (np.asarray(detections.mask) == output.instances[0].masks.numpy()).all()
    assert detections.confidence.tolist() == [0.75, 0.5] and detections.class_id.tolist() == [0, 0]
    assert detections.data["class_name"].tolist() == output.prompts[:1] * 2
    assert len(output.to_supervision()) == 1
    with pytest.raises(LensError, match="instances=True"):
        painted_output(40, 20).to_supervision(instances=True)


def test_records_hold_instances_if_there_are_some():
    first, second = with_instances().to_records()
    assert [(one["box"], one["area"], one["score"]) for one in first["instances"]] == [
        ([4, 5, 10, 10], 30, 0.75),
        ([0, 5, 4, 10], 20, 0.5),
    ]
    assert sum(coco.decode(one["segmentation"]) for one in first["instances"]).sum() == first["area"] == 50
    assert second["instances"] == [] and json.loads(json.dumps(first)) == first
    assert all("instances" not in record for record in painted_output(40, 20).to_records())


def test_plot_outlines_every_instance():
    output = with_instances()
    apart, together = output.plot(), replace(output, instances=None).plot()
    assert (pixels(apart) != pixels(together)).any()


def test_supervision_without_prompts_is_empty():
    assert len(painted_output(40, 20, prompts=0).to_supervision()) == 0


def test_supervision_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(LensError, match=r"pip install 'lens_adapter\[supervision\]'"):
        painted_output(40, 20).to_supervision()


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
    output = painted_output(31, 23, prompts=6)
    output.masks = torch.from_numpy(np.stack([*masks, ring]))
    polygons = output.to_polygons()
    for mask, lines in zip(output.masks.numpy(), polygons, strict=True):
        assert (filled(lines, 23, 31) == mask).all()
        assert all(line.shape[1] == 2 and (line[0] != line[-1]).any() for line in lines)
    assert [len(lines) for lines in polygons[3:]] == [1, 0, 4]
    assert polygons[3][0].min(axis=0).tolist() == [0, 0] and polygons[3][0].max(axis=0).tolist() == [31, 23]
    areas = sorted(shoelace(line) for line in polygons[-1])
    assert areas == [-23.5, -23.5, 0.5, 395.5]  # holes, island, outline; corners of pixels are cut


def test_exports_take_less_than_the_masks_they_are_made_of():
    # Of plain arrays numpy tells the most that was held at once; torch's are its own.
    masks = torch.zeros(4, 1500, 2000, dtype=torch.bool)
    masks[:, 200:1300, 300:1700] = True
    output = an_output(4, 1500, 2000, masks=masks)
    tracemalloc.start()
    try:
        output.to_records(), output.to_polygons()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < masks.numel() * 3  # eight bytes for each pixel, and forty for those of one mask, before
