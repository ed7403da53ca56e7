"""The record of a measurement: what is read, what is refused, the table, and how it reaches the Hub."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from lens_adapter import LensAdapter
from lens_adapter.errors import InputError
from lens_adapter.results import Evaluation, Figure, folder_digest, load_results, save_results
from tests.tiny.adapters import tiny_trio

RECORD: dict[str, Any] = {
    "protocol": "one mask per expression",
    "base_model": "org/base",
    "base_model_revision": None,
    "adapter": None,
    "dataset": {"name": "org/refcoco", "split": "testA", "revision": "abc123"},
    "prompts": 12,
    "images": 5,
    "mask_threshold": 0.5,
    "score_threshold": 0.1,
    "figures": {
        "all": {
            "giou": {"value": 0.7512, "interval": [0.7, 0.8]},
            "precision_at_50": {"value": 0.9, "interval": [0.85, 0.95]},
        },
        "small": {"giou": {"value": 0.5, "interval": None}},
    },
    "versions": {"lens_adapter": "0.1.0"},
}
BENCHMARK = {"id": "org/refcoco", "task_id": "refcoco_testA", "subset": "all", "metric": "giou"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    tiny_trio()[0].save_pretrained(folder, results=[measured()])
    return folder


def changed(**parts: object) -> dict[str, Any]:
    return {**deepcopy(RECORD), **parts}


def measured(**parts: object) -> Evaluation:
    return Evaluation.from_dict(changed(**parts))


def test_a_record_is_written_as_it_was_read(tmp_path):
    for record in (RECORD, changed(head_sha256="0f" * 32), changed(benchmark=BENCHMARK)):
        result = Evaluation.from_dict(record)
        assert result.to_dict() == record and list(result.to_dict()) == list(record)
        result.save(tmp_path / "figures.json")
        assert Evaluation.load(tmp_path / "figures.json") == result
    assert result.figures["all"]["giou"] == Figure(0.7512, (0.7, 0.8))
    assert result.figures["small"]["giou"] == Figure(0.5)


def test_a_record_may_lack_all_but_what_was_measured_and_on_what(caplog):
    least = {key: RECORD[key] for key in ("protocol", "prompts", "images", "figures")} | {"dataset": {"name": "toys"}}
    result = Evaluation.from_dict({**least, "mood": "good"})
    assert result.to_markdown().startswith("A head on its base: toys, 12 prompts about 5 images, protocol one mask")
    assert (result.base_model, result.mask_threshold, result.versions) == (None, None, {})
    assert "mean nothing here: ['mood']" in caplog.text


def test_the_table_says_what_was_measured_and_on_what():
    assert measured().to_markdown().splitlines() == [
        "A head on org/base: org/refcoco testA, revision abc123, 12 prompts about 5 images, mask_threshold 0.5, "
        "score_threshold 0.1, protocol one mask per expression. In brackets: 95 % intervals.",
        "",
        "|       | all                  | small |",
        "| ----- | -------------------- | ----- |",
        "| gIoU  | 0.751 [0.700, 0.800] | 0.500 |",
        "| P@0.5 | 0.900 [0.850, 0.950] |       |",
    ]


def test_every_figure_becomes_an_entry():
    entries = measured().model_index()
    assert [(e.dataset_config, e.metric_type, e.metric_value) for e in entries] == [
        ("all", "giou", 0.7512),
        ("all", "precision_at_50", 0.9),
        ("small", "giou", 0.5),
    ]
    assert {(e.task_type, e.dataset_type, e.dataset_split, e.dataset_revision) for e in entries} == {
        ("image-segmentation", "org/refcoco", "testA", "abc123")
    }


def test_leaderboards_get_what_names_a_benchmark_and_nothing_else():
    assert measured().leaderboard_file() == {}
    files = measured(benchmark=BENCHMARK).leaderboard_file()
    assert list(files) == [".eval_results/lens_adapter-org-refcoco-refcoco_testa.yaml"]
    content = yaml.safe_load(next(iter(files.values())))
    assert content == [
        {
            "dataset": {"id": "org/refcoco", "task_id": "refcoco_testA", "revision": "abc123"},
            "value": 0.7512,
            "notes": "gIoU, one mask per expression",
        }
    ]
    if hasattr(huggingface_hub, "parse_eval_result_entries"):
        entries = huggingface_hub.parse_eval_result_entries(content)
        assert huggingface_hub.eval_result_entries_to_yaml(entries) == content
    for wrong in ({"id": "org/refcoco"}, {**BENCHMARK, "metric": "speed"}, {**BENCHMARK, "subset": "large"}, "yes"):
        with pytest.raises(InputError, match="benchmark of the results on org/refcoco"):
            measured(benchmark=wrong)


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        changed(dataset={}),
        changed(dataset={"name": 3}),
        changed(figures={}),
        changed(figures={"all": {}}),
        changed(figures={"all": {"giou": 0.7}}),
        changed(figures={"all": {"giou": {"value": "high"}}}),
        changed(figures={"all": {"giou": {"value": float("nan")}}}),
        changed(figures={"all": {"giou": {"value": 0.5, "interval": [0.1, float("inf")]}}}),
        changed(figures={"all": {"giou": {"value": 0.5, "interval": [0.1]}}}),
        changed(score_threshold="high"),
        changed(prompts=None),
        changed(protocol=None),
        changed(head_sha256="mine"),
        changed(head_sha256=5),
        "a record",
    ],
)
def test_what_is_no_record_is_refused(tmp_path, saved, record):
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"figures.json: Expected"):
        Evaluation.load(file)
    with pytest.raises(InputError, match=f"the type Evaluation, got {type(record).__name__}"):
        save_results(saved, [record])


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "figures.json").write_text("no JSON")
    with pytest.raises(InputError, match=r"figures\.json is no JSON"):
        Evaluation.load(tmp_path / "figures.json")
    (tmp_path / "figures.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"figures\.json is no JSON"):
        Evaluation.load(tmp_path / "figures.json")
    with pytest.raises(InputError, match=r"nowhere\.json' cannot be read: No such file"):
        Evaluation.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "parts", [{"figures": {"all": {"giou": Figure(float("nan"))}}}, {"figures": {}}, {"prompts": None}]
)
def test_an_evaluation_that_exists_is_whole(parts):
    with pytest.raises(InputError, match="at least one figure, all of them finite numbers"):
        replace(measured(), **parts)


@pytest.mark.parametrize("fusion", ["lite", "mirror"])
def test_a_head_has_one_digest_wherever_it_is(fusion, tmp_path):
    """In memory and on disk, in one file or several, in half precision and in what that is loaded to; and no other."""
    adapter = tiny_trio(fusion=fusion)[0]
    adapter.save_pretrained(tmp_path / "a")
    adapter.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len([*(tmp_path / "b").glob("*.safetensors")]) > 1
    assert adapter.digest() == folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    assert LensAdapter.from_pretrained(tmp_path / "b").digest() == adapter.digest()
    LensAdapter.from_pretrained(tmp_path / "a", dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    half = LensAdapter.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    whole = LensAdapter.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert half.digest() == whole.digest() == folder_digest(tmp_path / "half") != adapter.digest()
    adapter.head.descriptors.text_vector.data[0] += 1e-6
    assert adapter.digest() != folder_digest(tmp_path / "a")


def test_results_of_another_head_are_not_saved_and_not_shown(saved, tmp_path, caplog):
    folder = Path(shutil.copytree(saved, tmp_path / "head"))
    adapter, other = LensAdapter.from_pretrained(folder), measured(head_sha256="ab" * 32)
    for save in (
        lambda: save_results(folder, [other]),
        lambda: adapter.save_pretrained(tmp_path / "b", results=[other]),
    ):
        with pytest.raises(InputError, match=r"results on org/refcoco testA are about another head"):
            save()
    assert load_results(folder) == [measured()] and not (tmp_path / "b").exists()
    own = measured(head_sha256=adapter.digest())
    adapter.save_pretrained(folder, results=[own, measured()])
    assert load_results(folder) == [own, measured()]
    file = folder / "evaluation.json"
    file.write_text(file.read_text().replace(adapter.digest(), "ab" * 32))
    assert load_results(folder) == [measured()] and "are about another head, and left out" in caplog.text


def test_results_stay_with_the_weights_that_they_are_about(saved, tmp_path, caplog):
    folder = Path(shutil.copytree(saved, tmp_path / "head"))
    assert load_results(folder) == [measured()] and "0.751" in (folder / "README.md").read_text()
    adapter = LensAdapter.from_pretrained(folder)
    adapter.save_pretrained(folder)
    assert load_results(folder) == [measured()] and "0.751" in (folder / "README.md").read_text()
    adapter.head.descriptors.text_vector.data += 1
    adapter.save_pretrained(folder)
    assert load_results(folder) == [] and "other weights" in caplog.text
    text = (folder / "README.md").read_text()
    assert "0.751" not in text and "model-index" not in text and "No evaluation results are recorded" in text
