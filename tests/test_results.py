"""Records of measurements: what is read, what is refused, and how they reach the Hub."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from lens_adapter import LensAdapter
from lens_adapter.errors import InputError
from lens_adapter.results import benchmark_files, eval_results, load_results, read_record, results_table, save_results
from tests.tiny.adapters import tiny_trio

RECORD = {
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
    tiny_trio()[0].save_pretrained(folder, results=[RECORD])
    return folder


def changed(**parts: object) -> dict:
    return {**deepcopy(RECORD), **parts}


def test_the_table_says_what_was_measured_and_on_what():
    assert results_table(RECORD).splitlines() == [
        "**org/refcoco**, testA · revision `abc123` · protocol: one mask per expression · 12 prompts about 5 images · "
        "mask threshold 0.5 · score threshold 0.1",
        "",
        "| | gIoU | P@0.5 |",
        "|---|---|---|",
        "| all | 0.751 [0.700, 0.800] | 0.900 [0.850, 0.950] |",
        "| small | 0.500 | – |",
    ]


def test_every_figure_becomes_an_entry():
    entries = eval_results([RECORD])
    assert [(e.dataset_config, e.metric_type, e.metric_value) for e in entries] == [
        ("all", "giou", 0.7512),
        ("all", "precision_at_50", 0.9),
        ("small", "giou", 0.5),
    ]
    assert {(e.task_type, e.dataset_type, e.dataset_split, e.dataset_revision) for e in entries} == {
        ("image-segmentation", "org/refcoco", "testA", "abc123")
    }


def test_leaderboards_get_what_names_a_benchmark_and_nothing_else():
    assert benchmark_files([RECORD]) == {}
    files = benchmark_files([RECORD, changed(benchmark=BENCHMARK)])
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
            benchmark_files([changed(benchmark=wrong)])


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
        changed(prompts=None),
        changed(protocol=None),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, saved, record):
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"figures.json: expected"):
        read_record(file)
    with pytest.raises(InputError, match="results: expected"):
        save_results(saved, [record])
    file.write_text("no JSON")
    with pytest.raises(InputError, match="is no JSON"):
        read_record(file)


def test_results_stay_with_the_weights_that_they_are_about(saved, tmp_path, caplog):
    folder = Path(shutil.copytree(saved, tmp_path / "head"))
    assert load_results(folder) == [RECORD] and "0.751" in (folder / "README.md").read_text()
    adapter = LensAdapter.from_pretrained(folder)
    adapter.save_pretrained(folder)
    assert load_results(folder) == [RECORD] and "0.751" in (folder / "README.md").read_text()
    adapter.head.descriptors.text_vector.data += 1
    adapter.save_pretrained(folder)
    assert load_results(folder) == [] and "other weights" in caplog.text
    text = (folder / "README.md").read_text()
    assert "0.751" not in text and "model-index" not in text and "No evaluation results are recorded" in text
