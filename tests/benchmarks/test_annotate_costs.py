"""What annotating costs: the sum is of the measured parts, the run is a real one, and the page shows the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import annotate_costs
from benchmarks.annotate_costs import BEGIN, END, PAGE, added_up, main, table, with_table
from tests.tiny.benchmark_base import use_tiny_base

ROOT = Path(__file__).parents[2]
RECORD = {"base": "b", "base_dtype": "d", "sam": "s", "device": "x"}
pytestmark = pytest.mark.once


def test_the_sum_is_that_of_the_page():
    parts = {
        "encode": 100.0,
        "base, 1 prompts": 20.0,
        "base, 4 prompts": 26.0,
        "head": 1.0,
        "decode": 2.0,
        "write": 3.0,
    }
    assert added_up(parts, 1) == 126 and added_up(parts, 4) == 100 + 26 + 4 * 6
    assert "encode + base(p) + p · (head + decode + write)" in PAGE.read_text(encoding="utf-8")


def test_the_page_shows_what_was_measured():
    file = ROOT / "results" / "annotate_costs.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, results) == page


def test_it_runs(tmp_path, monkeypatch, capsys):
    use_tiny_base(monkeypatch)
    monkeypatch.setattr(annotate_costs, "COUNTS", (1, 2))
    file, page = tmp_path / "costs.json", tmp_path / "page.md"
    file.write_text(json.dumps({"another": {"record": RECORD, "heads": {}}}))
    page.write_text(f"Before.\n{BEGIN}\nstale\n{END}\nAfter.\n")
    main(["--heads", "lite", "--pictures", "3", "--repeats", "1", "--json", str(file), "--page", str(page)])
    results = json.loads(file.read_text())
    assert list(results) == ["another", "tiny, custom, cpu"]
    found = results["tiny, custom, cpu"]["heads"]["lite"]
    for count in (1, 2):
        summed = found["prompts"][str(count)]
        assert summed["pictures_per_hour_added_up"] == pytest.approx(3600 / added_up(found["seconds"], count))
        assert summed["pictures_per_hour"] > 0 and 50 < summed["row_bytes"] < 10_000
    assert page.read_text() == f"Before.\n{BEGIN}\n{table(results)}\n{END}\nAfter.\n"
    assert "| tiny in float32, custom |" in capsys.readouterr().out
