"""Records taken apart into examples: one prompt each, with its own mask; what is broken stops or is skipped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.data.records import Record
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import box, jpeg

BOX = box(2, 1, 7, 5)


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "images" / "a.png")
    for name, column in (("left", 0), ("right", 5), ("edge", 3)):
        mask = np.zeros((4, 6), np.uint8)
        mask[:, column] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    line = {"image": "a.png", "prompts": ["left", "right", "none"], "masks": ["left.png", "right.png", None]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps({**line, "ignore": "edge.png"}) + "\n")
    return tmp_path


def test_every_prompt_is_an_example_with_its_own_mask(folder):
    examples = Examples(read_folder(folder))
    assert len(examples) == 3 and [example.prompt for example in examples] == ["left", "right", "none"]
    assert [example.mask.any(0).nonzero()[0].tolist() for example in examples] == [[0], [5], []]
    assert all(example.ignore.any(0).nonzero()[0].tolist() == [3] for example in examples)
    assert examples[1].image.size == (6, 4) and examples[1].mask.shape == (4, 6)


def test_a_picture_that_is_damaged_later_is_named_or_skipped(folder):
    strict, lenient = (Examples(read_folder(folder), on_error) for on_error in ("raise", "skip"))
    (folder / "masks" / "left.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"left\.png"):
        strict[0]
    assert [example.prompt for example in lenient] == ["right", "none"]


def mixed() -> list[Record]:
    good = [Record(jpeg(), [name], [BOX], id=name) for name in "abc"]
    broken = Record(b"", ["x"], [BOX], id="broken", file="list.json", index=5)
    return [good[0], broken, Record(jpeg(), [], [], id="silent"), good[1], good[2], replace(broken, id="last")]


def names(examples) -> list[str]:
    return [example.id for example in examples]


def test_a_broken_record_stops_the_examples():
    examples = Examples(mixed())
    assert len(examples) == 5 and examples[0].id == "a"
    with pytest.raises(BrokenRecordError, match=r"list\.json, record 5"):
        examples[1]
    with pytest.raises(BrokenRecordError):
        list(examples)


def test_a_broken_record_is_skipped_counted_and_said(caplog):
    examples = Examples(mixed(), "skip")
    assert names(examples) == ["a", "b", "c"]
    assert [error.index for error in examples.broken] == [5, 5]
    assert names(examples[k] for k in range(5)) == ["a", "b", "b", "c", "a"]
    assert names([examples[-1], examples[-2]]) == ["a", "c"]
    said = [record.getMessage() for record in caplog.records]
    assert [k for k, _ in examples.numbered([4, 3, 1, 0])] == [3, 0]
    assert len(said) == 2 and "number 1 so far: list.json, record 5" in said[0] and "number 2" in said[1]
    for index in (5, -6):
        with pytest.raises(IndexError):
            examples[index]


def test_examples_feed_a_torch_loader():
    loader = torch.utils.data.DataLoader(
        Examples(mixed(), "skip"), batch_size=3, collate_fn=lambda batch: names(batch), num_workers=1
    )
    assert list(loader) == [["a", "b", "b"], ["c", "a"]]


def test_nothing_but_broken_records_is_an_error():
    examples = Examples([mixed()[1]] * 3, "skip")
    with pytest.raises(InputError, match="None of the 3 examples can be used: all are broken"):
        examples[0]


def test_a_record_that_is_broken_before_it_is_loaded_is_skipped_too(caplog):
    class Late(list):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            if isinstance(record, Exception):
                raise record
            return record

    records = Late([Record(jpeg(), ["a", "b"], [BOX, None], id="r"), BrokenRecordError("why", "list.json", 1)])
    with pytest.raises(BrokenRecordError, match="why"):
        Examples(records)
    examples = Examples(records, "skip")
    assert names(examples) == ["r#0", "r#1"] and "number 1 so far: list.json, record 1" in caplog.text
