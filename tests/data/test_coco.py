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


def small_coco(root, **changes):
    write_image(root / "1.jpg")
    content = instances([picture(1, "1.jpg")], [annotation(1, 1, [corners(0, 0, 2, 2)])])
    content |= {key: make(content[key]) for key, make in changes.items()}
    return write_json(root / "a.json", content)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
@pytest.mark.parametrize("other", [1, "1", 1.0])
def test_an_id_that_stands_twice_is_named_with_both_places(tmp_path, name, other):
    twice = small_coco(
        tmp_path, **{name: lambda entries: [*entries, {**entries[0], "id": 7}, {**entries[0], "id": other}]}
    )
    with pytest.raises(BrokenRecordError, match=rf"a\.json, record .*The id '1' is that of {name} 0 and 2"):
        read_coco(twice, tmp_path)
    assert read_coco(twice, tmp_path, on_error="skip") == []


def test_ids_may_be_numbers_or_texts_and_nothing_else(tmp_path):
    texts = lambda entries: [{**entry, "image_id": "1", "category_id": "1"} for entry in entries]  # noqa: E731
    (record,) = read_coco(small_coco(tmp_path, annotations=texts), tmp_path)
    assert record.id == "1/1"
    for wrong in ([1], {"a": 1}, None, True, 1.5, float("nan"), "", 10**400):
        for name, key in (("annotations", "image_id"), ("annotations", "category_id"), ("images", "id")):
            changed = small_coco(tmp_path, **{name: lambda entries, k=key: [{**entries[0], k: wrong}]})  # noqa: B023
            with pytest.raises(BrokenRecordError):
                read_coco(changed, tmp_path)
            assert read_coco(changed, tmp_path, on_error="skip") == []


def test_annotations_need_no_id_of_their_own(tmp_path):
    for id_ in ({}, {"id": None}):
        file = small_coco(
            tmp_path,
            annotations=lambda entries: [{k: v for k, v in entries[0].items() if k != "id"} | id_] * 2,  # noqa: B023
        )
        assert len(read_coco(file, tmp_path)) == 1


BROKEN = {
    "a name that climbs": ("images", {"file_name": "../1.jpg"}, "inside"),
    "an absolute name": ("images", {"file_name": "/etc/1.jpg"}, "inside"),
    "no name": ("images", {"file_name": None}, "inside"),
    "no category's name": ("categories", {"name": None}, "malformed"),
    "a blank category": ("categories", {"name": " "}, "Prompts must be"),
    "a crowd in words": ("annotations", {"iscrowd": "false"}, "iscrowd must be true or false"),
    "null": ("annotations", {"segmentation": None}, "has no segmentation"),
    "an empty list": ("annotations", {"segmentation": []}, "has no segmentation"),
    "an empty dict": ("annotations", {"segmentation": {}}, "has no segmentation"),
    "a number": ("annotations", {"segmentation": 7}, "malformed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_an_entry_lacks_is_said(tmp_path, caplog, name):
    part, change, reason = BROKEN[name]
    file = small_coco(tmp_path, **{part: lambda entries: [{**entries[0], **change}]})
    with pytest.raises(BrokenRecordError, match=reason):
        read_coco(file, tmp_path)
    assert read_coco(file, tmp_path, on_error="skip") == [] and reason in caplog.text


@pytest.mark.parametrize(
    "segmentation, reason",
    [
        ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]], "between 0 and 1"),
        ([[20, 20, 25, 20, 25, 25]], "cover no pixel"),
        ([[10**400, 1, 2, 3, 4, 5]], "as numbers"),
        ("polygon", "Expected polygons"),
        ([[[[[1]]]]], "."),
        (box(0, 0, 2, 2)[:-2].astype(int).tolist(), "most of them are the same"),
    ],
)
def test_segmentations_that_mean_no_pixels_are_refused(tmp_path, segmentation, reason):
    file = small_coco(tmp_path, annotations=lambda entries: [{**entries[0], "segmentation": segmentation}])
    (record,) = read_coco(file, tmp_path)
    with pytest.raises(BrokenRecordError, match=reason):
        record.load()


def test_segmentations_may_be_rows_of_numbers(tmp_path):
    rows = box(2, 1, 7, 5).astype(int).tolist()
    file = small_coco(tmp_path, annotations=lambda entries: [{**entries[0], "segmentation": rows}])
    np.testing.assert_array_equal(read_coco(file, tmp_path)[0].masks(), [box(2, 1, 7, 5)])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "1" * 5000 + "}", "\0", "7", "null"])
def test_files_that_are_none_are_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        read_coco(tmp_path / "a.json", tmp_path)
    for path in ("x" * 300, "a\0b"):
        with pytest.raises(InputError):
            read_coco(path, tmp_path)
        with pytest.raises(InputError):
            read_coco(tmp_path / "a.json", path)
