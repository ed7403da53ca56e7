"""REFER's pickles and annotations, gRefCOCO's lists: what is referred to is what is masked."""

from __future__ import annotations

import collections
import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.examples import Examples
from lens_adapter.data.plain_pickle import read_plain_pickle
from lens_adapter.data.refer import read_refer
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import (
    annotation,
    box,
    corners,
    instances,
    loaded_masks,
    picture,
    python2,
    reference,
    runs,
    write_image,
    write_json,
)
from tests.data.test_masks import compressed

IMAGES = "images/mscoco/images/train2014"
BOX = box(2, 1, 7, 5)
ANNOTATIONS = [
    annotation(11, 1, [corners(2, 1, 7, 5)]),
    annotation(12, 1, [corners(0, 0, 2, 2), corners(1, 1, 3, 3), [5, 5, 6, 6]]),  # parts that overlap, and a line
    annotation(13, 2, runs(box(0, 0, 12, 4)), iscrowd=1),
    annotation(14, 2, compressed(BOX)),
    annotation(15, 2, [corners(-3, 6, 5, 20)]),
    annotation(16, 2, []),
    annotation(17, 2, [compressed(box(0, 0, 2, 8)), compressed(box(1, 0, 3, 8))]),  # as refCLEF has it
]


def write_set(root: Path, references: bytes | list, name: str = "refcoco", file: str = "refs(unc).p") -> Path:
    folder = root / name
    for image_id in (1, 2):
        write_image(root / IMAGES / f"COCO_train2014_{image_id:012}.jpg", mode="L" if image_id == 2 else "RGB")
    pictures = [picture(image_id, f"COCO_train2014_{image_id:012}.jpg") for image_id in (1, 2)]
    write_json(folder / "instances.json", instances(pictures, ANNOTATIONS))
    if isinstance(references, list):
        references = json.dumps(references).encode() if file.endswith(".json") else pickle.dumps(references)
    (folder / file).write_bytes(references)
    return root


@pytest.mark.parametrize("protocol", [0, 2])
def test_what_python_2_wrote_is_read(tmp_path, protocol):
    said = [reference(0, 11, 1, ["the lady in blue", "lady"]), reference(49, 12, 1, ["a dog's tail"], "val")]
    records = read_refer(write_set(tmp_path, python2(said, protocol)))
    assert [(record.prompts, record.id, record.subset) for record in records] == [
        (["the lady in blue", "lady"], "0", "train"),
        (["a dog's tail"], "49", "val"),
    ]
    assert records[0].image == tmp_path / IMAGES / "COCO_train2014_000000000001.jpg"
    np.testing.assert_array_equal(loaded_masks(records[0]), [BOX, BOX])
    np.testing.assert_array_equal(records[1].masks(), [box(0, 0, 2, 2) | box(1, 1, 3, 3)])


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", ""])
def test_texts_of_any_age_are_read_as_they_were_meant(tmp_path, protocol, encoding):
    path = tmp_path / "p"
    path.write_bytes(python2({"raw": "café, größer"}, protocol, encoding))
    assert read_plain_pickle(path) == {"raw": "café, größer"}


