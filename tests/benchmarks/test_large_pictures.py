"""What large pictures cost: parts are counted once, pages show the record, and the figures are of real runs."""

from __future__ import annotations

import json

import pytest

from benchmarks import large_pictures
from benchmarks.large_pictures import CHANGES_PAGE, FULL, PROFILE_PAGE, RESULTS, Parts, main, with_tables

pytestmark = pytest.mark.once


def test_what_is_within_a_part_counts_once(monkeypatch):
    # The clock shows these when it is looked at: as a part begins, and as it ends.
    clock = iter([0.0, 1.0, 11.0, 12.0, 32.0, 35.0])
    monkeypatch.setattr(large_pictures, "thread_time", lambda: next(clock))
    parts = Parts()
    with parts.part("outer"):
        with parts.part("inner"):
            pass
        with parts.part("inner"):
            pass
    assert parts.seconds == {"outer": 5, "inner": 30}


def test_the_pages_show_what_was_measured():
    pages = [page.read_text(encoding="utf-8") for page in (CHANGES_PAGE, PROFILE_PAGE)]
    assert with_tables(*pages, json.loads(RESULTS.read_text(encoding="utf-8"))) == tuple(pages)


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(large_pictures, "SIZES", ((200, 300), (201, 303)))
    monkeypatch.setattr(large_pictures, "SIDES", {"1/2": 100, "1/4": 50})
    monkeypatch.setattr(large_pictures, "HEADS", ("lite",))
    for page in (CHANGES_PAGE, PROFILE_PAGE):
        (tmp_path / page.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(large_pictures, "CHANGES_PAGE", tmp_path / CHANGES_PAGE.name)
    monkeypatch.setattr(large_pictures, "PROFILE_PAGE", tmp_path / PROFILE_PAGE.name)
    main(["--pictures", "3", "--json", str(tmp_path / "large.json")])
    found = json.loads((tmp_path / "large.json").read_text())
    changed, profile = found["changes"]["lite"], found["profile"]["lite"]
    assert list(changed) == [FULL, "1/2", "1/4", large_pictures.AGAIN] and changed[FULL]["worst_iou"] == 1
    assert all(one["prompts"] == 6 and 0 <= one["worst_iou"] <= one["mean_iou"] <= 1 for one in changed.values())
    assert changed["1/4"]["mean_iou"] < 1
    assert all(seconds >= 0 for run in profile.values() for part, seconds in run.items() if part != "all else")
    assert {"open and decode", "processor", "base", "run lengths and rows", "Parquet"} <= set(profile[FULL])
