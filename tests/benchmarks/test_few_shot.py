"""The few-shot curve: its committed record reaches the bars, its page says what it says, and it can be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import few_shot

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((ROOT / "results" / "few_shot.json").read_text())


def test_a_readout_is_as_good_as_was_asked_for(results):
    assert results["scenes"] == 1000 and results["draws"] == 5
    for size, bar in few_shot.BARS.items():
        assert results["refused_fits"][size] == 0 and results["curve"][size]["giou.all"]["mean"] >= bar
    with_50 = results["curve"]["50"]
    assert with_50["giou.several"]["mean"] >= few_shot.SEVERAL_BAR
    assert with_50["no_target_accuracy"]["mean"] >= few_shot.REFUSED_BAR
    assert with_50["target_accepted"]["mean"] >= few_shot.ACCEPTED_BAR
    assert with_50["calibration_error"]["mean"] < 0.05
    assert results["seconds_of_fitting_1024_heads_50_examples"] <= few_shot.SECONDS_BAR


def test_the_page_says_what_was_measured(results):
    page = (ROOT / "docs" / "first-head.md").read_text()
    assert few_shot.with_table(page, *few_shot.records()) == page
    shown = f"{results['curve']['50']['giou.all']['mean']:.2f} with 50 examples"
    assert shown in (ROOT / "README.md").read_text()


def test_it_can_be_measured_again(tmp_path):
    file = tmp_path / "few.json"
    measured = few_shot.measure(2, 1, [10], ["four random heads"], file)
    assert json.loads(file.read_text()) == measured and set(measured["beside"]) <= {"four random heads"}
    assert measured["refused_fits"]["10"] in (0, 1)
    again = few_shot.measure(2, 1, [], ["best single head"], file)
    assert again["curve"] == measured["curve"] and "best single head" in again["refused_fits"]
    with pytest.raises(SystemExit, match="other scenes or draws"):
        few_shot.measure(3, 1, [], [], file)


def test_good_heads_point_better_than_random_ones(results):
    beside = {name: found["giou.all"]["mean"] for name, found in results["beside"].items()}
    assert beside["best single head"] > beside["random single head"]
    assert beside["best four heads"] > beside["four random heads"]
