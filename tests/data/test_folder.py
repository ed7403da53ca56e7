"""A plain folder of images, masks and prompts; every line is checked before a picture is opened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.folder import read_folder
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import box, corners, loaded_masks, runs, write_image, write_levels

BOX = box(2, 1, 7, 5)


def write_folder(root: Path, *lines: dict | str) -> Path:
    write_image(root / "images" / "a.jpg")
    write_image(root / "images" / "more" / "b.png")
    write_levels(root / "masks" / "a.png", BOX * 255)
    write_levels(root / "masks" / "void.png", box(0, 0, 2, 8))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (root / "prompts.jsonl").write_text(text + "\n", encoding="utf-8")
    return root


def test_a_line_is_a_record(tmp_path):
    line = {"image": "a.jpg", "mask": "a.png", "prompt": "the café on the left"}
    (record,) = read_folder(write_folder(tmp_path, line))
    assert (record.prompts, record.id, record.subset, record.index) == (["the café on the left"], "a.jpg", "", 0)
    (example,) = record.load()
    assert example.image.size == (12, 8) and example.ignore is None
    np.testing.assert_array_equal(example.mask, BOX)


def test_every_form_of_a_line(tmp_path):
    records = read_folder(
        write_folder(
            tmp_path,
            {"image": "a.jpg", "mask": "a.png", "prompts": ["it", "the box"], "id": 7, "subset": "short"},
            {"image": "a.jpg", "masks": ["a.png", None], "prompts": ["it", "a unicorn"], "ignore": "void.png"},
            "",
            {"image": "more/b.png", "mask": runs(BOX), "prompt": "it"},
            {"image": "a.jpg", "mask": [corners(2, 1, 7, 5)], "prompt": "it", "ignore": corners(0, 0, 2, 8)},
            {"image": "a.jpg", "mask": None, "prompt": "a unicorn"},
        )
    )
    assert [record.index for record in records] == [0, 1, 3, 4, 5]
    nothing = np.zeros_like(BOX)
    expected = [[BOX, BOX], [BOX, nothing], [BOX], [BOX], [nothing]]
    for record, masks in zip(records, expected, strict=True):
        np.testing.assert_array_equal(loaded_masks(record), masks)
    assert [record.ignore() is None for record in records] == [True, False, True, False, True]
    np.testing.assert_array_equal(records[1].ignore(), records[3].ignore())
    assert (records[0].id, records[0].subset) == ("7", "short")


GOOD = {"image": "a.jpg", "mask": "a.png", "prompt": "it"}
BROKEN = {
    "{": "Expected a JSON object",
    "[1]": "Expected a JSON object with image",
    '{"mask": "a.png", "prompt": "it"}': "Expected a JSON object with image",
    json.dumps({**GOOD, "ingore": "void.png"}): "Expected a JSON object with image and some of",
    json.dumps({"image": "a.jpg", "mask": "a.png"}): "either 'prompt' or 'prompts', got",
    json.dumps({**GOOD, "prompts": ["it"]}): "either 'prompt' or 'prompts', got",
    json.dumps({"image": "a.jpg", "prompt": "it"}): "either 'mask' or 'masks'",
    json.dumps({"image": "a.jpg", "masks": "a.png", "prompt": "it"}): "'masks' must be a list",
    json.dumps({"image": "a.jpg", "mask": "a.png", "prompts": "it"}): "'prompts' must be a list",
    json.dumps({"image": "a.jpg", "masks": ["a.png"], "prompts": ["it", "that"]}): "one mask per prompt, got 1 for 2",
    json.dumps({**GOOD, "prompt": " "}): "Prompts must be",
    json.dumps({**GOOD, "prompt": 7}): "Prompts must be",
    json.dumps({**GOOD, "image": "absent.jpg"}): "There is no file",
    json.dumps({**GOOD, "mask": "absent.png"}): "There is no file",
    json.dumps({**GOOD, "image": "../masks/a.png"}): "inside",
    json.dumps({**GOOD, "mask": "/etc/passwd"}): "inside",
    json.dumps({**GOOD, "image": 7}): "Expected the name of a file",
    json.dumps({**GOOD, "image": ""}): "Expected the name of a file",
    json.dumps({**GOOD, "image": None}): "Expected the name of a file",
    json.dumps({**GOOD, "image": "x" * 300}): "There is no file",
    json.dumps({**GOOD, "mask": "x" * 5000}): "There is no file",
    json.dumps({**GOOD, "image": "a\0.jpg"}): "There is no file",
    json.dumps({**GOOD, "image": "\ud800.jpg"}): "There is no file",
    json.dumps({**GOOD, "id": ["a"]}): "id must be a text or a whole number",
    json.dumps({**GOOD, "subset": True}): "subset must be a text or a whole number",
    json.dumps({"image": "a.jpg", "mask": None, "prompts": []}): "It has no prompt",
    json.dumps({"image": "a.jpg", "masks": [], "prompts": []}): "It has no prompt",
    json.dumps({"image": "a.jpg", "mask": None, "prompts": ["", None]}): "Prompts must be",
    '{"image": "a.jpg", "mask": "a.png", "mask": "void.png", "prompt": "it"}': "a key stands twice",
    '{"image": "a.jpg", "prompt": "it", "mask": ' + "[" * 50_000 + "]" * 50_000 + "}": "Expected a JSON object",
    '{"image": "a.jpg", "prompt": "it", "mask": [' + "1" * 5000 + "]}": "Expected a JSON object",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_named_or_skipped(tmp_path, caplog, line):
    write_folder(tmp_path, GOOD, line, GOOD)
    with pytest.raises(BrokenRecordError, match=r"prompts\.jsonl, line 2: ") as caught:
        read_folder(tmp_path)
    assert BROKEN[line] in str(caught.value)
    assert [record.index for record in read_folder(tmp_path, "skip")] == [0, 2]
    assert BROKEN[line] in caplog.text


def test_null_is_no_name_and_numbers_are(tmp_path):
    lines = [{**GOOD, "id": None, "subset": None}, {**GOOD, "id": 0, "subset": 7}, {**GOOD, "id": 3.0, "subset": ""}]
    found = [(record.id, record.subset) for record in read_folder(write_folder(tmp_path, *lines))]
    assert found == [("a.jpg", ""), ("0", "7"), ("3", "")]


def test_masks_may_be_rows_of_numbers(tmp_path):
    rows = [
        BOX.astype(int).tolist(),
        (BOX * 255).tolist(),
        BOX.astype(float).tolist(),
        BOX.astype(int)[..., None].tolist(),
    ]
    lines = [{"image": "a.jpg", "mask": mask, "prompt": "it"} for mask in rows]
    for record in read_folder(write_folder(tmp_path, *lines)):
        np.testing.assert_array_equal(record.masks(), [BOX])


def test_a_blank_prompt_leaves_the_others_with_their_masks(tmp_path, caplog):
    line = {"image": "a.jpg", "masks": ["a.png", "void.png", None], "prompts": ["", "void", "none"]}
    (record,) = read_folder(write_folder(tmp_path, line), "skip")
    np.testing.assert_array_equal(loaded_masks(record), [box(0, 0, 2, 8), BOX & False])
    assert record.prompts == ["void", "none"] and "Its prompt 0" in caplog.text


def test_a_mask_that_does_not_fit_is_named(tmp_path):
    write_folder(tmp_path, GOOD, {**GOOD, "mask": {"size": [12, 8], "counts": [96]}})
    write_levels(tmp_path / "masks" / "a.png", BOX.T)
    for index, record in enumerate(read_folder(tmp_path)):
        with pytest.raises(
            BrokenRecordError, match=rf"prompts\.jsonl, line {index + 1}: .*a\.jpg: A mask is 8 x 12 pixels"
        ):
            record.load()


def test_no_picture_is_opened_before_it_is_asked_for(tmp_path, monkeypatch):
    write_folder(tmp_path, *[GOOD] * 200)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    assert len(read_folder(tmp_path)) == 200


def test_a_listing_that_is_none_is_said(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*prompts\.jsonl"):
        read_folder(tmp_path)
    write_folder(tmp_path, GOOD)
    (tmp_path / "prompts.jsonl").write_bytes(b'{"image": "\xff"}')
    with pytest.raises(InputError, match="must be text in utf-8"):
        read_folder(tmp_path)
