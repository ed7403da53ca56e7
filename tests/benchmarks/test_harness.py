"""The benchmarks' harness, not their figures: nothing here is timed."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bases, report
from benchmarks.harness import Comparison, Row, Stage
from benchmarks.suite import BENCHMARKS


def test_ways_run_in_turn_after_a_warm_up():
    ran = []
    ways = {name: lambda name=name: ran.append(name) for name in "abc"}
    result = Stage("cpu", "tiny", repeats=3).compare("letters", ways, "b", ["a note"])
    assert ran == [*"abc", *"abc", *"cba", *"abc"]
    assert [row.name for row in result.rows] == list("abc") and result.notes == ["a note"]
    assert result.rows[1] == Row("b", 1.0, 1.0, 1.0)
    assert all(0 < row.low <= row.ratio <= row.high for row in result.rows)


def test_results_are_kept_by_name_and_rendered(tmp_path, monkeypatch, capsys):
    def quick(stage):
        """Says hello."""
        yield stage.compare("greeting", {"hello": lambda: None, "hello there": lambda: None}, "hello")

    for room in (command, report):
        monkeypatch.setattr(room, "BENCHMARKS", {"quick": quick})
    path = tmp_path / "deep" / "figures.json"
    stage = Stage("cpu", "tiny", repeats=1)
    command.measure(stage, ["quick"], path)
    (path).write_text(json.dumps({**json.loads(path.read_text()), "other": {"kept": True}}))
    command.measure(stage, ["quick"], path)
    found = json.loads(path.read_text())
    assert found["other"] == {"kept": True}
    record = found["quick"]["record"]
    assert record["threads"] == torch.get_num_threads() and record["versions"]["torch"] == torch.__version__
    page = report.page([found])
    assert "Says hello." in page and "| greeting | time / hello |" in page and "| hello there | " in page
    assert "LlavaForConditionalGeneration, float32" in page and "| greeting | time / hello |" in capsys.readouterr().out


def test_the_page_is_what_was_measured():
    records = command.read_records(command.RECORDS)
    assert (command.DOCS / "benchmarks.md").read_text() == report.page(records)
    assert set().union(*records) <= set(BENCHMARKS)
    for record in records:
        for found in record.values():
            for comparison in map(Comparison.read, found["comparisons"]):
                assert all(isfinite(row.ratio) and row.ratio >= 0 for row in comparison.rows)


def _page_of(rounds: int | None, ratio: float, base: str | None = None) -> str:
    rows = [Row("without", 1, 1, 1), Row("with", ratio, ratio, ratio)]
    record = {"base": "tiny", "device_kind": "cpu", "base_class": "Llava", "base_dtype": "float32"}
    record |= {"attention": "sdpa", "device": "a CPU", "threads": 1, "repeats": 5, "versions": {"torch": "2.9"}}
    comparison = Comparison("A walk", "without", rows, goals={"with": 1.1}, rounds=rounds, base=base)
    return report.page([{"idle": {"record": record, "comparisons": [asdict(comparison)]}}])


@pytest.mark.parametrize(
    ("rounds", "ratio", "said"),
    [
        (1, 1.2, "≤ 1.1, one round: not judged"),
        (1, 1.0, "≤ 1.1, one round: not judged"),
        (2, 1.2, "≤ 1.1 **missed**"),
        (2, 1.0, "≤ 1.1 reached"),
        (None, 1.2, "≤ 1.1 **missed**"),  # counted: there is no noise
    ],
)
def test_one_round_is_not_judged(rounds, ratio, said):
    page = _page_of(rounds, ratio)
    assert page.count(f"| {said} |") == 2  # among all goals, and in its own table
    assert page.count("missed") == 2 * ("missed" in said)


def test_a_goal_stands_with_the_base_that_it_is_of():
    assert "| [idle](#idle) | tiny, cpu | A walk: time of with |" in _page_of(2, 1.0)
    page = _page_of(None, 1.0, base="llava-1.5-7b")
    assert "| [idle](#idle) | llava-1.5-7b, counted | A walk: time of with |" in page
    assert "**llava-1.5-7b, counted; torch 2.9**" in page and "tiny" not in page


def test_what_is_counted_says_of_which_base():
    for record in command.read_records(command.RECORDS):
        for name, found in record.items():
            for comparison in map(Comparison.read, found["comparisons"]):
                counted = name == "counted"
                assert (comparison.base is not None) == counted
                assert not counted or comparison.title.startswith(comparison.base)


@pytest.mark.parametrize(
    ("name", "billions"), [("tiny", 0.007), ("0.5B", 0.8), ("llava-1.5-7b", 7.1), ("qwen2.5-vl-7b", 8.3)]
)
def test_bases_have_the_sizes_that_their_names_say(name, billions):
    model, processor = bases.build(name, "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.06)
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert model.config.image_token_id == image_token
