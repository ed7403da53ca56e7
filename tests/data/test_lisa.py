"""LISA's tree of data sets, read where it lies."""

from __future__ import annotations

import numpy as np
import pytest

from lens_adapter.data.examples import Examples
from lens_adapter.data.lisa import LISA_DATASETS, read_lisa
from lens_adapter.errors import InputError
from tests.data.formats import (
    annotation,
    box,
    corners,
    instances,
    picture,
    reference,
    write_image,
    write_json,
    write_levels,
)

LEVELS = 3 * box(2, 1, 7, 5) + 1 * box(8, 0, 12, 8)  # 0 elsewhere


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
        (record,) = records
        examples = list(Examples(records))
        asked[name] = record.prompts
        assert [example.prompt for example in examples] == record.prompts
        assert name in ("cocostuff", "mapillary") or (examples[-1].mask == box(2, 1, 7, 5)).all()
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
