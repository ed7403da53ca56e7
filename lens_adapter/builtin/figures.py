"""The models that ship with the package, measured on their test split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from statistics import fmean
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from lens_adapter import builtin
from lens_adapter.adapter import LensAdapter
from lens_adapter.builtin.baselines import Baselines, with_target
from lens_adapter.builtin.exam import EXPRESSIONS, REQUEST_SUBSETS, Exam, Utterance, make_exam
from lens_adapter.builtin.world import Question
from lens_adapter.builtin.world.questions import WHERE
from lens_adapter.data.examples import Example
from lens_adapter.evaluation import Evaluation, Finding, by_subset, finding_of, measure, overlap
from lens_adapter.evaluation.runner import record_of
from lens_adapter.hub.markdown import aligned_table
from lens_adapter.output import LensOutput, is_found
from lens_adapter.results import metric_name

AT_ONCE = 10  # scenes that a process is given
VALIDATION_SCENES = 40  # to choose the baselines' layer and share of the peak on
SAME_THING = 0.5  # IoU from which on an instance is one of the things that are there
One = TypeVar("One")
MASK_METRICS = ("giou", "ciou", "precision_at_50")
# what it is called here -> in `lens_adapter.evaluation`
JUDGEMENTS = {
    "no_target_accuracy": "no_target_accuracy",
    "target_accepted": "target_accuracy",
    "keypoint_on_target": "first_keypoint_on_target",
    "score_rank_correlation": "score_rank_correlation",
    "score_error": "score_error",
}


@dataclass(frozen=True)
class BuiltinFigures:
    """What was measured of the models that ship.

    Attributes:
        figures: by dotted name, see `evaluate_builtin`.
        records: of each head by the protocol of `lens_adapter.evaluation`, absent prompts included, as `push` takes
            them: "all" are the seen kinds. gIoU and cIoU of all are therefore others than in `figures`.
    """

    figures: dict[str, float]
    records: list[Evaluation]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the figures by their names, and the list `records`."""
        return {**self.figures, "records": [record.to_dict() for record in self.records]}

    def to_markdown(self) -> str:
        """All figures in tables."""
        return "\n\n".join(_tables(self.figures))


def evaluate_builtin(
    scenes: int, foresee: Callable[[float], object] = lambda _: None, workers: int = 1
) -> BuiltinFigures:
    """Measure everything the package ships on its test split, scene by scene: memory grows by a few numbers a scene.

    Args:
        scenes: number of test scenes; the published figures use 1000.
        foresee: is told before it begins how many seconds the test scenes will take, by the pace of one.
        workers: processes that share the scenes. The figures are the same.

    Returns:
        The records, and figures by dotted name. Each is a fraction in [0, 1], but for `score_rank_correlation` in
        [-1, 1]; one of which the scenes hold no case is left out.

        - `answers.KIND`: of the frozen model, exactly right. `answers.where_KIND` say how much of what is named so it
          can find itself, and `answers.where_KIND_within_one_cell` with what is a cell beside.
        - `heads.HEAD.METRIC.KIND`, `baselines.NAME.METRIC.KIND`: KIND is a kind of expression that names something,
          "all" of these together, or "held_out_fact", "held_out_phrasing", "held_out_template": expressions of which
          one thing never named a mask in training. These are in no other figure. Nor are, for heads only, "joined"
          ("the pizza and the sheep"), "everyday" and "held_out_wording": how people talk to it, in wordings that were
          taught, and in others.
        - `heads.HEAD.instances.FIGURE`: see `instance_figures`.
        - `heads.HEAD.JUDGEMENT`: whether it finds what is there, refuses what is not, and knows how good a mask is.
        - `routing.taken_for_requests.KIND`: share that `adapter.route` takes for requests for a mask, as all but
          "dialogue" are; `routing.balanced_accuracy`: dialogue against the others; `routing.held_out_template.*`: the
          same where the mask is asked for in a way that was never taught.
    """
    examinee = Examinee()
    try:
        foresee(scenes * _seconds_of_one(examinee) / workers)
        tuning = tqdm(range(VALIDATION_SCENES), desc="baselines, validation scenes")
        examinee.baselines.choose(make_exam(index, "validation") for index in tuning)
        marks = Marks()
        with tqdm(total=scenes, desc="test scenes") as bar:
            for several in _marked(examinee, scenes, workers):
                marks.add(several)
                bar.update(several.scenes)
        heads = examinee.heads
        records = [_record(heads[name], found) for name, found in marks.findings.items()]
    finally:
        examinee.let_go()
    figures = {f"answers.{kind}": fmean(right) for kind, right in marks.answers.items()}
    figures |= {f"routing.{key}": value for key, value in routing_figures(marks.routed).items()}
    for name, found in marks.findings.items():
        judged = head_figures(found, heads[name].config.score_threshold) | instance_figures(marks.tallies[name])
        figures |= {f"heads.{name}.{key}": value for key, value in judged.items()}
    for name, found in marks.bare.items():
        figures |= {f"baselines.{name}.{key}": value for key, value in mask_figures(found).items()}
    return BuiltinFigures(figures, records)


