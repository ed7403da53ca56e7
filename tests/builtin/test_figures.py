"""The evaluation of the shipped models: exams, marks, baselines, and every figure where it belongs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lens_adapter import builtin
from lens_adapter.builtin import names
from lens_adapter.builtin.baselines import Baselines, innermost_point, with_target
from lens_adapter.builtin.exam import (
    EXPRESSIONS,
    HELD_OUT,
    LIMITS,
    PICTURE_SIZE,
    QUESTIONS,
    REQUEST_SUBSETS,
    SPOKEN,
    Exam,
    Utterance,
    make_exam,
)
from lens_adapter.builtin.figures import (
    InstanceTally,
    are_near,
    count_instances,
    evaluate_builtin,
    head_figures,
    instance_figures,
    mark,
    routing_figures,
    take_exam,
)
from lens_adapter.builtin.world import REQUEST_KINDS, Question, sample_scene
from lens_adapter.builtin.world.questions import WHERE
from lens_adapter.errors import LensError
from lens_adapter.evaluation import Evaluation, Finding, Overlap, overlap
from lens_adapter.output import Instances, LensOutput
from tests.tiny import things_reading as reading

METRICS = ("giou", "ciou", "precision_at_50")


@pytest.fixture(scope="module")
def exam() -> Exam:
    return make_exam(5, "test")


def test_an_exam_is_the_same_each_time_and_true(exam):
    again = make_exam(5, "test")
    assert exam.prompts == again.prompts and exam.questions == again.questions and exam.utterances == again.utterances
    scene = sample_scene(5, "test")
    assert exam.picture.tobytes() == scene.draw(PICTURE_SIZE).tobytes()
    masks = scene.masks(PICTURE_SIZE)
    for case in (*exam.cases, *exam.spoken):
        text = case.expression.text
        named, _ = reading.read(scene, text if case in exam.cases or case.group == "joined" else reading.plainly(text))
        assert case.has_target == bool(named)
        np.testing.assert_array_equal(case.truth, masks[named].any(0))
    for question in exam.questions:
        assert question.answer == reading.answer(scene, question.text)
    for utterance in exam.utterances:
        assert utterance.wants_mask == reading.wants_mask(scene, utterance.text)


def test_exams_ask_of_every_kind_and_nothing_twice():
    exams = [make_exam(index, "validation") for index in range(8)]
    groups = [case.group for exam in exams for case in exam.cases]
    most = EXPRESSIONS | dict.fromkeys(HELD_OUT, 1)
    assert all(0 < groups.count(group) <= count * len(exams) for group, count in most.items())
    assert set(groups) == set(most)
    assert {question.kind for exam in exams for question in exam.questions} == {*QUESTIONS, *LIMITS}
    spoken = [case.group for exam in exams for case in exam.spoken]
    assert all(0 < spoken.count(group) <= count * len(exams) for group, (*_, count) in SPOKEN.items())
    assert set(spoken) == set(SPOKEN)
    for exam in exams:
        told = [*exam.prompts, *(case.expression.text for case in exam.spoken)]
        assert len(set(told)) == len(told)
        assert len(set(exam.prompts)) == len(exam.prompts)
        assert [said.kind for said in exam.utterances if said.subset == "seen"] == list(REQUEST_KINDS)
        assert {r.subset for r in exam.utterances} == {*REQUEST_SUBSETS}
        assert all(case.has_target == (case.expression.kind != "absent") for case in exam.cases)


@pytest.mark.parametrize(
    "answer, near",
    [
        ("x3 y5", True),
        ("x4 y4", True),
        ("x2 y6", True),
        ("x5 y5", False),
        ("x3 y7", False),
        ("y5 x3", False),
        ("x3", False),
        ("x3 y5 and x3 y5", False),
        ("nowhere", False),
        ("x y", False),
        ("", False),
    ],
)
def test_near_means_within_one_cell(answer, near):
    assert are_near(answer, "x3 y5") is near


def test_near_lists_of_places():
    assert are_near("x3 y5 and x6 y1", "x3 y4 and x7 y1") and are_near("nowhere", "nowhere")
    assert not are_near("x3 y5", "x3 y5 and x6 y1") and not are_near("nowhere", "x1 y1")
    assert not are_near("x3 y5 and x6 y1", "x6 y1 and x3 y5")  # in another order


def test_marks():
    assert mark(Question("counting", "how many objects ?", "three"), "three") == {"counting": True}
    assert mark(Question("counting", "how many objects ?", "three"), "three three") == {"counting": False}
    where = Question("where", "where is the cat ?", "x3 y5")
    assert mark(where, "x4 y5") == {"where": False, "where_within_one_cell": True}


def test_innermost_point():
    mask = np.zeros((20, 40), bool)
    mask[2:17, 10:25] = True  # rows 2-16, columns 10-24: the middle is row 9, column 17
    assert innermost_point(mask) == ((17 + 0.5) / 40, (9 + 0.5) / 20)
    mask[2:17, 12:25] = False  # two columns, which a peel removes whole: any of their pixels
    x, y = innermost_point(mask)
    assert mask[int(y * 20), int(x * 40)]
    ring = np.hypot(*(np.mgrid[:41, :41] - 20)) < 18
    ring &= np.hypot(*(np.mgrid[:41, :41] - 20)) > 8
    x, y = innermost_point(ring)
    assert np.hypot(x * 41 - 20.5, y * 41 - 20.5) == pytest.approx(13, abs=1.5)
    single = np.zeros((4, 4), bool)
    single[3, 0] = True
    assert innermost_point(single) == (0.125, 0.875)


def finding(group: str, intersection: int, union: int, score: float, *, hit: bool = False) -> Finding:
    """Of a mask as large as its truth, or of one for nothing."""
    area = (intersection + union) // 2
    there = group != "absent"
    return Finding(Overlap(intersection, area if there else union, area * there), score, (hit,), group)


def test_figures_of_a_head_by_hand():
    figures = head_figures(
        [
            finding("attribute", 90, 110, 0.9, hit=True),
            finding("attribute", 10, 100, 0.2),
            finding("spatial", 80, 100, 0.8, hit=True),
            finding("absent", 0, 5, 0.1),
            finding("absent", 0, 5, 0.7),
            finding("held_out_fact", 50, 100, 0.6),  # in no figure but its own
        ],
        score_threshold=0.5,
    )
    assert figures == {
        "giou.attribute": pytest.approx((9 / 11 + 0) / 2),  # the refused mask is empty
        "ciou.attribute": pytest.approx(90 / (110 + 55)),
        "precision_at_50.attribute": 0.5,
        "giou.spatial": pytest.approx(0.8),
        "ciou.spatial": pytest.approx(0.8),
        "precision_at_50.spatial": 1.0,
        "giou.held_out_fact": pytest.approx(0.5),
        "ciou.held_out_fact": pytest.approx(0.5),
        "precision_at_50.held_out_fact": 1.0,
        "giou.all": pytest.approx((9 / 11 + 0.8) / 3),
        "ciou.all": pytest.approx(170 / (110 + 55 + 100)),
        "precision_at_50.all": pytest.approx(2 / 3),
        "no_target_accuracy": 0.5,
        "target_accepted": pytest.approx(2 / 3),
        "keypoint_on_target": pytest.approx(2 / 3),
        "score_rank_correlation": pytest.approx(1),
        "score_error": pytest.approx((0.9 - 9 / 11 + 0.1 + 0) / 3),
    }


def test_a_figure_without_cases_is_left_out():
    assert head_figures([finding("absent", 0, 5, 0.1)], 0.0) == {"no_target_accuracy": 0.0}
    alone = head_figures([finding("spatial", 5, 5, 0.6)], 0.0)
    assert not {"no_target_accuracy", "score_rank_correlation", "giou.attribute"} & set(alone)


def test_figures_of_routing_by_hand():
    said = {
        ("dialogue", "seen"): [False, False, False, True],
        ("explicit", "seen"): [True, True, False],
        ("mixed", "seen"): [True],
        ("reasoning", "held_out_template"): [False, True],
    }
    routed = [(Utterance(kind, way, "it"), taken) for (kind, way), decisions in said.items() for taken in decisions]
    assert routing_figures(routed) == {
        "taken_for_requests.dialogue": 0.25,
        "taken_for_requests.explicit": pytest.approx(2 / 3),
        "taken_for_requests.mixed": 1.0,
        "balanced_accuracy": pytest.approx((0.75 + 0.75) / 2),
        "held_out_template.taken_for_requests.reasoning": 0.5,
        "held_out_template.balanced_accuracy": pytest.approx((0.5 + 0.75) / 2),
    }
    assert routing_figures([]) == {}


def test_figures_of_instances_by_hand():
    tallies = [
        InstanceTally(found=2, there=3, matched=2, group="several"),
        InstanceTally(found=3, there=2, matched=1, group="several"),
        InstanceTally(found=0, there=2, matched=0, group="several"),  # refused
        InstanceTally(found=2, there=1, matched=1, group="spatial"),
        InstanceTally(found=1, there=1, matched=1, group="attribute"),
        InstanceTally(found=5, there=4, matched=4, group="reasoning"),  # in no figure, nor what follows
        InstanceTally(found=5, there=1, matched=0, group="held_out_fact"),
    ]
    expected = {"instances.precision": 3 / 5, "instances.recall": 3 / 7, "instances.one_split": 0.5}
    assert instance_figures(tallies) == pytest.approx(expected)
    assert instance_figures([]) == {}
    assert instance_figures(tallies[2:3]) == {"instances.recall": 0.0}


def test_instances_are_counted_one_to_one():
    """Of four things one is found, one is cut in halves, and two are taken for one."""
    things = np.zeros((4, 20, 40), bool)
    for k, thing in enumerate(things):
        thing[5:15, 10 * k : 10 * k + 9] = True
    halves = things[1] & (np.arange(40) < 14), things[1] & (np.arange(40) >= 14)
    found = torch.tensor(np.stack([things[0], *halves, things[2] | things[3]]))
    exam = make_exam(5, "test")
    cases = [replace(case, expression=replace(case.expression, targets=(0, 1, 2, 3))) for case in exam.cases[:1]]
    exam = replace(exam, objects=things, cases=cases)
    instances = [Instances(found, torch.ones(4))]
    masks, points = found.any(0)[None], [torch.zeros(0, 2)]
    out = LensOutput(
        ["all"], (20, 40), masks, torch.tensor([0.8]), points, [torch.zeros(0)], masks.float(), instances=instances
    )
    (tally,) = count_instances(out, exam, 0.5)
    # The larger half of the cut one (5 of 9 columns) is still half of it, the pair is half of each.
    assert (tally.found, tally.there, tally.matched) == (4, 4, 3)
    (tally,) = count_instances(out, exam, 0.9)
    assert (tally.found, tally.there, tally.matched) == (0, 4, 0)


class Oracle:
    """Answers every prompt of an exam with the truth, at full score; nothing, at score 0, where there is nothing."""

    def __init__(self, exam: Exam):
        self.exam = exam

    def segment(self, picture, prompts, score_threshold) -> LensOutput:
        assert score_threshold == 0  # a refusal is the evaluation's business
        masks = torch.tensor(np.stack([case.truth for case in self.exam.cases]))
        clicks = [np.multiply(innermost_point(c.truth), PICTURE_SIZE) if c.has_target else () for c in self.exam.cases]
        points = [torch.tensor(np.array(click)).reshape(-1, 2) for click in clicks]
        scores = masks.any(2).any(1).float()
        heat = torch.zeros(len(masks), 8, 8)
        found = [torch.ones(len(p)) for p in points]
        return LensOutput(list(prompts), (PICTURE_SIZE, PICTURE_SIZE), masks, scores, points, found, heat)


def test_an_oracle_gets_full_marks():
    exams = [make_exam(index, "test") for index in (5, 6)]
    findings = [one for exam in exams for one in take_exam(Oracle(exam), exam)]
    figures = head_figures(findings, 0.5)
    assert "no_target_accuracy" in figures and "giou.all" in figures
    assert figures.pop("score_error") == 0.0
    assert set(figures.values()) == {1.0}


def test_a_refusal_is_an_empty_mask_or_a_low_score(exam):
    oracle = Oracle(exam)
    out = oracle.segment(exam.picture, exam.prompts, 0)
    out.masks[0] = False
    out.scores[1] = 0.49
    oracle.segment = lambda picture, prompts, score_threshold: out
    refused = [one.refused(0.5) for one in take_exam(oracle, exam)]
    assert refused == [True, True, *(not case.has_target for case in exam.cases[2:])]


def test_everything_is_measured(shipped, monkeypatch):
    monkeypatch.setattr("lens_adapter.builtin.figures.VALIDATION_SCENES", 1)
    foreseen: list[float] = []
    measured = evaluate_builtin(scenes=2, foresee=foreseen.append)
    figures = measured.figures
    json.dumps(measured.to_dict(), allow_nan=False)
    assert len(foreseen) == 1 and foreseen[0] > 0
    exams = [make_exam(index, "test") for index in range(2)]
    groups = {case.group for exam in exams for case in exam.cases if case.has_target} | {"all"}
    masks = {f"{metric}.{group}" for metric in METRICS for group in groups}
    names = ("random_object", "raw_attention", "raw_keypoint", "oracle_keypoint")
    expected = {f"baselines.{name}.{key}" for name in names for key in masks}
    judgements = {"no_target_accuracy", "target_accepted", "keypoint_on_target", "score_rank_correlation"}
    judgements |= {"score_error", "instances.precision", "instances.recall", "instances.one_split"}
    spoken = {case.group for exam in exams for case in exam.spoken if case.has_target}
    masks |= {f"{metric}.{group}" for metric in METRICS for group in spoken}
    expected |= {f"heads.{name}.{key}" for name in builtin.HEADS for key in masks | judgements}
    expected |= {f"answers.{question.kind}" for exam in exams for question in exam.questions}
    expected |= {
        f"answers.{question.kind}_within_one_cell"
        for exam in exams
        for question in exam.questions
        if question.kind in WHERE
    }
    taken = {f"taken_for_requests.{kind}" for kind in REQUEST_KINDS} | {"balanced_accuracy"}
    expected |= {f"routing.{key}" for key in taken}
    expected |= {f"routing.held_out_template.{key}" for key in taken - {"taken_for_requests.dialogue"}}
    assert set(figures) == expected
    for name, value in figures.items():
        assert (-1 if name.endswith("rank_correlation") else 0) <= value <= 1, name
    shown = [line for line in measured.to_markdown().splitlines() if line.startswith("| ") and "---" not in line]
    numbers = [
        cell.strip() for line in shown for cell in line.split("|") if cell.strip().lstrip("-").startswith(("0.", "1."))
    ]
    assert sorted(numbers) == sorted(f"{value:.4f}" for value in figures.values()) and len(shown) < 80
    for record, name in zip(measured.records, builtin.HEADS, strict=True):
        assert Evaluation.from_dict(json.loads(json.dumps(record.to_dict()))).figures == record.figures
        assert record.head_sha256 == builtin.load_head(name).digest() and record.images == 2
        assert record.figures["reasoning"]["giou"].value == figures[f"heads.{name}.giou.reasoning"]
        seen = [case for exam in exams for case in exam.cases if case.expression.subset == "seen"]
        assert record.prompts > len(seen) > 0 and "absent" in record.figures
    assert evaluate_builtin(scenes=2).figures == figures


@pytest.fixture(scope="module")
def baselines(shipped) -> Baselines:
    return Baselines(builtin.load_head("lite").attach(*builtin.load_base()))


def test_baselines_give_one_mask_per_case_with_a_target(baselines, exam):
    masks = baselines.masks(exam)
    for name, found in masks.items():
        assert len(found) == len(with_target(exam)), name
        assert all(mask.shape == (PICTURE_SIZE, PICTURE_SIZE) and mask.dtype == bool for mask in found), name
    assert all(any((mask == thing).all() for thing in exam.objects) for mask in masks["random_object"])


def test_raw_attention_is_cut_at_a_share_of_its_peak(baselines, exam, monkeypatch):
    ramp = torch.arange(4.0).expand(1, 4, 4) / 3  # brighter to the right
    monkeypatch.setattr(baselines, "_attention", lambda *_: {baselines.layer: ramp})
    one = replace(exam, cases=with_target(exam)[:1])
    baselines.share = 0.5  # crossed in the middle between the centers of the second and the third column
    (mask,) = baselines.masks(one)["raw_attention"]
    expected = np.zeros((PICTURE_SIZE, PICTURE_SIZE), bool)
    expected[:, PICTURE_SIZE // 2 :] = True
    np.testing.assert_array_equal(mask, expected)


def test_clicks_are_those_of_sam_itself(baselines, exam, monkeypatch):
    """The oracle's click through segment-anything's own predictor gives the same mask."""
    from segment_anything import SamPredictor

    from tests.tiny.sam import segment_anything_of

    case = with_target(exam)[0]
    (mask, *_) = baselines.masks(exam)["oracle_keypoint"]
    predictor = SamPredictor(segment_anything_of(baselines.sam))
    predictor.set_image(np.asarray(exam.picture))
    click = np.multiply([innermost_point(case.truth)], PICTURE_SIZE)
    expected, _, _ = predictor.predict(click, np.ones(1), multimask_output=False)
    assert overlap(mask, expected[0]).iou > 0.99


def test_choose_takes_the_best_layer_and_share(baselines, exam, monkeypatch):
    """Layer 2 shows the truth where others show nothing of it; 0.6 is the share that leaves out its halo."""
    cases = with_target(exam)
    truth = torch.tensor(np.stack([case.truth for case in cases])).float()
    halo = torch.nn.functional.max_pool2d(truth[:, None], 31, 1, 15)[:, 0]
    maps = {layer: torch.ones_like(truth) for layer in range(4)} | {2: torch.maximum(truth, 0.55 * halo)}
    monkeypatch.setattr(baselines, "_attention", lambda exam, cases, layers: {layer: maps[layer] for layer in layers})
    baselines.choose([exam])
    assert (baselines.layer, baselines.share) == (2, 0.6)


def test_missing_models_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "VLM", tmp_path / "vlm")
    monkeypatch.setattr(names, "HEADS", {"lite": tmp_path / "lens-lite"})
    for load in (builtin.load_base, lambda: builtin.load_head("lite")):
        with pytest.raises(LensError, match="train the models with the scripts in examples/builtin"):
            load()
