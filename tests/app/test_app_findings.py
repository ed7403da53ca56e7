"""What stands behind the page, without the page."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter import LensAdapter, builtin
from lens_adapter.app import findings
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.app.findings import (
    ALL,
    HEATMAP,
    KEYPOINTS,
    LAYERS,
    MASKS,
    Files,
    PageResult,
    Turn,
    answer,
    find,
    open_picture,
    point_at,
)
from lens_adapter.builtin.world.truths import CLEAR_ORDER
from lens_adapter.cli.evaluate import SCENES
from lens_adapter.errors import InputError
from lens_adapter.evaluation import overlap
from lens_adapter.pictures.colors import color_of
from tests.tiny import things_reading as reading
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, tiny_sam

WITH_ABSENT = [shown.index for shown in EXAMPLES].index(29512)  # its last prompt names nothing


@pytest.fixture(scope="module")
def result(adapter, files):
    return find(adapter, files[WITH_ABSENT], "\n".join(EXAMPLES[WITH_ABSENT].prompts))


def found(result: PageResult) -> list[bool]:
    return [record["found"] for record in result.records]


def masks(result: PageResult) -> torch.Tensor:
    return result.masks(range(len(result.records)))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.int64)


@pytest.mark.parametrize("shown", EXAMPLES, ids=lambda shown: str(shown.index))
def test_suggested_prompts_are_true_of_their_scenes(shown):
    scene = shown.scene()
    assert shown.index >= SCENES  # in no published figure
    for text, targets in shown.prompts.items():
        named, margin = reading.read(scene, text)
        assert tuple(sorted(named)) == targets
        assert margin >= CLEAR_ORDER
    assert reading.answer(scene, shown.question) != "nothing"


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_suggested_prompts_show_the_head_at_its_usual(adapter, files, number):
    shown = EXAMPLES[number]
    result = find(adapter, files[number], "\n".join(shown.prompts))
    things = shown.scene().masks(PICTURE_SIZE)
    assert found(result) == [bool(targets) for targets in shown.prompts.values()]
    for mask, targets in zip(masks(result).numpy(), shown.prompts.values(), strict=True):
        assert not targets or overlap(mask, things[list(targets)].any(0)).iou > 0.6


def test_lines_are_prompts():
    assert findings.read_prompts("  a dog \n\n a cat\na dog\n") == ["a dog", "a cat"]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "one prompt per line"),
        (" \n\t\n", "one prompt per line"),
        ("\n".join("abcdefghijklmnopqrstuvw"), "At most 21 prompts"),
    ],
)
def test_lines_that_cannot_be_prompts(text, complaint):
    with pytest.raises(InputError, match=complaint):
        findings.read_prompts(text)


def test_errors_name_the_file_and_not_its_folder(tmp_path):
    (tmp_path / "notes.png").write_text("no picture at all")
    with pytest.raises(InputError, match=r"notes\.png") as error:
        findings.open_picture(tmp_path / "notes.png")
    assert str(tmp_path) not in str(error.value)


def test_no_picture_and_too_large_a_picture(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="Pick an example or upload"):
        findings.open_picture(None)
    noise_image(30, 40).save(tmp_path / "photo.png")
    monkeypatch.setattr(findings, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match=r"40 x 30.*Scale it down"):
        findings.open_picture(tmp_path / "photo.png")


def test_a_prompt_too_long_for_the_model(adapter, files):
    with pytest.raises(InputError, match="too long"):
        find(adapter, files[0], "red " * 600)


def test_words_the_model_does_not_know_are_named_by_prompt(adapter, files):
    assert find(adapter, files[0], "the red zebra\nthe RED car\nthat gnu").unknown == [["zebra"], [], ["gnu"]]


@pytest.mark.parametrize("threshold", [0.0, 0.9, 0.99])
def test_another_threshold_is_what_segment_says_by_it(adapter, files, result, threshold, monkeypatch):
    prompts = [record["prompt"] for record in result.records]
    expected = adapter.segment(open_picture(result.source), prompts, score_threshold=threshold).to_records()
    monkeypatch.setattr(adapter, "segment", None)  # no model runs
    judged = result.judged(threshold)
    assert judged.records == expected
    assert judged.shown() == [k for k, record in enumerate(expected) if record["found"]]
    assert len({threshold, result.threshold}) == 1 or judged.records != result.records


def test_the_threshold_is_the_heads_unless_another_is_asked_for(adapter, files):
    assert find(adapter, files[0], "the pizza").threshold == adapter.config.score_threshold
    assert find(adapter, files[0], "the pizza", 0.5).threshold == 0.5
    with pytest.raises(InputError, match="score_threshold"):
        find(adapter, files[0], "the pizza", 1)


def test_what_an_answer_names_is_pointed_at(adapter, files):
    turn, result = point_at(adapter, files[0], Turn("what?", "A dog and the sheep; the dog sits."))
    assert [record["prompt"] for record in result.records] == ["A dog", "the sheep", "the dog"]
    assert {turn.answer[slice(*span)]: row for span, row in turn.names} == {"A dog": 0, "the sheep": 1, "the dog": 2}
    assert result.records == find(adapter, files[0], "A dog\nthe sheep\nthe dog").records and turn.note == ""


def test_an_answer_that_names_nothing_and_one_that_names_too_much(adapter, files, monkeypatch):
    turn, result = point_at(adapter, files[0], Turn("how many?", "four"))
    assert result is None and turn.names == () and "names a thing" in turn.note
    monkeypatch.setattr(findings, "MOST_PROMPTS", 1)
    turn, result = point_at(adapter, files[0], Turn("what?", "the sheep, the dog, The Sheep"))
    assert [record["prompt"] for record in result.records] == ["the sheep"]
    assert [row for _, row in turn.names] == [0, 0] and turn.note == "1 more names were not pointed at."


def test_every_choice_of_layers_is_another_picture_of_the_same_size(result):
    choices = [(), (MASKS,), (HEATMAP,), (KEYPOINTS,), (MASKS, KEYPOINTS), (HEATMAP, KEYPOINTS), LAYERS]
    drawn = [result.draw(choice) for choice in choices]
    assert {picture.size for picture in drawn} == {(PICTURE_SIZE, PICTURE_SIZE)}
    assert len({picture.tobytes() for picture in drawn}) == len(choices)
    assert (pixels(drawn[0]) == pixels(open_picture(result.source))).all()


def test_what_is_judged_absent_is_drawn_only_when_asked_for(result):
    assert found(result) == [True, True, False]
    everything, absent = result.draw([MASKS]), result.draw([MASKS], prompt=2)

    def holds(picture: Image.Image, index: int) -> bool:
        return bool((pixels(picture) == color_of(index)).all(-1).sum() > 100)  # the ground of its label

    assert [holds(everything, index) for index in range(3)] == [True, True, False]
    assert [holds(absent, index) for index in range(3)] == [False, False, True]
    assert [holds(result.draw([MASKS], prompt=1), index) for index in range(3)] == [False, True, False]


def test_nothing_found_leaves_the_picture_as_it_is(adapter, files):
    nothing = find(adapter, files[WITH_ABSENT], "the red book")
    assert found(nothing) == [False]
    assert (pixels(nothing.draw(LAYERS, ALL)) == pixels(open_picture(nothing.source))).all()


def test_files_hold_the_masks(result):
    files = Files(result)
    with ZipFile(files.masks) as archive:
        names = archive.namelist()
        for name, mask in zip(names, masks(result), strict=True):
            with archive.open(name) as file, Image.open(file) as picture:
                assert (np.asarray(picture.convert("L")) == mask.numpy() * 255).all()
    assert names == [
        "1-something-you-can-drink-from.png",
        "2-the-book-left-of-the-green-book.png",
        "3-the-red-book.png",
    ]
    records = json.loads(files.rle.read_text())
    for record, mask in zip(records, masks(result).numpy(), strict=True):
        assert (coco.decode(record["segmentation"]) == mask).all() and record["area"] == mask.sum()
    assert [(record["prompt"], record["found"]) for record in records] == list(
        zip([record["prompt"] for record in result.records], found(result), strict=True)
    )
    folder = files.masks.parent
    del files
    assert not folder.exists()


def test_one_mask_is_one_png(adapter, files, tmp_path):
    result = find(adapter, files[0], "../the donut")
    file = result.write_masks(tmp_path)
    with Image.open(file) as picture:
        assert (np.asarray(picture.convert("L")) == masks(result)[0].numpy() * 255).all()
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_answers_are_those_of_the_model_alone(adapter, files):
    model, processor = builtin.load_base()
    for file, shown in zip(files, EXAMPLES, strict=True):
        with Image.open(file) as picture:
            (alone,) = builtin.ask(model, processor, [picture.convert("RGB")], [shown.question])
        assert answer(adapter, file, shown.question) == alone != ""


def test_no_question(adapter, files):
    with pytest.raises(InputError, match="question"):
        answer(adapter, files[0], "  ")


def test_visitors_at_the_same_time_get_what_each_would_alone(adapter, files):
    def visit(number: int) -> tuple:
        shown = EXAMPLES[number]
        return find(adapter, files[number], "\n".join(shown.prompts)), answer(adapter, files[number], shown.question)

    alone = [visit(number) for number in range(3)]
    with ThreadPoolExecutor(3) as visitors:
        together = list(visitors.map(visit, range(3)))
    for (one, said), (other, said_then) in zip(alone, together, strict=True):
        assert said == said_then and one.records == other.records
        assert torch.equal(one.heatmaps, other.heatmaps)


def test_the_chat_does_not_wait_for_a_picture(adapter, files):
    alone = answer(adapter, files[0], EXAMPLES[0].question)
    with ThreadPoolExecutor(1) as visitor, adapter.base.turn():  # as while somebody's picture is segmented
        assert visitor.submit(answer, adapter, files[0], EXAMPLES[0].question).result(timeout=60) == alone


def test_another_base(tmp_path, monkeypatch):
    noise_image(50, 70).save(tmp_path / "photo.jpg")
    monkeypatch.setattr(findings, "MOST_TOKENS", 3)
    model, processor = tiny_pair("qwen2_vl")
    with LensAdapter.from_model(model, processor, load_sam=False, sam=tiny_sam()) as adapter:
        result = find(adapter, tmp_path / "photo.jpg", "a dog\na cat")
        assert result.draw(LAYERS, 1).size == (70, 50) and result.unknown == [[], []]
        assert isinstance(answer(adapter, tmp_path / "photo.jpg", "what is this?"), str)
