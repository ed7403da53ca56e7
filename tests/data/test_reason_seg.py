"""ReasonSeg's JSON files: what is painted over what, what counts neither way, and texts in two encodings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lens_adapter.data.reason_seg import read_reason_seg
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import box, loaded_masks, write_image


def shape(label: str, left: int, top: int, right: int, bottom: int) -> dict:
    """What LabelMe writes of a rectangle of these corner pixels, all of them within it."""
    points = [[left, top], [right, top], [right + 0.9, bottom], [left, bottom + 0.9]]  # cut to whole pixels
    return {
        "label": label,
        "labels": [label],
        "shape_type": "polygon",
        "image_name": "a.jpg",
        "points": points,
        "group_id": None,
        "group_ids": [None],
        "flags": {},
    }


def write_entry(folder: Path, shapes: list, name: str = "a", encoding: str = "utf-8", **others) -> Path:
    write_image(folder / f"{name}.jpg")
    entry = {"text": ["the thing"], "is_sentence": False, "shapes": shapes, **others}
    (folder / f"{name}.json").write_bytes(json.dumps(entry, ensure_ascii=False).encode(encoding))
    return folder


def test_small_shapes_are_painted_over_large_ones(tmp_path):
    """In whichever order the file has them: the target with a hole to ignore, in it an island of the target."""
    shapes = [shape("ignore", 3, 2, 8, 6), shape("target", 5, 3, 6, 4), shape("target", 1, 1, 10, 7)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        (record,) = read_reason_seg(write_entry(tmp_path, [shapes[k] for k in order]))
        (example,) = record.load()
        hole = box(3, 2, 9, 7) & ~box(5, 3, 7, 5)
        np.testing.assert_array_equal(example.ignore, hole)
        np.testing.assert_array_equal(example.mask, box(1, 1, 11, 8) & ~hole)


def test_of_equal_shapes_the_first_is_on_top(tmp_path):
    """As sorting by area and turning the order round has it, which is how the authors paint."""
    first, second = shape("ignore_1", 1, 1, 4, 4), shape("target", 3, 3, 6, 6)
    (record,) = read_reason_seg(write_entry(tmp_path, [first, second]))
    np.testing.assert_array_equal(record.ignore(), box(1, 1, 5, 5))
    np.testing.assert_array_equal(record.masks()[0], box(3, 3, 7, 7) & ~box(1, 1, 5, 5))


def test_labels_are_read_as_the_authors_do(tmp_path):
    labels = {"target": 0, "Target 2": 2, "IGNORE": 4, "to ignore": 6, "flag": 8, "Flag": 10}
    (record,) = read_reason_seg(write_entry(tmp_path, [shape(label, x, 1, x, 5) for label, x in labels.items()]))
    np.testing.assert_array_equal(record.masks()[0], box(0, 1, 1, 6) | box(2, 1, 3, 6))
    np.testing.assert_array_equal(record.ignore(), box(4, 1, 5, 6) | box(6, 1, 7, 6))


def test_nothing_to_ignore_and_nothing_at_all(tmp_path):
    (record,) = read_reason_seg(write_entry(tmp_path, [shape("target", 1, 1, 3, 3)]))
    assert record.ignore() is None and record.masks().any()
    (record,) = read_reason_seg(write_entry(tmp_path, [shape("flag", 1, 1, 3, 3)]))
    assert record.ignore() is None and not record.masks().any()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_texts_are_read_in_either_encoding(tmp_path, encoding):
    texts = ["the café’s “best” seat", " who says – “me”? "]
    write_entry(tmp_path, [shape("target", 1, 1, 3, 3)], encoding=encoding, text=texts, is_sentence=True)
    (record,) = read_reason_seg(tmp_path)
    assert record.prompts == ["the café’s “best” seat", "who says – “me”?"]
    assert (record.id, record.subset) == ("a", "long")
    assert record.masks().shape == (2, 8, 12)


def test_a_single_text_and_a_short_one(tmp_path):
    (record,) = read_reason_seg(write_entry(tmp_path, [shape("target", 1, 1, 3, 3)], text="the seat"))
    assert record.prompts == ["the seat"] and record.subset == "short"


def test_shapes_are_drawn_on_the_image_as_shown(tmp_path):
    write_entry(tmp_path, [shape("target", 1, 1, 3, 10)])
    write_image(tmp_path / "a.jpg", orientation=6)
    (record,) = read_reason_seg(tmp_path)
    np.testing.assert_array_equal(loaded_masks(record)[0], box(1, 1, 4, 11, width=8, height=12))


def test_broken_files_are_named_or_skipped(tmp_path, caplog):
    good = shape("target", 1, 1, 3, 3)
    for name in "abcdefgh":
        write_entry(tmp_path, [good], name)
    (tmp_path / "b.json").unlink()
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_bytes(b'{"text": ["\x81"]}')  # neither UTF-8 nor cp1252
    write_entry(tmp_path, [{"label": "target"}], "e")
    write_entry(tmp_path, [good], "f", text=[""])
    write_entry(tmp_path, [{**good, "points": [[1, 2, 3]]}], "g")
    reasons = ["b.json' cannot be read", "c.json' is no valid JSON", "d.json' must be text in utf-8-sig or cp1252"]
    reasons += ["e.json is not as ReasonSeg writes it: KeyError('points')", "Prompts must be", "g.json is not as"]
    with pytest.raises(BrokenRecordError, match=r"record 1 .*b\.json"):
        read_reason_seg(tmp_path)
    assert [record.id for record in read_reason_seg(tmp_path, "skip")] == ["a", "h"]
    for reason in reasons:
        assert reason in caplog.text
    write_entry(tmp_path, [{**good, "points": [[1, 2], [1e9, 2], [4, 5]]}], "a")
    with pytest.raises(BrokenRecordError, match="a: Expected pairs of x and y in pixels"):
        read_reason_seg(tmp_path, "skip")[0].masks()
    with pytest.raises(InputError, match="Expected a folder with the images and JSON files"):
        read_reason_seg(tmp_path / "test")
