"""`benchmarks.compare_heads`: figures are those of the evaluation, times those of the first head."""

from __future__ import annotations

import pytest

from benchmarks.compare_heads import compare
from lens_adapter import builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.builtin.figures import head_figures, take_exam

SCENES = 2


@pytest.mark.once
def test_figures_are_those_of_the_evaluation():
    folders = [builtin.HEADS["lite"], builtin.HEADS["mirror"]]
    results = compare(folders, SCENES, "validation")
    assert results["scenes"] == SCENES and results["split"] == "validation"
    model, processor = builtin.load_base()
    with builtin.load_head("lite").attach(model, processor) as adapter:
        findings = [one for k in range(SCENES) for one in take_exam(adapter, make_exam(k, "validation"))]
        expected = head_figures(findings, adapter.config.score_threshold)
    lite = results["lens-lite"]
    assert {key: lite[key] for key in expected} == expected
    assert lite["seconds"] == 1 and 0 < lite["boundary_f"] < 1
    assert results["lens-mirror"]["giou.all"] != lite["giou.all"]