def test_plain_data_comes_back_as_it_was(tmp_path):
    path, data = tmp_path / "p", {"a": [1, -2.5, True, None, "é", (1, "b")], 7: {3, 4}, "f": frozenset("x"), "n": 2**70}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(data, protocol))
        assert read_plain_pickle(path) == data
        path.write_bytes(pickle.dumps([np.int64(5), np.float32(0.5), np.bool_(True), np.uint8(200)], protocol))
        assert read_plain_pickle(path) == [5, 0.5, True, 200]
        assert [type(value) for value in read_plain_pickle(path)] == [int, float, bool, int]
    path.write_bytes(b"c__builtin__\nset\np0\n((lp1\nI3\naI4\natp2\nRp3\n.")  # a set under Python 2
    assert read_plain_pickle(path) == {3, 4}
    path.write_bytes(  # numpy 1 under Python 2
        b"cnumpy.core.multiarray\nscalar\np0\n(cnumpy\ndtype\np1\n(S'i8'\np2\nI0\nI1\ntp3\nRp4\n"
        b"(I3\nS'<'\np5\nNNNI-1\nI-1\nI0\ntp6\nbS'\\x05\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\np7\ntp8\nRp9\n."
    )
    assert read_plain_pickle(path) == 5


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def malicious(marker: Path) -> dict[str, bytes]:
    write = f"open({str(marker)!r}, 'w').write('run')"
    found = {
        f"{name}, protocol {protocol}": pickle.dumps([{"ref_id": call}], protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        for name, call in {
            "system": Call(os.system, f"touch {marker}"),
            "eval": Call(eval, write),
            "getattr": Call(getattr, marker, "touch"),
            "path": marker,
            "ordered": collections.OrderedDict(a=1),
            "array": np.arange(3),
            "object scalar": Call(np.float64(1).__reduce__()[0], np.dtype("V8"), b"12345678"),
            "class": Call,
        }.items()
    }
    found["Python 2's system"] = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    found["Python 2's instance"] = f"(S'touch {marker}'\nios\nsystem\n.".encode()
    found["reconstructor"] = b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR."
    found["codec"] = b"c_codecs\nencode\n(S'abc'\nS'zlib'\ntR."
    found["extension"] = b"\x80\x02\x82\x01."
    found["persistent"] = b"Pname\n."
    found["bytearray"] = b"\x80\x05\x96\x03\x00\x00\x00\x00\x00\x00\x00abc."
    found["within itself"] = b"]q\x00h\x00a."
    return found


def test_nothing_of_a_malicious_pickle_runs(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "refs.p"
    for name, raw in malicious(marker).items():
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"refs\.p") as caught:
            read_plain_pickle(path)
        assert "refused" in str(caught.value) or name in ("extension", "persistent", "within itself"), name
    assert not marker.exists()
    path.write_bytes(malicious(marker)["eval, protocol 2"])
    pickle.loads(path.read_bytes())
    assert marker.exists()  # so it was one


@pytest.mark.parametrize("raw", [b"", b"no pickle", pickle.dumps([1, 2])[:-3], b"\x80\x02]q\x00(", b"."])
def test_a_damaged_pickle_is_named(tmp_path, raw):
    (tmp_path / "refs.p").write_bytes(raw)
    with pytest.raises(InputError, match=r"refs\.p.*is no readable pickle"):
        read_plain_pickle(tmp_path / "refs.p")
    with pytest.raises(InputError, match=r"absent\.p.*cannot be read"):
        read_plain_pickle(tmp_path / "absent.p")


def test_annotations_of_every_kind_are_drawn(tmp_path):
    said = [reference(k, k, 2, ["it"]) for k in (13, 14, 15, 17)]
    masks = [record.masks()[0] for record in read_refer(write_set(tmp_path, said))]
    expected = [box(0, 0, 12, 4), BOX, box(0, 6, 5, 8), box(0, 0, 3, 8)]
    np.testing.assert_array_equal(masks, expected)
    assert read_refer(tmp_path)[0].load_image().mode == "RGB"  # of a grey file


def test_splits_are_those_of_the_authors(tmp_path):
    splits = ["train", "val", "testA", "testB", "testC", "testAB", "testBC"]
    write_set(tmp_path, [reference(k, 11, 1, ["it"], split) for k, split in enumerate(splits)], "refclef")
    (tmp_path / "images" / "saiapr_tc-12").mkdir()
    found = {
        split: [record.subset for record in read_refer(tmp_path, "refclef", split)]
        for split in ("train", "val", "test", "testA", "testB", "testC", "testAB")
    }
    assert found == {
        "train": ["train"],
        "val": ["val"],
        "test": splits[2:],
        "testA": ["testA", "testAB"],
        "testB": ["testB", "testAB", "testBC"],
        "testC": ["testC", "testBC"],
        "testAB": ["testAB"],
    }
    assert len(read_refer(tmp_path, "refclef")) == 7
    with pytest.raises(InputError, match=r"nothing in the split 'validation'; its splits are testA, .*train, val"):
        read_refer(tmp_path, "refclef", "validation")


def test_each_set_has_its_usual_splits_and_images(tmp_path):
    write_set(tmp_path, [reference(1, 11, 1, ["umd"])], "refcocog", "refs(umd).p")
    write_set(tmp_path, [reference(1, 11, 1, ["google"])], "refcocog", "refs(google).p")
    write_set(tmp_path, [reference(1, 11, 1, ["plus"])], "refcoco+")
    assert read_refer(tmp_path, "refcocog")[0].prompts == ["umd"]
    assert read_refer(tmp_path, "refcocog", split_by="google")[0].prompts == ["google"]
    assert loaded_masks(read_refer(tmp_path, "refcoco+")[0]).any()
    (tmp_path / IMAGES).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="images of refcoco"):
        read_refer(tmp_path, "refcoco+")
    assert loaded_masks(read_refer(tmp_path, "refcoco+", images=tmp_path / "elsewhere")[0]).any()
    with pytest.raises(InputError, match=r"none of refs\(berkeley\)\.p"):
        read_refer(tmp_path, "refcoco+", split_by="berkeley")
    with pytest.raises(InputError, match="no REFER data set 'coco'; expected one of refcoco,"):
        read_refer(tmp_path, "coco")


