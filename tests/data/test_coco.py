"""COCO's annotations: all instances of a category in an image are one target, its crowds count neither way."""

from __future__ import annotations

import numpy as np
import pytest

from lens_adapter.data.coco import read_coco, readable
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import annotation, box, corners, instances, loaded_masks, picture, runs, write_image, write_json


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
    (example,) = records[0].load()
    np.testing.assert_array_equal(example.mask, box(0, 0, 2, 2) | box(4, 0, 6, 2) | box(6, 4, 8, 6))
    np.testing.assert_array_equal(example.ignore, box(0, 4, 5, 8))
    assert records[1].ignore() is None
    np.testing.assert_array_equal(loaded_masks(records[2]), [box(0, 0, 8, 3, width=8, height=12)])
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