@dataclass
class Marks:
    """What came of some scenes, one by one: of the base's answers and routes, of heads, and of baselines."""

    scenes: int = 0
    answers: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    routed: list[tuple[Utterance, bool]] = field(default_factory=list)
    findings: dict[str, list[Finding]] = field(default_factory=lambda: defaultdict(list))
    tallies: dict[str, list[InstanceTally]] = field(default_factory=lambda: defaultdict(list))
    bare: dict[str, list[Finding]] = field(default_factory=lambda: defaultdict(list))

    def add(self, later: Marks) -> None:
        """Those of the scenes that come next."""
        self.scenes += later.scenes
        self.routed += later.routed
        _extend(self.answers, later.answers)
        _extend(self.findings, later.findings)
        _extend(self.tallies, later.tallies)
        _extend(self.bare, later.bare)


def _extend(mine: dict[str, list[One]], theirs: dict[str, list[One]]) -> None:
    for name, several in theirs.items():
        mine[name] += several


class Examinee:
    """The models that ship, attached, and the baselines beside them."""

    def __init__(self) -> None:
        self._attached = ExitStack()
        self.model, self.processor = builtin.load_base()
        self.heads = {
            name: self._attached.enter_context(builtin.load_head(name).attach(self.model, self.processor))
            for name in builtin.HEADS
        }
        self.baselines = Baselines(self.heads["lite"])

    def let_go(self) -> None:
        self._attached.close()

    def take(self, exam: Exam) -> tuple[list[str], list[tuple[Utterance, bool]], dict[str, LensOutput]]:
        """The base's answers, what it takes for requests, and what each head finds."""
        texts = [question.text for question in exam.questions]
        said = builtin.ask(self.model, self.processor, [exam.picture] * len(texts), texts)
        route = self.heads["lite"].route  # the base decides, no head
        told = [(one, route(one.text, exam.picture).decision == "mask") for one in exam.utterances]
        found = {
            name: head.segment(exam.picture, exam.prompts, score_threshold=0.0, instances=True)
            for name, head in self.heads.items()
        }
        return said, told, found

    def marks(self, scenes: range) -> Marks:
        """Of test scenes."""
        marks = Marks(len(scenes))
        for index in scenes:
            exam = make_exam(index, "test")
            said, told, outputs = self.take(exam)
            marks.routed += told
            for question, answer in zip(exam.questions, said, strict=True):
                for kind, right in mark(question, answer).items():
                    marks.answers[kind].append(right)
            for name, out in outputs.items():
                head = self.heads[name]
                marks.findings[name] += findings_of(out, exam)
                if exam.spoken:
                    marks.findings[name] += take_exam(head, replace(exam, cases=exam.spoken))
                marks.tallies[name] += count_instances(out, exam, head.config.score_threshold)
            for name, masks in self.baselines.masks(exam).items():
                for case, mask in zip(with_target(exam), masks, strict=True):
                    marks.bare[name].append(Finding(overlap(mask, case.truth), score=1.0, subset=case.group))
        return marks


_in_this_process: Examinee | None = None  # of a process that only marks


