"""The demo: true scenes, an honest table, a picture."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from transformers import AutoProcessor

from lens_adapter import builtin
from lens_adapter.builtin.demo import SHOWN, run_demo, time_parts
from lens_adapter.builtin.names import ONLY_ITS_WORLD
from lens_adapter.builtin.world.truths import CLEAR_ORDER
from lens_adapter.cli.evaluate import SCENES
from lens_adapter.vlm.words import unknown_words
from tests.tiny import things_reading as reading
from tests.tiny.sam import noise_image
from tests.tiny.shipped import ship_tiny, use_shipped

SHIPPED = builtin.VLM  # before a stand-in takes its place


@pytest.fixture(scope="module", autouse=True)
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builtin")
    ship_tiny(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_shipped(patch, folder)
        yield


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: str(shown.index))
def test_what_is_shown_is_true(shown):
    scene = shown.scene()
    assert shown.index >= SCENES  # in no published figure
    assert len(shown.prompts) == 3
    for text, targets in shown.prompts.items():
        named, margin = reading.read(scene, text)
        assert sorted(named) == list(targets)
        assert margin >= CLEAR_ORDER
    assert reading.answer(scene, shown.question) != "nothing"


def test_the_walk_through_three_scenes(tmp_path, capsys):
    found = run_demo(None, [], tmp_path / "sheet.png", head="lite")
    printed, facts = str(found), json.loads(json.dumps(found.to_dict()))
    for shown in SHOWN:
        assert all(text in printed for text in [*shown.prompts, shown.question])
    assert printed.count("(identical)") == 3 and "DIFFERENT" not in printed
    for part in ("prefill", "LENS head", "SAM image encoder", "SAM mask decoder"):
        assert part in printed
    assert ONLY_ITS_WORLD not in "".join(capsys.readouterr())
    for shown, image, ious in zip(SHOWN, facts["images"], found.ious, strict=True):
        assert image["question"] == shown.question and image["answer_before"] == image["answer_attached"]
        assert [(row["prompt"], row["iou"]) for row in image["prompts"]] == list(zip(shown.prompts, ious, strict=True))
    assert facts["seconds"] == found.seconds
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 1000


def test_a_picture_of_ones_own(tmp_path, capsys):
    noise_image(90, 120).save(tmp_path / "photo.png")
    found = run_demo(tmp_path / "photo.png", ["my dog", "the red car"], tmp_path / "sheet.png", head="mirror")
    notes = capsys.readouterr().err
    assert notes.startswith(ONLY_ITS_WORLD)
    assert "never read" not in notes  # the tiny stand-in reads bytes
    assert found.to_dict()["images"][0]["prompts"][0]["iou"] is None
    assert "my dog" in str(found) and (tmp_path / "sheet.png").is_file()


def test_words_that_no_model_of_this_vocabulary_has_read_are_named_once(tmp_path, caplog, monkeypatch):
    processor = AutoProcessor.from_pretrained(SHIPPED)
    assert unknown_words(processor, ["the gnu", "the RED zebra", "a gnu"]) == ["gnu", "zebra"]
    # The tiny stand-in reads bytes, and would know them.
    monkeypatch.setattr("lens_adapter.vlm.base.unknown_words", lambda _, texts: [one for one in texts if one == "gnu"])
    noise_image(90, 120).save(tmp_path / "photo.png")
    with caplog.at_level("WARNING", "lens_adapter"):
        run_demo(tmp_path / "photo.png", ["gnu", "b"], tmp_path / "sheet.png", head="lite")
    assert [record.getMessage().count("no token for ['gnu']") for record in caplog.records].count(1) == 1


def test_the_parts_of_a_call_are_timed():
    with builtin.load_head("lite").attach(*builtin.load_base()) as adapter:
        parts = time_parts(adapter, noise_image(60, 60), ["one", "another"], repeats=1)
    assert len(parts) == 4 and all(seconds > 0 for seconds in parts.values())
