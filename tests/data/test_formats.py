"""One way to name data for every command: each format from a mapping to examples, and what is said when it is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.examples import Examples
from lens_adapter.data.formats import FORMATS, DataSource
from lens_adapter.data.records import Record
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import box, reference, write_image
from tests.data.test_coco import write_coco
from tests.data.test_folder import write_folder
from tests.data.test_hub import REASON_SEG, Table
from tests.data.test_reason_seg import shape, write_entry
from tests.data.test_refer import write_set
from tests.data.test_semantic import write_maps

BOX = box(2, 1, 7, 5)


@pytest.fixture
def sources(tmp_path, monkeypatch) -> dict[str, dict]:
    """Of every format a source whose first example has BOX, or a mask with as many pixels of its own."""
    folders = {name: tmp_path / name for name in FORMATS}
    write_folder(folders["folder"], {"image": "a.jpg", "mask": "a.png", "prompt": "it", "subset": "short"})
    said = [reference(1, 11, 1, ["it", "this"], "val"), reference(2, 11, 1, ["other"], "train")]
    write_set(folders["refer"], said, "refcoco+")
    write_entry(folders["reason_seg"] / "val", [shape("target", 2, 1, 6, 4)])
    annotations, images = write_coco(folders["coco"])
    images_of_maps, labels = write_maps(folders["label_maps"])
    write_entry(folders["lisa"] / "reason_seg" / "ReasonSeg" / "val", [shape("target", 2, 1, 6, 4)], is_sentence=True)
    asked = []
    table = Table([REASON_SEG])
    load = SimpleNamespace(load_dataset=lambda *names, **options: asked.append((names, options)) or table)
    monkeypatch.setitem(sys.modules, "datasets", load)
    return {
        "folder": {"path": folders["folder"]},
        "refer": {"path": str(folders["refer"]), "dataset": "refcoco+", "split": "val"},
        "reason_seg": {"path": str(folders["reason_seg"]), "split": "val"},
        "coco": {"path": str(annotations), "images": str(images)},
        "label_maps": {"path": str(labels), "images": str(images_of_maps), "classes": ["wall", "sky", "x", "tree"]},
        "lisa": {"path": str(folders["lisa"]), "name": "reason_seg", "split": "val"},
        "hub": {"path": "Ricky06662/ReasonSeg_val", "split": "test", "revision": "abc"},
        "asked": asked,
    }


@pytest.mark.parametrize(
    "name, count, prompt, subset, described",
    [
        ("folder", 1, "it", "short", ("folder", None, None)),
        ("refer", 2, "it", "val", ("refcoco+", "val", None)),
        ("reason_seg", 1, "the thing", "short", ("reason_seg", "val", None)),
        ("coco", 3, "the inner side of the cup", "", ("paco.json", None, None)),
        ("label_maps", 3, "wall", "", ("labels", None, None)),
        ("lisa", 1, "the thing", "long", ("reason_seg", "val", None)),
        ("hub", 1, "what is it?", "", ("Ricky06662/ReasonSeg_val", "test", "abc")),
    ],
)
def test_every_format_gives_examples(sources, name, count, prompt, subset, described):
    source = DataSource.of({**sources[name], "format": name})
    assert tuple(source.describe().values()) == described and set(source.describe()) == {"name", "split", "revision"}
    examples = source.examples()
    first = examples[0]
    assert (len(examples), first.prompt, first.subset) == (count, prompt, subset)
    assert first.image.size == first.mask.shape[::-1] and first.mask.any() and first.image_id
    if name in ("refer", "reason_seg", "lisa", "hub"):
        np.testing.assert_array_equal(first.mask, BOX)
    if name == "refer":  # two sentences about one image
        assert len({example.image_id for example in examples}) == 1
        assert [example.id for example in examples] == ["1#0", "1#1"]
    if name == "hub":
        assert sources["asked"] == [(("Ricky06662/ReasonSeg_val", None), {"split": "test", "revision": "abc"})]


def test_every_format_is_tested(sources):
    assert set(FORMATS) | {"asked"} == set(sources)


def test_a_path_is_a_plain_folder(sources):
    path = sources["folder"]["path"]
    for source in (path, str(path), {"path": str(path)}, {"path": path, "format": "folder"}):
        assert len(DataSource.of(source).examples()) == 1
    assert DataSource.of({"path": "x", "format": "hub", "split": 2017}).describe()["split"] == "2017"
    assert DataSource.of({"path": "x", "format": "lisa", "name": "ade20k"}).describe()["split"] == "train"


@pytest.mark.parametrize(
    "source, complaint",
    [
        ({"format": "refer"}, "need a path"),
        ("", "need a path"),
        ({"path": "x", "format": "voc"}, "no data format 'voc'; expected one of folder, refer, reason_seg"),
        ({"path": "x", "format": "coco"}, "'coco' needs images too; its options are images, on_error"),
        ({"path": "x", "format": "label_maps"}, "needs images, classes too"),
        ({"path": "x", "format": "hub"}, "needs split too"),
        ({"path": "x", "splt": "val"}, "'folder' has no option splt; its options are on_error"),
        ({"path": "x", "format": "refer", "splt": "val"}, "no option splt; its options are dataset, split, split_by"),
    ],
)
def test_what_is_wrong_with_a_source_is_said(source, complaint):
    with pytest.raises(InputError, match=complaint):
        DataSource.of(source)


def test_what_is_not_there_is_said(sources, tmp_path, monkeypatch):
    for name, complaint in (
        ("folder", r"no .*prompts\.jsonl"),
        ("refer", "has none of refs"),
        ("reason_seg", "Expected a folder with the images and JSON files"),
        ("coco", "cannot be read"),
        ("label_maps", "Expected a folder with label maps"),
        ("lisa", "Expected a folder"),
    ):
        with pytest.raises(InputError, match=complaint):
            DataSource.of({**sources[name], "format": name, "path": str(tmp_path / "nowhere")}).examples()
    hub = {**sources["hub"], "format": "hub"}
    with pytest.raises(InputError, match="columns must name image, prompts and mask"):
        DataSource.of({**hub, "columns": {"image": "image"}}).records()
    with pytest.raises(InputError, match="No schema of 'other' is known"):
        DataSource.of({**hub, "path": "other"}).records()
    columns = {"image": "image", "prompts": "text", "mask": "mask", "subset": "image_id"}
    assert DataSource.of({**hub, "path": "other", "columns": columns}).examples()[0].subset == "a"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'lens_adapter\[datasets\]'"):
        DataSource.of(hub).records()


def test_broken_records_can_be_skipped_in_every_step(tmp_path):
    """A line that is none is left out by the reader, a picture that is damaged by the examples."""
    lines = [{"image": f"{k}.png", "mask": None, "prompt": f"thing {k}"} for k in range(3)]
    for k in range(3):
        write_image(tmp_path / "images" / f"{k}.png")
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    texts = [json.dumps(line) for line in lines]
    (tmp_path / "prompts.jsonl").write_text("\n".join([texts[0], "{}", *texts[1:]]) + "\n")
    with pytest.raises(BrokenRecordError):
        DataSource.of(tmp_path).records()
    examples = DataSource.of({"path": tmp_path, "on_error": "skip"}).examples()
    assert [(k, example.prompt) for k, example in examples.numbered(range(3))] == [(0, "thing 0"), (2, "thing 2")]
    assert examples[1].prompt == "thing 2"  # for training, the next stands in


def test_examples_name_their_image(tmp_path):
    path, picture = write_image(tmp_path / "a.png"), Image.new("RGB", (12, 8))
    records = [Record(path, ["a", "b"], [None, None], id="r"), Record(str(path), ["c"], [None])]
    records += [Record(picture, ["d", "e"], [BOX, BOX]), Record(picture.copy(), ["f"], [BOX])]
    records += [Record(lambda: picture, ["g"], [BOX], file="rows", index=7)]
    names = [example.image_id for example in Examples(records)]
    assert names[0] == names[1] == names[2] == str(Path(path)) and names[3] == names[4] != names[5]
    assert names[6] == "rows#7" and len(set(names)) == 4
