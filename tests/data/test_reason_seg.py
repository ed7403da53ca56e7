"""ReasonSeg's JSON files: what is painted over what, what counts neither way, and texts in two encodings."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

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


def labelme(kind: str | None, *points: list[float], label: str = "target", **others) -> dict:
    return {"label": label, "shape_type": kind, "points": list(points), **others}


def painted(folder: Path, *shapes: dict) -> np.ndarray:
    (record,) = read_reason_seg(write_entry(folder, list(shapes)))
    return record.masks()[0]


def as_base64(mask: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_shapes_are_drawn_as_their_type_says(tmp_path):
    polygon = [[2, 1], [6, 1], [6, 4], [2, 4]]
    for kind in ("polygon", None, ""):
        np.testing.assert_array_equal(painted(tmp_path, labelme(kind, *polygon)), box(2, 1, 7, 5))
    for first, second in (([2, 1], [6, 4]), ([6, 4], [2, 1]), ([2.9, 4.2], [6.1, 1.9])):
        np.testing.assert_array_equal(painted(tmp_path, labelme("rectangle", first, second)), box(2, 1, 7, 5))
    np.testing.assert_array_equal(painted(tmp_path, labelme("rectangle", *polygon)), box(2, 1, 7, 5))
    np.testing.assert_array_equal(painted(tmp_path, labelme("rectangle", [-3, 1], [20, 4])), box(0, 1, 12, 5))
    ellipse = Image.new("1", (12, 8))
    ImageDraw.Draw(ellipse).ellipse([3 - 2, 4 - 2, 3 + 2, 4 + 2], fill=1)
    circle = painted(tmp_path, labelme("circle", [3, 4], [3, 6]))
    np.testing.assert_array_equal(circle, np.asarray(ellipse))
    assert circle[4, 1:6].all() and not circle[4, [0, 6]].any() and circle.sum() == 21
    hole = box(2, 1, 7, 5) & ~box(4, 2, 5, 3)
    mask = labelme("mask", [2, 1], [6, 4], mask=as_base64(hole[1:5, 2:7]))
    np.testing.assert_array_equal(painted(tmp_path, mask), hole)


REFUSED = {
    "line": (labelme("line", [2, 1], [6, 4]), "is a 'line', which cannot be drawn as a mask; expected polygon"),
    "point": (labelme("point", [2, 1], label="ignore"), "is a 'point'"),
    "linestrip": (labelme("linestrip", [2, 1], [3, 4], [6, 4]), "is a 'linestrip'"),
    "points": (labelme("points", [2, 1], [3, 4], [6, 4]), "is a 'points'"),
    "a type that is none": (labelme("blob", [2, 1], [3, 4], [6, 4]), "is a 'blob'"),
    "a number as its type": (labelme(7, [2, 1], [3, 4], [6, 4]), "is a 7"),
    "three points": (labelme("rectangle", [2, 1], [6, 4], [3, 3]), "The rectangle 'target' has 3 points"),
    "one point": (labelme("circle", [2, 1]), "The circle 'target' has 1 points"),
    "no point": (labelme("polygon"), "The polygon 'target' has 0 points"),
    "no picture": (labelme("mask", [2, 1], [6, 4]), "is not as ReasonSeg writes it: KeyError('mask')"),
    "no base64": (labelme("mask", [2, 1], [6, 4], mask="?"), "is not as ReasonSeg writes it"),
    "huge numbers": (labelme("polygon", [10**400, 1], [6, 4], [3, 3]), "is not as ReasonSeg writes it"),
    "null": (None, "is not as ReasonSeg writes it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_shapes_without_pixels_are_refused_by_name(tmp_path, name):
    shape_, reason = REFUSED[name]
    with pytest.raises(BrokenRecordError) as caught:
        read_reason_seg(write_entry(tmp_path, [shape_]))
    assert reason in str(caught.value)
    assert read_reason_seg(tmp_path, "skip") == []


def test_shapes_beside_the_image_are_refused(tmp_path):
    off = [[20, 20], [25, 20], [25, 25]]
    small = as_base64(np.ones((2, 2)))
    for shape_, reason in (
        (labelme("polygon", *off), "A polygon covers no pixel"),
        (labelme("rectangle", *off[1:]), "A rectangle covers no pixel"),
        (labelme("circle", [30, 30], [31, 30]), "A circle covers no pixel"),
        (labelme("mask", [2, 1], [6, 4], mask=small), "2 x 2 pixels does not fit"),
        (labelme("mask", [11, 7], [12, 8], mask=small), "leaves its image"),
        (labelme("polygon", [1, 2], [float("nan"), 2], [4, 5]), "pairs of x and y"),
    ):
        with pytest.raises(BrokenRecordError, match=reason):
            painted(tmp_path, shape_)


def test_a_flag_may_be_of_any_type(tmp_path):
    assert painted(tmp_path, labelme("point", [1, 1], label="flag"), shape("target", 2, 1, 6, 4)).sum() == 20


def test_files_without_shapes_are_said_to_name_nothing(tmp_path, caplog):
    write_entry(tmp_path, [shape("target", 1, 1, 3, 3)], "a")
    write_entry(tmp_path, [], "b")
    assert not read_reason_seg(tmp_path)[1].masks().any()
    assert "1 JSON files" in caplog.text and "taken for texts that name nothing there: b" in caplog.text


def test_pictures_of_every_suffix_are_read_and_others_named(tmp_path, caplog):
    good = shape("target", 1, 1, 3, 3)
    for name in "abcde":
        write_entry(tmp_path, [good], name)
    for name, new in (("b", "b.PNG"), ("c", "c.jfif"), ("d", "d.GIF")):
        (tmp_path / f"{name}.jpg").unlink()
        Image.new("RGB", (12, 8)).save(tmp_path / new, "GIF" if name == "d" else "PNG")
    (tmp_path / "e.json").rename(tmp_path / "e.JSON")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    records = read_reason_seg(tmp_path)
    assert [record.id for record in records] == list("abcde") and all(record.load() for record in records)
    assert "1 files" in caplog.text and "left out: notes.txt" in caplog.text and ".DS_Store" not in caplog.text
    (tmp_path / "e.jpg").unlink()
    (tmp_path / "a.jpg").with_suffix(".png").write_bytes((tmp_path / "b.PNG").read_bytes())
    for on_error in ("raise", "skip"):
        caplog.clear()
        if on_error == "raise":
            with pytest.raises(BrokenRecordError, match=r"one picture with the name 'a' .*got a\.jpg and a\.png"):
                read_reason_seg(tmp_path)
        else:
            assert [record.id for record in read_reason_seg(tmp_path, "skip")] == list("bcd")
            assert "one picture with the name 'e'" in caplog.text


@pytest.mark.parametrize("flag", ["false", "0", None, 2, [], {}])
def test_a_flag_is_true_or_false(tmp_path, flag):
    with pytest.raises(BrokenRecordError, match="is_sentence must be true or false"):
        read_reason_seg(write_entry(tmp_path, [shape("target", 1, 1, 3, 3)], is_sentence=flag))


def test_a_blank_text_leaves_the_others(tmp_path, caplog):
    write_entry(tmp_path, [shape("target", 1, 1, 3, 3)], text=["one", " ", None, "two"])
    with pytest.raises(BrokenRecordError, match="Prompts must be"):
        read_reason_seg(tmp_path)
    (record,) = read_reason_seg(tmp_path, "skip")
    assert record.prompts == ["one", "two"] and len(record.load()) == 2
    assert "Its prompt 1 (counted from 0) says nothing: ''" in caplog.text and "Its prompt 2" in caplog.text
    for text in ([], {"a": 1}, 7):
        with pytest.raises(BrokenRecordError):
            read_reason_seg(write_entry(tmp_path, [shape("target", 1, 1, 3, 3)], text=text))
