"""What annotating costs: the sum is of the measured parts, the run is a real one, and the page shows the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import annotate_costs
from benchmarks.annotate_costs import BEGIN, END, PAGE, added_up, main, table, with_table
from tests.tiny.benchmark_base import use_tiny_base

ROOT = Path(__file__).parents[2]
RECORD = {"base": "b", "base_dtype": "d", "sam": "s", "device": "x", "device_kind": "cuda", "threads": 2}
PARTS = {
    "encode": 100.0,
    "base, 1 prompts": 20.0,
    "base, 4 prompts": 26.0,
    "head": 1.0,
    "decode": 2.0,
    "write": 3.0,
}
pytestmark = pytest.mark.once


def test_the_sum_is_that_of_the_page():
    assert added_up(PARTS, 1) == 126 and added_up(PARTS, 4) == 100 + 26 + 4 * 6
    assert "encode + base(p) + p · (head + decode + write)" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (
            "cuda",
            "| lite | 4 | 100000.0 ms | 26000.0 ms | 4000.0 ms | 8000.0 ms | 12000.0 ms | 24 an hour | 20 an hour |",
        ),
        ("cpu", "| a CPU, threads: 2 | lite | 4 | 0.67 | 0.17 | 0.03 | 0.05 | 0.08 | 1 | 1.20 |"),
    ],
)
def test_seconds_are_told_of_an_accelerator_and_shares_of_a_cpu(kind, row):
    rates = {"pictures_per_hour_added_up": 24.0, "pictures_per_hour": 20.0}
    found = {"record": RECORD | {"device_kind": kind}, "heads": {"lite": {"seconds": PARTS, "prompts": {"4": rates}}}}
    assert row in table({"one": found})


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
