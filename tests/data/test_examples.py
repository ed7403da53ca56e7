"""Records taken apart into examples: one prompt each, with its own mask."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.errors import InputError


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
