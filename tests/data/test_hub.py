"""Rows with named columns: the schemas of known repositories, read only as far as is asked for."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.examples import Examples
from lens_adapter.data.hub import SCHEMAS, Columns, read_hub
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import box, corners, jpeg, loaded_masks, runs

BOX = box(2, 1, 7, 5)
REFCOCO = {
    "question_id": "531_0",
    "image": Image.new("RGB", (12, 8)),
    "question": "Please carefully observe the area circled in the image and come up with a caption for the area.",
    "answer": ["the lady", "woman in blue"],
    "segmentation": [float(x) for x in np.float32(corners(2, 1, 7, 5))],
    "bbox": [2.0, 1.0, 5.0, 4.0],
    "iscrowd": 0,
    "file_name": "COCO_train2014_000000000531_0.jpg",
}
REASON_SEG = {
    "image": Image.new("L", (12, 8)),
    "text": " what is it? ",
    "mask": BOX.tolist(),
    "image_id": "a",
    "ann_id": "a_1",
    "img_height": 8,
    "img_width": 12,
}


class Table:
    """What of `datasets.Dataset` is used; counts how often a column is decoded."""

    def __init__(self, rows: list[dict], names: list[str] | None = None, decoded: dict | None = None):
        self.rows, self.decoded = rows, {} if decoded is None else decoded
        self.column_names = names or list(rows[0])

    def __len__(self):
        return len(self.rows)

    def select_columns(self, names: list[str]) -> Table:
        return Table(self.rows, names, self.decoded)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        for name in self.column_names:
            self.decoded[name] = self.decoded.get(name, 0) + 1
        return {name: row[name] for name in self.column_names}


@pytest.mark.parametrize("wrap", [list, Table])
def test_known_repositories_are_read_by_name(wrap):
    (record,) = read_hub(wrap([REFCOCO]), "lmms-lab/RefCOCO")
    assert (record.prompts, record.id) == (["the lady", "woman in blue"], "531_0")
    np.testing.assert_array_equal(loaded_masks(record), [BOX, BOX])
    assert len(Examples([record])) == 2
    (record,) = read_hub(wrap([REASON_SEG]), "Ricky06662/ReasonSeg_val")
    (example,) = record.load()
    assert (example.prompt, example.id, example.image.mode) == ("what is it?", "a_1", "RGB")
    np.testing.assert_array_equal(example.mask, BOX)
    assert {"lmms-lab/RefCOCO", "Ricky06662/ReasonSeg_val"} <= set(SCHEMAS)


def test_columns_of_ones_own(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    columns = Columns(image="photo", prompts="say", mask="rle", ignored="void", id="key", subset="kind")
    common = {"say": "it", "rle": runs(BOX), "void": None, "key": 7, "kind": "short"}
    photos = [jpeg(), {"bytes": jpeg(), "path": None}, {"bytes": None, "path": str(tmp_path / "a.jpg")}]
    rows = [{**common, "photo": photo} for photo in photos]
    rows[0]["void"] = box(0, 0, 2, 8)
    for record in read_hub(rows, columns):
        np.testing.assert_array_equal(loaded_masks(record), [BOX])
        assert (record.id, record.subset) == ("7", "short")
    assert (read_hub(rows, columns)[0].ignore() == box(0, 0, 2, 8)).all()
    assert not read_hub(rows, columns)[1].load()[0].ignore.any()


def test_only_what_is_asked_for_is_decoded():
    table = Table([REASON_SEG] * 50)
    records = read_hub(table, "Ricky06662/ReasonSeg_val")
    assert table.decoded == {"text": 50, "ann_id": 50}
    records[3].load_image()
    assert table.decoded["image"] == 1 and "mask" not in table.decoded
    records[3].load()
    assert table.decoded["mask"] == 1 and "img_height" not in table.decoded


def test_broken_rows_are_named_or_skipped(caplog):
    rows = [REFCOCO, {**REFCOCO, "answer": [None]}, {**REFCOCO, "answer": None}, {**REFCOCO, "segmentation": [1.0]}]
    with pytest.raises(BrokenRecordError, match=r"rows, record 1 .*Prompts must be .*got \[None\]"):
        read_hub(rows, "lmms-lab/RefCOCO")
    records = read_hub(rows, "lmms-lab/RefCOCO", "skip")
    assert [record.index for record in records] == [0, 3] and "rows, record 2" in caplog.text
    examples = Examples(records, "skip")
    assert len(list(examples)) == 2 and all("rows, record 3" in str(error) for error in examples.broken)


def test_what_a_row_may_lack_or_hold(caplog):
    columns = Columns("image", "text", "mask", id="ann_id", subset="kind")
    rows = [{**REASON_SEG, "ann_id": value, "kind": value} for value in (None, float("nan"), 7, 7.0, np.int64(7), "7")]
    assert [(one.id, one.subset) for one in read_hub(rows, columns)] == [("", "")] * 2 + [("7", "7")] * 4
    rows = [{**REASON_SEG, "text": text} for text in (["a", "", None], [], {"en": "dog"}, 7, np.array(["b", "c"]))]
    records = read_hub(rows, "Ricky06662/ReasonSeg_val", "skip")
    assert [record.prompts for record in records] == [["a"], ["b", "c"]]
    for reason in (
        "Its prompt 1 (counted from 0) says nothing: ''",
        "has no prompt",
        "must be a text or a list of texts",
    ):
        assert reason in caplog.text


@pytest.mark.parametrize(
    "image",
    [
        None,
        7,
        {"bytes": None, "path": None},
        {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n"},
        "x" * 5000,
        "https://a/b.png",
        {},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_pictures_that_are_none_break_their_record_alone(image):
    records = read_hub([{**REASON_SEG, "image": image}, REASON_SEG], "Ricky06662/ReasonSeg_val")
    examples = Examples(records, "skip")
    assert len(list(examples)) == 1 and len(str(examples.broken[0])) < 500


def test_masks_of_every_form_in_rows():
    png = BytesIO()
    Image.fromarray(BOX.astype(np.uint8)).save(png, "PNG")
    forms = [
        BOX.astype(int).tolist(),
        list(BOX.astype(float)),
        {"bytes": png.getvalue(), "path": None},
        [corners(2, 1, 7, 5)],
    ]
    for record in read_hub([{**REASON_SEG, "mask": form} for form in forms], "Ricky06662/ReasonSeg_val"):
        np.testing.assert_array_equal(loaded_masks(record), [BOX])


def test_what_does_not_fit_is_said():
    class Splits(dict):
        column_names = {"test": ["image"], "val": ["image"]}  # noqa: RUF012

    cases = {
        "No schema of 'coco' is known": ([REFCOCO], "coco"),
        "no column answer, segmentation, question_id; they have image, text": ([REASON_SEG], "lmms-lab/RefCOCO"),
        r"one split, got those of test, val\. Choose one": (Splits(test=[], val=[]), "lmms-lab/RefCOCO"),
        "at least one row": ([], "lmms-lab/RefCOCO"),
        "a sequence of dicts": ([[1, 2]], "lmms-lab/RefCOCO"),
        "a streamed data set": (iter([REFCOCO]), "lmms-lab/RefCOCO"),
    }
    for reason, (rows, columns) in cases.items():
        with pytest.raises(InputError, match=reason):
            read_hub(rows, columns)


def test_the_datasets_package_agrees(tmp_path):
    """Where it is installed: a file as on the Hub, its pictures decoded or not, lists or arrays."""
    datasets, parquet = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    for name, row in (("lmms-lab/RefCOCO", REFCOCO), ("Ricky06662/ReasonSeg_val", REASON_SEG)):
        stored = {**row, "image": {"bytes": jpeg(), "path": "a.jpg"}}
        parquet.write_table(pyarrow.Table.from_pylist([stored] * 2), tmp_path / "rows.parquet")
        rows = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
        for typed in (rows, rows.cast_column("image", datasets.Image()), rows.with_format("numpy")):
            record = read_hub(typed, name)[1]
            assert not isinstance(record.image(), Image.Image)  # we open it, not `datasets`
            np.testing.assert_array_equal(loaded_masks(record), [BOX] * len(record.prompts))
            assert record.load()[0].image.size == (12, 8)
