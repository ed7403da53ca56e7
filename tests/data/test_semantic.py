"""Label maps: a class is asked for where it shows, and is what has its value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.examples import Examples
from lens_adapter.data.semantic import LabelMaps, read_classes
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import box, loaded_masks, write_image, write_levels

LEVELS = 3 * box(2, 1, 7, 5) + 1 * box(8, 0, 12, 8)  # 0 elsewhere


def write_maps(root, levels=LEVELS, name: str = "a", mode: str = "L", suffix: str = ".jpg"):
    write_image(root / "images" / f"{name}{suffix}")
    write_levels(root / "labels" / f"{name}.png", levels, mode)
    return root / "images", root / "labels"


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_every_class_that_shows_is_a_prompt(tmp_path, mode):
    """As in ADE20K: 0 is what counts neither way, the first class is 1."""
    maps = LabelMaps(*write_maps(tmp_path, mode=mode), ["wall", "sky", "tree"], first=1, ignore=0)
    (record,) = maps
    assert (record.prompts, record.id) == (["wall", "tree"], "a")
    np.testing.assert_array_equal(loaded_masks(record), [LEVELS == 1, LEVELS == 3])
    wall, tree = Examples(maps)
    assert (wall.prompt, tree.prompt, tree.id) == ("wall", "tree", "a#1")
    np.testing.assert_array_equal(tree.mask, LEVELS == 3)
    np.testing.assert_array_equal(tree.ignore, LEVELS == 0)


def test_the_first_class_may_be_0_and_some_may_not_be_asked_for(tmp_path):
    """As in COCO-Stuff: 255 counts neither way."""
    levels = np.where(LEVELS == 3, 255, LEVELS)
    (record,) = LabelMaps(*write_maps(tmp_path, levels), ["person", None])
    assert record.prompts == ["person"]
    np.testing.assert_array_equal(record.masks(), [levels == 0])
    np.testing.assert_array_equal(record.ignore(), levels == 255)
    (record,) = LabelMaps(*write_maps(tmp_path), ["person", "bicycle", "car", "dog"], ignore=None)
    assert record.prompts == ["person", "bicycle", "dog"] and record.ignore() is None


def test_a_map_without_a_class_is_passed_over(tmp_path):
    write_maps(tmp_path, np.full((8, 12), 255))
    maps = LabelMaps(*write_maps(tmp_path, name="b"), ["x"] * 4)
    assert [len(record.prompts) for record in maps] == [0, 3]
    assert [example.id for example in Examples(maps)] == ["b#0", "b#1", "b#2"]


def test_a_value_beyond_the_classes_is_named(tmp_path):
    write_maps(tmp_path, name="b")
    for classes, first, reason in (
        (["x", "y"], 1, "the value 3; the 2 classes have the values 1 to 2"),
        (["x"] * 9, 2, "the value 1; the 9 classes have the values 2 to 10"),
    ):
        maps = LabelMaps(*write_maps(tmp_path), classes, first=first, ignore=0)
        with pytest.raises(BrokenRecordError, match=rf"b\.png, record 1 .*{reason}"):
            maps[1]
    examples = Examples(maps, "skip")
    assert list(examples) == [] and len(examples.broken) == 2
    with pytest.raises(BrokenRecordError):
        Examples(maps)


def test_a_damaged_map_or_an_absent_image_breaks_its_record_alone(tmp_path):
    images, labels = write_maps(tmp_path, name="a")
    write_maps(tmp_path, name="c")
    write_levels(labels / "b.png", LEVELS)  # no image
    Image.new("RGB", (12, 8)).save(labels / "d.png")
    write_image(images / "d.jpg")
    (labels / "e.png").write_bytes(b"no picture")
    write_image(images / "e.jpg")
    examples = Examples(LabelMaps(images, labels, ["x"] * 4), "skip")
    assert dict.fromkeys(Path(example.image_id).stem for example in examples).keys() == {"a", "c"}
    reasons = map(str, examples.broken)
    for reason, expected in zip(reasons, ("no image", "channels RGB", "cannot be read"), strict=True):
        assert expected in reason


def test_trees_and_suffixes_and_sequences(tmp_path):
    write_maps(tmp_path, name="town/a_left", suffix=".png")
    maps = LabelMaps(*write_maps(tmp_path, name="b.v1"), ["x"] * 4)
    assert [record.id for record in maps] == ["b.v1", "town/a_left"] and maps[-1].image.suffix == ".png"
    assert [record.index for record in maps[:]] == [0, 1] and len({example.image_id for example in Examples(maps)}) == 2
    with pytest.raises(IndexError):
        maps[2]
    for images, labels in (("no", "labels"), ("images", "no"), ("images", "images/town")):
        with pytest.raises(InputError, match=r"Expected a folder|no label map"):
            LabelMaps(tmp_path / images, tmp_path / labels / "no", ["x"])


def test_many_maps_stay_closed(tmp_path, monkeypatch):
    images, labels = write_maps(tmp_path)
    for k in range(500):
        (images / f"{k}.jpg").touch()
        (labels / f"{k}.png").touch()
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    assert len(LabelMaps(images, labels, ["x"])) == 501


def test_classes_are_read_from_the_files_that_name_them(tmp_path):
    files = {
        "ade20k_classes.json": '["wall", "building", "street lamp"]',
        "config_v2.0.json": '{"labels": [{"readable": "Bird", "name": "a--b"}, {"readable": "Street Lamp"}]}',
        "labels.txt": "0: unlabeled\n1: person\n12: street sign\n",
        "plain.txt": "wall\r\nstreet lamp\r\n\r\n",
        "objectInfo150.txt": "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n"
        "2\t0.1072\t6046\t612\tbuilding, edifice\n3\t0.08\t8265\t796\tlamp;light\n",
    }
    expected = [
        ["wall", "building", "street lamp"],
        ["Bird", "Street Lamp"],
        ["unlabeled", "person", "street sign"],
        ["wall", "street lamp"],
        ["wall", "building", "lamp"],
    ]
    for (name, text), names in zip(files.items(), expected, strict=True):
        (tmp_path / name).write_bytes(text.encode())
        assert read_classes(tmp_path / name) == names


def test_files_are_read_whatever_their_capitals_and_the_rest_is_named(tmp_path, caplog):
    images, labels = write_maps(tmp_path, name="a", suffix=".PNG")
    Image.new("RGB", (12, 8)).save(images / "b.jfif", "JPEG")
    write_levels(labels / "b.png", LEVELS)
    (labels / "b.png").rename(labels / "b.PNG")
    Image.new("L", (12, 8)).save(labels / "c.tif")
    write_image(images / "d.jpg")
    maps = LabelMaps(images, labels, ["x"] * 4)
    assert sorted(record.id for record in maps) == ["a", "b"]
    assert "no label maps (PNG), and left out: c.tif" in caplog.text
    assert "have no label map, and are left out: d" in caplog.text


def test_names_that_several_files_have_are_refused(tmp_path):
    images, labels = write_maps(tmp_path, name="a")
    Image.new("RGB", (12, 8)).save(images / "a.PNG")
    write_maps(tmp_path, name="b")
    (labels / "b.PNG").write_bytes((labels / "b.png").read_bytes())
    maps = LabelMaps(images, labels, ["x"] * 4)
    reasons = {"a": "Several images have its name", "b": "Another label map has its name"}
    for index, path in enumerate(maps.labels):
        with pytest.raises(BrokenRecordError, match=reasons[path.stem]):
            maps[index]
    assert len(Examples(maps, "skip").broken) == 3


def test_images_and_label_maps_may_share_a_folder(tmp_path, caplog):
    write_image(tmp_path / "a.jpg")
    write_levels(tmp_path / "a.png", LEVELS)
    (record,) = LabelMaps(tmp_path, tmp_path, ["x"] * 4)
    assert record.image.suffix == ".jpg" and record.load() and caplog.text == ""


@pytest.mark.parametrize("content", ['{"labels": [{"name": "a"}]}', '["a", null]', '["a", ""]', "7", '[["a"]]', "{}"])
def test_lists_of_classes_that_are_none_are_named(tmp_path, content):
    (tmp_path / "classes.JSON").write_text(content)
    with pytest.raises(InputError, match=r"classes\.JSON"):
        read_classes(tmp_path / "classes.JSON")