def _marked(examinee: Examinee, scenes: int, workers: int) -> Iterator[Marks]:
    """Marks of all test scenes in order, some scenes at a time, by so many processes."""
    several = [range(first, min(first + AT_ONCE, scenes)) for first in range(0, scenes, AT_ONCE)]
    if workers == 1:
        yield from map(examinee.marks, several)
        return
    chosen = (examinee.baselines.layer, examinee.baselines.share)
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, chosen) as pool:
        yield from pool.map(_marks_here, several)


def _begin(layer: int, share: float) -> None:
    global _in_this_process
    torch.set_num_threads(1)
    _in_this_process = Examinee()
    _in_this_process.baselines.layer, _in_this_process.baselines.share = layer, share


def _marks_here(scenes: range) -> Marks:
    assert _in_this_process is not None
    return _in_this_process.marks(scenes)


def _seconds_of_one(examinee: Examinee) -> float:
    """What one scene takes; the first time does not count, as much is done once."""
    exam, seconds = make_exam(0, "test"), 0.0
    for _ in range(2):
        began = perf_counter()
        examinee.take(exam)
        seconds = perf_counter() - began
    return seconds


def _record(adapter: LensAdapter, findings: Sequence[Finding]) -> Evaluation:
    subsets = by_subset(findings)
    subsets["all"] = [finding for finding in findings if finding.subset in EXPRESSIONS]
    dataset = {"name": "lens_adapter.builtin.world", "split": "test"}
    return record_of(adapter, findings, subsets, adapter.config.thresholds(), dataset)


def _tables(figures: Mapping[str, float]) -> Iterator[str]:
    """Markdown: a table per metric of masks, one of what heads know of themselves, and one per group of the others."""
    left = dict(figures)

    def of(title: str, cells: dict[str, dict[str, str]], across: str) -> str:
        """`cells`: row -> column -> name of the figure."""
        columns = list(dict.fromkeys(column for row in cells.values() for column in row))
        rows = [[across, *columns]]
        for name, row in cells.items():
            rows.append([name, *(f"{left.pop(row[key]):.4f}" if key in row else "" for key in columns)])
        return f"{title}\n\n{aligned_table(rows)}"

    for metric in MASK_METRICS:
        cells: dict[str, dict[str, str]] = defaultdict(dict)
        for key in figures:
            group, name, *rest = key.split(".")
            if group in ("heads", "baselines") and rest[0] == metric:
                cells[f"{group}.{name}"][".".join(rest[1:])] = key
        if cells:
            yield of(f"{metric_name(metric)} of prompts that name something ({metric})", cells, "")
    judged: dict[str, dict[str, str]] = defaultdict(dict)
    for key in [key for key in left if key.startswith("heads.")]:
        _, head, figure = key.split(".", 2)
        judged[figure][f"heads.{head}"] = key
    if judged:
        yield of("What heads know of themselves, and instances", judged, "")
    for group in dict.fromkeys(key.partition(".")[0] for key in left):
        rows = {key.partition(".")[2]: {"share": key} for key in [*left] if key.startswith(f"{group}.")}
        yield of(f"{group.capitalize()} of the frozen model", rows, group)


def mark(question: Question, answer: str) -> dict[str, bool]:
    """Kind -> is the answer exactly right; for places also whether it is right to within one cell."""
    marks = {question.kind: answer == question.answer}
    if question.kind in WHERE:
        marks[f"{question.kind}_within_one_cell"] = are_near(answer, question.answer)
    return marks


def are_near(answer: str, truth: str) -> bool:
    """Are two places ("x3 y5"), or lists of them in order, at most one column and one row apart?"""
    said, meant = answer.replace(" and ", " ").split(), truth.replace(" and ", " ").split()
    if answer == truth or [word[0] for word in said] != [word[0] for word in meant]:
        return answer == truth
    places = all(word[1:].isdigit() for word in said + meant)
    return places and all(abs(int(a[1:]) - int(b[1:])) <= 1 for a, b in zip(said, meant, strict=True))


