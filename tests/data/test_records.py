"""Records are read when asked for, in one frame; a broken one is named, and stops or is skipped as the user chose."""

from __future__ import annotations

import pickle
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lens_adapter.data.records import Record
from lens_adapter.data.samples import Samples, collect, one_per_prompt
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import box, corners, jpeg, runs, write_image, write_levels

BOX = box(2, 1, 7, 5)


def test_a_record_gives_image_masks_and_what_to_ignore(tmp_path):
    image = write_image(tmp_path / "a.jpg")
    mask = write_levels(tmp_path / "a.png", BOX)
    record = Record(image, ["a box", "nothing"], [mask, None], ignored=corners(0, 0, 2, 8), id="a")
    sample = record.load()
    assert sample.prompts == ["a box", "nothing"] and sample.record is record
    assert sample.image.mode == "RGB" and sample.image.size == record.load_image().size == (12, 8)
    for masks, ignore in ((sample.masks, sample.ignore), (record.masks(), record.ignore())):
        assert masks.dtype == ignore.dtype == bool
        np.testing.assert_array_equal(masks, [BOX, np.zeros_like(BOX)])
        np.testing.assert_array_equal(ignore, box(0, 0, 2, 8))
    assert Record(image, ["a box"], [mask]).load().ignore is None


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    image = write_image(tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}", mode=mode)
    sample = Record(str(image), ["a box"], [BOX]).load()
    assert sample.image.mode == "RGB" and sample.masks.shape == (1, 8, 12)


def test_an_image_may_be_a_path_bytes_an_array_or_come_later(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    array = np.asarray(Image.open(path))
    for image in (path, str(path), jpeg(), Image.open(path), array, lambda: path, jpeg):
        sample = Record(image, ["a box"], [BOX]).load()
        assert sample.image.size == (12, 8)
        np.testing.assert_array_equal(np.asarray(sample.image), array)
        np.testing.assert_array_equal(sample.masks[0], BOX)


@pytest.mark.parametrize("wrap", [lambda path: path, lambda path: path.read_bytes(), Image.open])
def test_a_turned_image_and_its_mask_meet_upright(tmp_path, wrap):
    """Orientation 6: what is stored as its left side is its top."""
    path = write_image(tmp_path / "a.jpg", orientation=6)
    shown = np.rot90(BOX, -1)
    for region in (BOX, shown, runs(BOX)):
        sample = Record(wrap(path), ["a box"], [region]).load()
        assert sample.image.size == (8, 12)
        np.testing.assert_array_equal(sample.masks[0], shown)


def test_sentences_that_share_a_region_draw_it_once():
    drawn = []

    class Region:
        def draw(self, size):
            drawn.append(size)
            return BOX

    assert Record(jpeg(), ["a", "b", "c"], [Region()] * 3).masks().shape == (3, 8, 12)
    assert drawn == [(8, 12)]


def test_a_record_without_prompts_has_no_masks():
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
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(record)).load().masks[0], BOX)
    error = pickle.loads(pickle.dumps(BrokenRecordError("why", "refs.p", 17)))
    assert str(error) == str(BrokenRecordError("why", "refs.p", 17)) and (error.file, error.index) == ("refs.p", 17)
    assert str(BrokenRecordError("as torch raises it anew")) == "as torch raises it anew"


def mixed() -> list[Record]:
    good = [Record(jpeg(), [name], [BOX], id=name) for name in "abc"]
    broken = Record(b"", ["x"], [BOX], id="broken", file="list.json", index=5)
    return [good[0], broken, Record(jpeg(), [], [], id="silent"), good[1], good[2], replace(broken, id="last")]


def names(samples) -> list[str]:
    return [sample.record.id for sample in samples]


def test_a_broken_record_stops_the_samples():
    samples = Samples(mixed())
    assert len(samples) == 6 and samples[0].record.id == "a"
    with pytest.raises(BrokenRecordError, match=r"list\.json, record 5"):
        samples[1]
    with pytest.raises(BrokenRecordError):
        list(samples)


def test_a_broken_record_is_skipped_counted_and_said(caplog):
    samples = Samples(mixed(), "skip")
    assert names(samples) == ["a", "b", "c"]
    assert sorted(samples.broken) == [1, 5] and samples.broken[5].index == 5
    assert names(samples[k] for k in range(6)) == ["a", "b", "b", "b", "c", "a"]
    assert names([samples[-1], samples[-2]]) == ["a", "c"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "number 1 so far: list.json, record 5" in said[0] and "number 2" in said[1]
    for index in (6, -7):
        with pytest.raises(IndexError):
            samples[index]


def test_samples_feed_a_torch_loader():
    loader = torch.utils.data.DataLoader(
        Samples(mixed(), "skip"), batch_size=3, collate_fn=lambda batch: names(batch), num_workers=1
    )
    assert list(loader) == [["a", "b", "b"], ["b", "c", "a"]]


def test_nothing_but_broken_records_is_an_error():
    samples = Samples([mixed()[1]] * 3, "skip")
    with pytest.raises(InputError, match="None of the 3 records can be used; 3 are broken"):
        samples[0]


def test_entries_that_make_no_record_stop_or_are_skipped(caplog):
    entries = [{"image": "a.jpg", "text": "a"}, {"image": "b.jpg"}, {"image": "c.jpg", "text": ""}, None]

    def build(entry):
        return Record(entry["image"], [entry["text"]], [None])

    with pytest.raises(BrokenRecordError, match=r"list\.json, record 1 \(counted from 0\): It has no 'text'") as caught:
        collect("list.json", enumerate(entries), build, "raise")
    assert caught.value.index == 1 and isinstance(caught.value.__cause__, KeyError)
    records = collect("list.json", enumerate(entries), build, "skip")
    assert [(record.image, record.file, record.index) for record in records] == [("a.jpg", "list.json", 0)]
    assert (
        len(caplog.records) == 3
        and "number 3 so far: list.json, record 3 (counted from 0): It is malformed: 'NoneType'" in caplog.text
    )


def test_the_policy_must_be_known():
    for use in (lambda: Samples([], "ignore"), lambda: collect("f", [], None, "ignore")):
        with pytest.raises(InputError, match='"raise" or "skip", got \'ignore\''):
            use()


def test_records_can_be_taken_apart():
    record = Record(jpeg(), ["a box", "nothing"], [BOX, None], ignored=BOX, id="7", subset="short", file="f", index=3)
    silent, alone = Record(jpeg(), [], []), Record(jpeg(), ["alone"], [None], id="8")
    singles = one_per_prompt([record, silent, alone])
    assert [(one.prompts, one.id) for one in singles] == [(["a box"], "7#0"), (["nothing"], "7#1"), (["alone"], "8")]
    np.testing.assert_array_equal(singles[0].masks(), [BOX])
    assert not singles[1].masks().any()
    assert {(one.subset, one.file, one.index) for one in singles[:2]} == {("short", "f", 3)}
    assert singles[1].ignored is BOX


def test_bytes_are_a_file(tmp_path):
    buffer = BytesIO()
    Image.new("L", (12, 8), 3).save(buffer, "PNG")
    assert Record(buffer.getvalue(), ["a"], [buffer.getvalue()]).load().masks.all()