def test_several_objects_and_none(tmp_path):
    """gRefCOCO: the union of all objects named, without crowds; -1 for none."""
    said = [
        reference(0, [14, 15], 2, ["both", "the two"]),
        reference(1, [-1], 2, ["the unicorn"]),
        reference(2, -1, 1, ["no unicorn"]),
        reference(3, [13, 14], 2, ["him, not the crowd"]),
        reference(4, [11], 1, ["her"]),
    ]
    records = read_refer(write_set(tmp_path, said, "grefcoco", "grefs(unc).json"), "grefcoco", "train")
    assert [record.subset for record in records] == [
        "several_targets",
        "no_target",
        "no_target",
        "one_target",
        "one_target",
    ]
    expected = [BOX | box(0, 6, 5, 8), BOX & False, BOX & False, BOX, BOX]
    for record, mask in zip(records, expected, strict=True):
        np.testing.assert_array_equal(loaded_masks(record), [mask] * len(record.prompts))
    assert [one.prompts for one in records[0].split()] == [["both"], ["the two"]]


BROKEN = {
    "an annotation that is missing": (reference(3, 99, 1, ["it"]), "Its annotation 99 is not in instances.json"),
    "one of several that is missing": (reference(3, [11, 99], 1, ["it"]), "Its annotation 99"),
    "no annotation": (reference(3, [], 1, ["it"]), "names no annotation"),
    "an image that is missing": (reference(3, 11, 77, ["it"]), "Its image 77 is not in instances.json"),
    "no segmentation": (reference(3, 16, 2, ["it"]), "The annotation 16 has no segmentation"),
    "sentences without words": (reference(3, 11, 1, ["", " "]), "Prompts must be"),
    "an empty list of sentences": (reference(3, 11, 1, []), "It has no prompt"),
    "an annotation of another image": (reference(3, 14, 1, ["it"]), "about the image 1, and its annotation 14 about"),
    "no id": ({**reference(3, 11, 1, ["it"]), "image_id": None}, "An id must be a text or a whole number, got None"),
    "a list as an id": ({**reference(3, 11, 1, ["it"]), "image_id": [1]}, "must be a text or a whole number, got [1]"),
    "no sentences": ({k: v for k, v in reference(3, 11, 1, []).items() if k != "sentences"}, "It has no 'sentences'"),
    "not even an object": ("train", "malformed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reference_is_named_or_skipped(tmp_path, caplog, name):
    broken, reason = BROKEN[name]
    write_set(tmp_path, [reference(0, 11, 1, ["good"]), broken, reference(2, 14, 2, ["good"])])
    with pytest.raises(BrokenRecordError, match=r"refs\(unc\)\.p, record 1 \(counted from 0\)") as caught:
        read_refer(tmp_path)
    assert reason in str(caught.value) and caught.value.index == 1
    assert [record.index for record in read_refer(tmp_path, on_error="skip")] == [0, 2]
    assert "Skipped" in caplog.text and reason in caplog.text


def test_a_blank_sentence_leaves_the_others(tmp_path, caplog):
    write_set(tmp_path, [reference(0, 11, 1, ["it", "", "that"])])
    with pytest.raises(BrokenRecordError, match="Prompts must be"):
        read_refer(tmp_path)
    (record,) = read_refer(tmp_path, on_error="skip")
    assert record.prompts == ["it", "that"] and len(Examples([record])) == 2
    assert "Its prompt 1 (counted from 0) says nothing: ''. The others are kept" in caplog.text


@pytest.mark.parametrize("name", ["images", "annotations"])
def test_an_id_that_stands_twice_is_named_with_both_places(tmp_path, name):
    write_set(tmp_path, [reference(0, 11, 1, ["it"]), reference(1, 14, 2, ["it"])])
    file = tmp_path / "refcoco" / "instances.json"
    content = json.loads(file.read_text())
    content[name].append({**content[name][0], "file_name": "other.jpg", "image_id": 2})
    write_json(file, content)
    with pytest.raises(BrokenRecordError, match=rf"instances\.json, record 0 .*is that of {name} 0 and "):
        read_refer(tmp_path)
    assert [record.id for record in read_refer(tmp_path, on_error="skip")] == ["1"]


def test_null_is_no_text(tmp_path):
    write_set(tmp_path, [{**reference(0, 11, 1, ["it"]), "split": None, "ref_id": None}])
    assert [(record.id, record.subset) for record in read_refer(tmp_path)] == [("", "")]
    with pytest.raises(InputError, match="nothing in the split 'None'"):
        read_refer(tmp_path, split="None")


def test_ids_may_be_texts(tmp_path):
    write_set(tmp_path, [{**reference(0, "11", 1, ["it"]), "image_id": "1"}, reference(1, "-1", 1, ["no"])])
    records = read_refer(tmp_path)
    assert [int(record.masks().sum()) for record in records] == [20, 0]


def test_things_shared_many_times_over_are_read_at_once(tmp_path):
    shared: list = ["it"]
    for _ in range(60):
        shared = [shared, shared]
    (tmp_path / "p").write_bytes(pickle.dumps(shared))
    assert len(read_plain_pickle(tmp_path / "p")) == 2


def test_an_image_that_is_gone_breaks_its_record_alone(tmp_path):
    write_set(tmp_path, [reference(0, 11, 1, ["gone"]), reference(1, 14, 2, ["here"])])
    (tmp_path / IMAGES / "COCO_train2014_000000000001.jpg").unlink()
    examples = Examples(read_refer(tmp_path), "skip")
    assert [example.prompt for example in examples] == ["here"]
    (error,) = examples.broken
    assert error.file.endswith("refs(unc).p") and "000000000001.jpg" in str(error)


def test_annotations_of_images_that_were_resized_are_refused(tmp_path):
    write_set(tmp_path, [reference(0, 11, 1, ["it"]), reference(1, 14, 2, ["it"])])
    for image_id in (1, 2):
        write_image(tmp_path / IMAGES / f"COCO_train2014_{image_id:012}.jpg", 24, 16)
    for record in read_refer(tmp_path):
        with pytest.raises(BrokenRecordError, match=r"12 x 8 pixels; its image.*24 x 16"):
            record.masks()


def test_malformed_files_are_named(tmp_path):
    write_set(tmp_path, pickle.dumps({"refs": []}))
    with pytest.raises(InputError, match=r"refs\(unc\)\.p' must hold a list"):
        read_refer(tmp_path)
    write_set(tmp_path, [reference(0, 11, 1, ["it"])])
    (tmp_path / "refcoco" / "instances.json").write_text("{")
    with pytest.raises(InputError, match=r"instances\.json' is no valid JSON"):
        read_refer(tmp_path)
    (tmp_path / "refcoco" / "instances.json").unlink()
    with pytest.raises(InputError, match=r"instances\.json' cannot be read: No such file"):
        read_refer(tmp_path)


def test_a_hundred_thousand_references_open_no_image(tmp_path, monkeypatch):
    entry = reference(0, 11, 1, ["it", "that"])
    said = [{**entry, "ref_id": k} for k in range(100_000)]
    write_set(tmp_path, pickle.dumps(said, 2))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    started = time.process_time()
    records = read_refer(tmp_path)
    assert len(records) == 100_000 and time.process_time() - started < 30
    assert len(Examples(records[:1000])) == 2000


def test_the_fixture_writes_what_python_2_wrote():
    """Bytes taken down from pickle's own documentation of the format, opcode by opcode."""
    value = [{"ann_id": 7, "ids": [7, 8], "é": "ann_id"}]
    assert python2(value, 0, "") == (b"(lp0\n(dp1\nS'ann_id'\np2\nI7\nsS'ids'\np3\n(lp4\nI7\naI8\nasV\xe9\np5\ng2\nsa.")
    assert python2(value, 2, "") == (
        b"\x80\x02]q\x00(}q\x01(U\x06ann_idq\x02J\x07\x00\x00\x00U\x03idsq\x03]q\x04(J\x07\x00\x00\x00J\x08\x00\x00\x00e"
        b"X\x02\x00\x00\x00\xc3\xa9q\x05h\x02ue."
    )
