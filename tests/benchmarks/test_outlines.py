"""The two tiny SAMs: their record, the page that shows it, and a measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import outlines

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.once


def test_the_page_says_what_was_measured():
    results = json.loads((ROOT / "results" / "outlines.json").read_text())
    page = (ROOT / "docs" / "sam.md").read_text()
    assert outlines.with_table(page, results) == page


def test_finer_features_make_better_outlines(monkeypatch):
    monkeypatch.setattr(outlines, "TIMED", 1)
    first, second = (outlines.measure(4, "validation")[name] for name in outlines.SAMS)
    assert second["iou"] > first["iou"] > 0.8 and second["boundary_f"] > first["boundary_f"] + 0.02
    assert first["encode"] == first["decode"] == 1.0
