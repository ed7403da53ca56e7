"""Records are read when asked for, as examples in one frame; a broken one is named."""

from __future__ import annotations

import pickle
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.records import Record
from lens_adapter.errors import BrokenRecordError, InputError
from lens_adapter.vlm.images import load_image
from tests.data.formats import box, corners, jpeg, loaded_masks, runs, write_image, write_levels

BOX = box(2, 1, 7, 5)


def test_a_record_gives_an_example_per_prompt(tmp_path):
    image = write_image(tmp_path / "a.jpg")
    mask = write_levels(tmp_path / "a.png", BOX)
    record = Record(image, ["a box", "nothing"], [mask, None], ignored=corners(0, 0, 2, 8), id="a", subset="short")
    examples = record.load()
    assert [(one.prompt, one.id) for one in examples] == [("a box", "a#0"), ("nothing", "a#1")]
    assert {(one.subset, one.image_id) for one in examples} == {("short", str(image))}
    assert examples[0].image.mode == "RGB" and examples[0].image.size == record.load_image().size == (12, 8)
    for masks, ignore in (([one.mask for one in examples], examples[1].ignore), (record.masks(), record.ignore())):
        assert masks[0].dtype == ignore.dtype == bool
        np.testing.assert_array_equal(masks, [BOX, np.zeros_like(BOX)])
        np.testing.assert_array_equal(ignore, box(0, 0, 2, 8))
    (alone,) = Record(image, ["a box"], [mask], id="b").load()
    assert alone.ignore is None and alone.id == "b"


def test_the_picture_is_decoded_once_for_all_prompts(monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "lens_adapter.data.records.load_image", lambda image: decoded.append(image) or load_image(image)
    )
    first, *others = Record(jpeg(), ["a", "b", "c"], [BOX, None, BOX]).load()
    assert len(decoded) == 1 and all(other.image is first.image for other in others)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    image = write_image(tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}", mode=mode)
    (example,) = Record(str(image), ["a box"], [BOX]).load()
    assert example.image.mode == "RGB" and example.mask.shape == (8, 12)


def test_an_image_may_be_a_path_bytes_an_array_or_come_later(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    array = np.asarray(Image.open(path))
    for image in (path, str(path), jpeg(), Image.open(path), array, lambda: path, jpeg):
        (example,) = Record(image, ["a box"], [BOX]).load()
        assert example.image.size == (12, 8)
        np.testing.assert_array_equal(np.asarray(example.image), array)
        np.testing.assert_array_equal(example.mask, BOX)


@pytest.mark.parametrize("wrap", [lambda path: path, lambda path: path.read_bytes(), Image.open])
def test_a_turned_image_and_its_mask_meet_upright(tmp_path, wrap):
    """Orientation 6: what is stored as its left side is its top."""
    path = write_image(tmp_path / "a.jpg", orientation=6)
    shown = np.rot90(BOX, -1)
    for region in (BOX, shown, runs(BOX)):
        (example,) = Record(wrap(path), ["a box"], [region]).load()
        assert example.image.size == (8, 12)
        np.testing.assert_array_equal(example.mask, shown)


def test_sentences_that_share_a_region_draw_it_once():
    drawn = []

    class Region:
        def draw(self, size):
            drawn.append(size)
            return BOX

    assert Record(jpeg(), ["a", "b", "c"], [Region()] * 3).masks().shape == (3, 8, 12)
    assert drawn == [(8, 12)]


def test_a_record_without_prompts_has_no_masks():
    assert Record(jpeg(), [], []).load() == Record(jpeg(), [], []).split() == []
    assert Record(jpeg(), [], []).masks().shape == (0, 8, 12)


@pytest.mark.parametrize("prompts", ["a box", [""], ["a", " "], [None], [b"a"]])
def test_prompts_must_say_something(prompts):
    with pytest.raises(InputError, match="Prompts must be a list of texts"):
        Record("a.jpg", prompts, [None] * len(prompts))


def test_every_prompt_needs_its_mask():
    with pytest.raises(InputError, match="one mask per prompt, got 1 for 2"):
        Record("a.jpg", ["a", "b"], [None])


def broken_records(folder) -> dict[str, Record]:
    good = folder / "good.jpg"
    good.write_bytes(jpeg())
    (folder / "cut.jpg").write_bytes(jpeg()[:-5])
    (folder / "text.jpg").write_text("no picture")
    return {
        "absent.jpg": Record(folder / "absent.jpg", ["a"], [BOX]),
        "cut.jpg": Record(folder / "cut.jpg", ["a"], [BOX]),
        "text.jpg": Record(folder / "text.jpg", ["a"], [BOX]),
        "cannot be read as an image": Record(b"no picture", ["a"], [BOX]),
        "damaged or cut off": Record(jpeg()[:-5], ["a"], [BOX]),
        "12 x 7 pixels": Record(good, ["a"], [BOX[1:]]),
        "absent.png": Record(good, ["a"], [folder / "absent.png"]),
        "12 x 6 pixels": Record(good, ["a"], [BOX], ignored=BOX[2:]),
    }


def test_what_is_broken_is_named_with_file_and_index(tmp_path):
    for reason, record in broken_records(tmp_path).items():
        with pytest.raises(BrokenRecordError, match=r"refs\.p, record 17 \(counted from 0\): no\. 4") as caught:
            replace(record, id="no. 4", file="refs.p", index=17).load()
        assert reason in str(caught.value)
        assert (caught.value.file, caught.value.index) == ("refs.p", 17)


def test_every_way_to_read_names_the_record(tmp_path):
    records = broken_records(tmp_path)
    absent, small, blind = records["absent.jpg"], records["12 x 7 pixels"], records["12 x 6 pixels"]
    for read in (absent.load_image, absent.masks, small.masks, blind.ignore):
        with pytest.raises(BrokenRecordError):
            read()


def test_records_and_errors_travel_to_workers_and_back(tmp_path):
    record = Record(write_image(tmp_path / "a.jpg"), ["a"], [runs(BOX)], id="a", file="f", index=3)
    np.testing.assert_array_equal(loaded_masks(pickle.loads(pickle.dumps(record))), [BOX])
    error = pickle.loads(pickle.dumps(BrokenRecordError("why", "refs.p", 17)))
    assert str(error) == str(BrokenRecordError("why", "refs.p", 17)) and (error.file, error.index) == ("refs.p", 17)
    assert str(BrokenRecordError("as torch raises it anew")) == "as torch raises it anew"


def test_records_can_be_taken_apart():
    record = Record(jpeg(), ["a box", "nothing"], [BOX, None], ignored=BOX, id="7", subset="short", file="f", index=3)
    singles = record.split()
    assert [(one.prompts, one.id) for one in singles] == [(["a box"], "7#0"), (["nothing"], "7#1")]
    (alone,) = Record(jpeg(), ["alone"], [None], id="8").split()
    assert (alone.prompts, alone.id) == (["alone"], "8")
    np.testing.assert_array_equal(singles[0].masks(), [BOX])
    assert not singles[1].masks().any()
    assert {(one.subset, one.file, one.index) for one in singles} == {("short", "f", 3)}
    assert singles[1].ignored is BOX


def test_bytes_are_a_file(tmp_path):
    buffer = BytesIO()
    Image.new("L", (12, 8), 3).save(buffer, "PNG")
    assert Record(buffer.getvalue(), ["a"], [buffer.getvalue()]).load()[0].mask.all()
