from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.folder import LabelledFolder
from lens_adapter.errors import InputError

LINE = {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two examples; the second is about the same image, whose EXIF says that it lies on its side."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "images" / "a.jpg")
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "images" / "turned.jpg", exif=exif)
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:5] = 1  # as faint as can be
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    Image.fromarray(mask.T.copy()).save(tmp_path / "masks" / "turned.png")
    write(tmp_path, LINE, {"image": "turned.jpg", "mask": "turned.png", "prompt": "größte Katze\u2028links"})
    return tmp_path


def write(folder: Path, *lines: object) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / "prompts.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def test_reads_every_line_in_order(folder):
    data = LabelledFolder(str(folder))
    first, second = data
    assert len(data) == 2 and first.prompt == LINE["prompt"] and second.prompt == "größte Katze\u2028links"
    assert first.image.mode == "RGB" and first.image.size == (8, 6) and second.image.size == (6, 8)
    assert first.mask.dtype == bool and first.mask.sum() == 6 and first.mask[1:3, 2:5].all()
    np.testing.assert_array_equal(second.mask, first.mask.T)
    assert data[-1].prompt == data[1].prompt == second.prompt
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_masks_of_one_channel(folder, mode):
    values = np.array([[0, 1], [1, 0]])
    picture = Image.fromarray(values.astype(bool if mode == "1" else np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        picture.putpalette([0, 0, 0, 90, 90, 90])
    assert picture.mode == mode
    picture.save(folder / "masks" / "a.png")
    Image.new("RGB", (2, 2)).save(folder / "images" / "a.jpg")
    np.testing.assert_array_equal(LabelledFolder(folder)[0].mask, values == 1)


@pytest.mark.parametrize(
    "second, complaint",
    [
        ("", "expected a JSON object, got ''"),
        ('{"image": "a.jpg",', "expected a JSON object, got '{"),
        (["a.jpg", "a.png", "a dog"], "just the keys"),
        ({"image": "a.jpg", "mask": "a.png"}, "just the keys"),
        ({**LINE, "promt": "a dog"}, "'promt'"),
        ({**LINE, "prompt": 7}, "prompt must be a text that is not empty, got 7"),
        ({**LINE, "prompt": "  "}, "prompt must be a text that is not empty"),
        ({**LINE, "image": "b.jpg"}, "there is no file"),
        ({**LINE, "image": "../masks/a.png"}, "expected a name inside"),
        ({**LINE, "mask": "/etc/a.png"}, "expected a name inside"),
        ({**LINE, "mask": "../images/a.jpg"}, "expected a name inside"),
    ],
)
def test_a_bad_line_is_named_at_once(folder, second, complaint):
    write(folder, LINE, second, LINE)
    with pytest.raises(InputError) as error:
        LabelledFolder(folder)
    assert f"{folder / 'prompts.jsonl'}, line 2: " in str(error.value) and complaint in str(error.value)


def test_masks_are_png(folder):
    Image.new("L", (8, 6)).save(folder / "masks" / "a.jpg")
    write(folder, {**LINE, "mask": "a.jpg"})
    with pytest.raises(InputError, match=r"line 1: a mask must be a PNG"):
        LabelledFolder(folder)


def test_no_folder_no_lines_no_text(folder, tmp_path):
    with pytest.raises(InputError, match=r"There is no .*prompts\.jsonl"):
        LabelledFolder(tmp_path / "nowhere")
    (folder / "prompts.jsonl").write_text("")
    with pytest.raises(InputError, match="line 1: expected a JSON object"):
        LabelledFolder(folder)
    (folder / "prompts.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        LabelledFolder(folder)


def test_a_bad_picture_is_named_with_its_line(folder):
    data = LabelledFolder(folder)
    Image.new("L", (6, 8)).save(folder / "masks" / "a.png")
    with pytest.raises(InputError, match=r"line 1: the mask 'a.png' is 6 x 8 pixels, its image.* 8 x 6"):
        data[0]
    Image.new("RGB", (8, 6)).save(folder / "masks" / "a.png")
    with pytest.raises(InputError, match=r"line 1: .*a\.png' has the channels RGB; expected one"):
        data[0]
    (folder / "masks" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"line 1: .*a\.png' cannot be read as an image"):
        data[0]
    (folder / "images" / "turned.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"line 2: .*turned\.jpg"):
        data[1]
