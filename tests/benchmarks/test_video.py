"""Videos of the built-in world: their record, the page that shows it, and a measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import video

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.once


def test_the_page_says_what_was_measured():
    results = json.loads((ROOT / "results" / "video.json").read_text())
    page = (ROOT / "docs" / "video.md").read_text()
    assert video.with_table(page, results) == page


def test_masks_of_every_frame_follow_what_moves(monkeypatch):
    monkeypatch.setattr(video, "FRAMES", 5)
    monkeypatch.setattr(video, "ROWS", {row: value for row, value in video.ROWS.items() if value[0] == "lite"})
    results = video.measure(3, "validation")
    drawn, still = results["lite, frame by frame"], results["lite, best frame held still"]
    assert drawn["j"] > still["j"] + 0.1 and drawn["f"] > still["f"] and results["unnamed"] < 3