def routing_figures(routed: Sequence[tuple[Utterance, bool]]) -> dict[str, float]:
    """Figure -> value: of utterances, and whether each was taken for a request for a mask."""
    figures: dict[str, float] = {}
    dialogue = [taken for utterance, taken in routed if not utterance.wants_mask]
    if dialogue:
        figures["taken_for_requests.dialogue"] = fmean(dialogue)
    for subset in REQUEST_SUBSETS:
        asked: dict[str, list[bool]] = defaultdict(list)
        for utterance, taken in routed:
            if utterance.wants_mask and utterance.subset == subset:
                asked[utterance.kind].append(taken)
        prefix = "" if subset == "seen" else f"{subset}."
        figures |= {f"{prefix}taken_for_requests.{kind}": fmean(taken) for kind, taken in asked.items()}
        if dialogue and asked:
            rightly = fmean(taken for kind in asked.values() for taken in kind)
            figures[f"{prefix}balanced_accuracy"] = (rightly + 1 - fmean(dialogue)) / 2
    return figures


def take_exam(adapter: LensAdapter, exam: Exam) -> list[Finding]:
    """Let an attached head segment every case of an exam; a finding's subset is its case's group."""
    return findings_of(adapter.segment(exam.picture, exam.prompts, score_threshold=0.0), exam)


def findings_of(out: LensOutput, exam: Exam) -> list[Finding]:
    """What was made of every case of an exam, at score threshold 0."""
    examples = (Example(exam.picture, case.expression.text, case.truth, subset=case.group) for case in exam.cases)
    return [finding_of(out, k, example, picture=str(exam.seed)) for k, example in enumerate(examples)]


@dataclass(frozen=True)
class InstanceTally:
    """Of one prompt that names something: instances found, things that are there, and pairs of them at `SAME_THING`."""

    found: int
    there: int
    matched: int
    group: str


def count_instances(out: LensOutput, exam: Exam, score_threshold: float) -> list[InstanceTally]:
    """A tally for each case of an exam that names something; what is refused has no instances.

    Args:
        out: of the exam's prompts, at score threshold 0, with instances.
        exam: what was asked.
        score_threshold: of the head.
    """
    tallies = []
    for case, score, instances in zip(exam.cases, out.scores.tolist(), out.instances or (), strict=True):
        if case.has_target:
            truths = exam.objects[list(case.expression.targets)]
            masks = instances.masks.numpy()[: None if is_found(score, score_threshold) else 0]
            same = np.array([[overlap(mask, truth).iou >= SAME_THING for truth in truths] for mask in masks], bool)
            same = same.reshape(-1, len(truths))
            # Instances are disjoint, and so are things: an IoU above one half is one to one by itself.
            matched = min(same.any(0).sum(), same.any(1).sum())
            tallies.append(InstanceTally(len(masks), len(truths), int(matched), case.group))
    return tallies


def instance_figures(tallies: Sequence[InstanceTally]) -> dict[str, float]:
    """Figure -> value, over all instances together.

    `instances.precision` and `instances.recall`: share of the instances found, and of the things that are there, that
    have a partner; of "several". `instances.one_split`: share of the prompts for one thing (seen ones) that are given
    more than one instance.
    """
    several = [tally for tally in tallies if tally.group == "several"]
    ones = [tally.found > 1 for tally in tallies if tally.there == 1 and tally.group in EXPRESSIONS]
    matched, found, there = (sum(getattr(one, name) for one in several) for name in ("matched", "found", "there"))
    figures = {"instances.precision": matched / found} if found else {}
    figures |= {"instances.recall": matched / there} if there else {}
    return figures | ({"instances.one_split": fmean(ones)} if ones else {})


def head_figures(findings: Sequence[Finding], score_threshold: float) -> dict[str, float]:
    """Figure -> value: `mask_figures` of the cases with a target, and `JUDGEMENTS` of the seen cases."""
    figures = mask_figures([finding for finding in findings if finding.has_target], score_threshold)
    judged = measure([finding for finding in findings if finding.subset in EXPRESSIONS], score_threshold)
    return figures | {name: judged[metric] for name, metric in JUDGEMENTS.items() if metric in judged}


def mask_figures(findings: Sequence[Finding], score_threshold: float = 0.0) -> dict[str, float]:
    """Of cases with targets: `METRIC.GROUP`, and `METRIC.all` of the seen ones."""
    groups = by_subset(findings)
    groups["all"] = [finding for finding in findings if finding.subset in EXPRESSIONS]
    measured = {group: measure(found, score_threshold) for group, found in groups.items() if found}
    return {f"{metric}.{group}": values[metric] for group, values in measured.items() for metric in MASK_METRICS}
