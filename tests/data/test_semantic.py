"""Label maps, COCO's annotations and LISA's tree: a class is asked for where it shows, and is what has its value."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.coco import read_coco, readable
from lens_adapter.data.lisa import LISA_DATASETS, read_lisa
from lens_adapter.data.samples import Samples, one_per_prompt
from lens_adapter.data.semantic import LabelMaps, read_classes
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import (
    annotation,
    box,
    corners,
    instances,
    picture,
    reference,
    runs,
    write_image,
    write_json,
    write_levels,
)

LEVELS = 3 * box(2, 1, 7, 5) + 1 * box(8, 0, 12, 8)  # 0 elsewhere


def write_maps(root, levels=LEVELS, name: str = "a", mode: str = "L", suffix: str = ".jpg"):
    write_image(root / "images" / f"{name}{suffix}")
    write_levels(root / "labels" / f"{name}.png", levels, mode)
    return root / "images", root / "labels"


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_every_class_that_shows_is_a_prompt(tmp_path, mode):
    """As in ADE20K: 0 is what counts neither way, the first class is 1."""
    maps = LabelMaps(*write_maps(tmp_path, mode=mode), ["wall", "sky", "tree"], first=1, ignore=0)
    (record,) = maps
    sample = record.load()
    assert (sample.prompts, record.id) == (["wall", "tree"], "a")
    np.testing.assert_array_equal(sample.masks, [LEVELS == 1, LEVELS == 3])
    np.testing.assert_array_equal(sample.ignore, LEVELS == 0)
    wall, tree = one_per_prompt(maps)
    assert (wall.prompts, tree.prompts, tree.id) == (["wall"], ["tree"], "a#1")
    np.testing.assert_array_equal(tree.masks(), [LEVELS == 3])


def test_the_first_class_may_be_0_and_some_may_not_be_asked_for(tmp_path):
    """As in COCO-Stuff: 255 counts neither way."""
    levels = np.where(LEVELS == 3, 255, LEVELS)
    (record,) = LabelMaps(*write_maps(tmp_path, levels), ["person", None])
    assert record.prompts == ["person"]
    np.testing.assert_array_equal(record.masks(), [levels == 0])
    np.testing.assert_array_equal(record.ignore(), levels == 255)
    (record,) = LabelMaps(*write_maps(tmp_path), ["person", "bicycle", "car", "dog"], ignore=None)
    assert record.prompts == ["person", "bicycle", "dog"] and record.ignore() is None


def test_a_map_without_a_class_is_passed_over(tmp_path):
    write_maps(tmp_path, np.full((8, 12), 255))
    maps = LabelMaps(*write_maps(tmp_path, name="b"), ["x"] * 4)
    assert [len(record.prompts) for record in maps] == [0, 3]
    assert [sample.record.id for sample in Samples(maps)] == ["b"] and Samples(maps)[0].record.id == "b"


def test_a_value_beyond_the_classes_is_named(tmp_path):
    write_maps(tmp_path, name="b")
    for classes, first, reason in (
        (["x", "y"], 1, "the value 3; the 2 classes have the values 1 to 2"),
        (["x"] * 9, 2, "the value 1; the 9 classes have the values 2 to 10"),
    ):
        maps = LabelMaps(*write_maps(tmp_path), classes, first=first, ignore=0)
        with pytest.raises(BrokenRecordError, match=rf"b\.png, record 1 .*{reason}"):
            maps[1]
    samples = Samples(maps, "skip")
    assert list(samples) == [] and len(samples.broken) == 2
    assert one_per_prompt(maps, "skip") == []
    with pytest.raises(BrokenRecordError):
        one_per_prompt(maps)


def test_a_damaged_map_or_an_absent_image_breaks_its_record_alone(tmp_path):
    images, labels = write_maps(tmp_path, name="a")
    write_maps(tmp_path, name="c")
    write_levels(labels / "b.png", LEVELS)  # no image
    Image.new("RGB", (12, 8)).save(labels / "d.png")
    write_image(images / "d.jpg")
    (labels / "e.png").write_bytes(b"no picture")
    write_image(images / "e.jpg")
    samples = Samples(LabelMaps(images, labels, ["x"] * 4), "skip")
    assert [sample.record.id for sample in samples] == ["a", "c"]
    reasons = [str(error) for _, error in sorted(samples.broken.items())]
    for reason, expected in zip(reasons, ("no image", "channels RGB", "cannot be read"), strict=True):
        assert expected in reason


def test_trees_and_suffixes_and_sequences(tmp_path):
    write_maps(tmp_path, name="town/a_left", suffix=".png")
    maps = LabelMaps(*write_maps(tmp_path, name="b.v1"), ["x"] * 4)
    assert [record.id for record in maps] == ["b.v1", "town/a_left"] and maps[-1].image.suffix == ".png"
    assert [record.index for record in maps[:]] == [0, 1] and len(list(Samples(maps))) == 2
    with pytest.raises(IndexError):
        maps[2]
    for images, labels in (("no", "labels"), ("images", "no"), ("images", "images/town")):
        with pytest.raises(InputError, match=r"Expected a folder|no label map"):
            LabelMaps(tmp_path / images, tmp_path / labels / "no", ["x"])


def test_many_maps_stay_closed(tmp_path, monkeypatch):
    images, labels = write_maps(tmp_path)
    for k in range(500):
        (images / f"{k}.jpg").touch()
        (labels / f"{k}.png").touch()
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    assert len(LabelMaps(images, labels, ["x"])) == 501


def test_classes_are_read_from_the_files_that_name_them(tmp_path):
    files = {
        "ade20k_classes.json": '["wall", "building", "street lamp"]',
        "config_v2.0.json": '{"labels": [{"readable": "Bird", "name": "a--b"}, {"readable": "Street Lamp"}]}',
        "labels.txt": "0: unlabeled\n1: person\n12: street sign\n",
        "plain.txt": "wall\r\nstreet lamp\r\n\r\n",
        "objectInfo150.txt": "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n"
        "2\t0.1072\t6046\t612\tbuilding, edifice\n3\t0.08\t8265\t796\tlamp;light\n",
    }
    expected = [
        ["wall", "building", "street lamp"],
        ["Bird", "Street Lamp"],
        ["unlabeled", "person", "street sign"],
        ["wall", "street lamp"],
        ["wall", "building", "lamp"],
    ]
    for (name, text), names in zip(files.items(), expected, strict=True):
        (tmp_path / name).write_bytes(text.encode())
        assert read_classes(tmp_path / name) == names


def write_coco(root):
    write_image(root / "coco" / "train2017" / "1.jpg")
    write_image(root / "coco" / "train2017" / "2.jpg", orientation=6)
    annotations = [
        annotation(1, 1, [corners(0, 0, 2, 2)], category_id=7),
        annotation(2, 1, [corners(4, 0, 6, 2), corners(6, 4, 8, 6)], category_id=7),
        annotation(3, 1, runs(box(0, 4, 5, 8)), category_id=7, iscrowd=1),
        annotation(4, 1, runs(box(2, 1, 7, 5)), category_id=9),
        annotation(5, 2, runs(box(0, 0, 12, 2)), category_id=9, iscrowd=1),  # a crowd alone
        annotation(6, 2, [corners(0, 0, 3, 8)], category_id=7),  # drawn on the image as it is stored
    ]
    pictures = [picture(1, "train2017/1.jpg"), picture(2, "train2017/2.jpg")]
    content = instances(pictures, annotations, {7: "cup_(drink):inner_side", 9: "trash_can"})
    return write_json(root / "paco.json", content), root / "coco"


def test_instances_of_a_category_are_one_target_and_crowds_are_ignored(tmp_path):
    records = read_coco(*write_coco(tmp_path))
    assert [(record.prompts, record.id, record.index) for record in records] == [
        (["the inner side of the cup"], "1/7", 0),
        (["trash can"], "1/9", 3),
        (["the inner side of the cup"], "2/7", 5),
    ]
    sample = records[0].load()
    np.testing.assert_array_equal(sample.masks[0], box(0, 0, 2, 2) | box(4, 0, 6, 2) | box(6, 4, 8, 6))
    np.testing.assert_array_equal(sample.ignore, box(0, 4, 5, 8))
    assert records[1].ignore() is None
    np.testing.assert_array_equal(records[2].load().masks[0], box(0, 0, 8, 3, width=8, height=12))
    assert read_coco(*write_coco(tmp_path), say=str.upper)[1].prompts == ["TRASH_CAN"]


def test_categories_are_said_as_people_say_them():
    said = {"dog": "dog", "trash_can": "trash can", "cup_(drink)": "cup", "dog:left_ear": "the left ear of the dog"}
    assert {name: readable(name) for name in said} == said


def test_broken_annotations_are_named_or_skipped(tmp_path, caplog):
    image = write_image(tmp_path / "1.jpg")
    good = annotation(1, 1, [corners(0, 0, 2, 2)])
    broken = {
        "Its category_id 5 is not in the file": annotation(2, 1, [corners(0, 0, 2, 2)], category_id=5),
        "Its image_id 9 is not in the file": annotation(3, 9, [corners(0, 0, 2, 2)]),
        "It has no 'image_id'": {"id": 4, "segmentation": [corners(0, 0, 2, 2)]},
        "malformed": "annotation",
    }
    file = write_json(tmp_path / "a.json", instances([picture(1, image.name)], [*broken.values(), good]))
    with pytest.raises(BrokenRecordError, match=r"a\.json, record 0 "):
        read_coco(file, tmp_path)
    (record,) = read_coco(file, tmp_path, on_error="skip")
    assert record.index == 4
    for reason in broken:
        assert reason in caplog.text
    for content in ([], {"images": []}):
        with pytest.raises(InputError, match="must hold the lists images, annotations and categories"):
            read_coco(write_json(file, content), tmp_path)


def test_lisas_tree_is_read_where_it_lies(tmp_path):
    root = tmp_path / "dataset"
    write_image(root / "ade20k/images/training/ADE_train_00000001.jpg")
    write_levels(root / "ade20k/annotations/training/ADE_train_00000001.png", LEVELS)
    write_image(root / "coco/train2017/000000000009.jpg")
    write_levels(root / "cocostuff/train2017/000000000009.png", LEVELS)
    write_image(root / "mapillary/training/images/abc.jpg")
    write_levels(root / "mapillary/training/v2.0/labels/abc.png", LEVELS, "P")
    labels = [{"readable": name} for name in ("Bird", "Ground Animal", "Curb", "Unlabeled")]
    write_json(root / "mapillary/config_v2.0.json", {"labels": labels})
    (root / "cocostuff/labels.txt").write_text("0: unlabeled\n1: person\n2: wall-brick\n3: car\n4: door-stuff\n5: tv\n")
    part = instances([picture(1, "1.jpg")], [annotation(1, 1, [corners(2, 1, 7, 5)])], {1: "dog:head"})
    write_json(root / "vlpart/pascal_part/train.json", part)
    write_image(root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/1.jpg")
    paco = instances([picture(1, "train2017/000000000009.jpg")], [annotation(1, 1, [corners(2, 1, 7, 5)])])
    write_json(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", paco)
    for name in ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco"):
        said = reference(1, [1] if name == "grefcoco" else 1, 1, ["it"])
        stem = {"refcocog": "refs(umd)", "grefcoco": "grefs(unc)"}.get(name, "refs(unc)")
        write_json(root / "refer_seg" / name / f"{stem}.json", [said])
        write_json(root / "refer_seg" / name / "instances.json", {**paco, "images": [picture(1, "1.jpg")]})
    write_image(root / "refer_seg/images/mscoco/images/train2014/1.jpg")
    write_image(root / "refer_seg/images/saiapr_tc-12/1.jpg")
    shapes = [{"label": "target", "points": [[2, 1], [6, 1], [6, 4], [2, 4]]}]
    write_image(root / "reason_seg/ReasonSeg/train/a.jpg")
    entry = {"text": ["why"], "is_sentence": True, "shapes": shapes}
    write_json(root / "reason_seg/ReasonSeg/train/a.json", entry)

    ade20k = ["Wall", "Building", "Sky"]
    asked = {}
    for name in LISA_DATASETS:
        records = read_lisa(root, name, classes=ade20k if name == "ade20k" else None)
        samples = list(Samples(records))
        asked[name] = samples[0].prompts
        assert len(samples) == len(records) == 1
        assert name in ("cocostuff", "mapillary") or (samples[0].masks[-1] == box(2, 1, 7, 5)).all()
    assert asked == {
        "ade20k": ["wall", "sky"],
        "cocostuff": ["person"],  # 1 and 3 have a hyphen
        "mapillary": ["bird", "ground animal"],  # 3 is unlabeled
        "paco_lvis": ["person"],
        "pascal_part": ["the head of the dog"],
        **{name: ["it"] for name in ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")},
        "reason_seg": ["why"],
    }
    np.testing.assert_array_equal(read_lisa(root, "mapillary")[0].ignore(), LEVELS == 3)
    np.testing.assert_array_equal(read_lisa(root, "cocostuff")[0].masks(), [LEVELS == 0])
    assert read_lisa(root, "cocostuff", classes=["person", "x-y", "car", "dog"])[0].prompts == ["person", "dog"]

    with pytest.raises(InputError, match=r"objectInfo150\.txt' cannot be read"):
        read_lisa(root, "ade20k")
    with pytest.raises(InputError, match="no split 'testA'; expected one of train, val"):
        read_lisa(root, "ade20k", "testA", classes=ade20k)
    with pytest.raises(InputError, match=r"Expected a folder with images at .*validation"):
        read_lisa(root, "ade20k", "val", classes=ade20k)
    with pytest.raises(InputError, match="no data set 'voc'; expected one of ade20k,"):
        read_lisa(root, "voc")
