"""The models that ship with the package, measured on their test split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean

from tqdm import tqdm

from lens_adapter import builtin
from lens_adapter.adapter import LensAdapter
from lens_adapter.builtin.baselines import Baselines, with_target
from lens_adapter.builtin.exam import Case, Exam, make_exam
from lens_adapter.data.expressions import Question
from lens_adapter.evaluation import Overlap, mask_metrics, overlap, self_knowledge
from lens_adapter.signals import LensOutput

VALIDATION_SCENES = 40  # to choose the baselines' layer and share of the peak on


@dataclass(frozen=True)
class Finding:
    """What a head made of one case.

    Attributes:
        kind: of the expression.
        has_target: the expression names something.
        overlap: of mask and truth.
        score: the head's own estimate of its mask.
        refused: the mask is empty, or the score below the head's threshold: the head says "not there".
        peak_on_target: the first keypoint lies on what is named.
    """

    kind: str
    has_target: bool
    overlap: Overlap
    score: float
    refused: bool
    peak_on_target: bool


def evaluate_builtin(scenes: int = 500) -> dict[str, float]:
    """Measure everything the package ships on its test split, scene by scene: memory does not grow with their number.

    Args:
        scenes: number of test scenes; the published figures use 500.

    Returns:
        Figures by dotted name: `answers.KIND`, `heads.HEAD.METRIC.KIND`, `heads.HEAD.JUDGEMENT` and
        `baselines.NAME.METRIC.KIND`, where KIND is a kind of expression with targets or "all" of them together. Each is
        a fraction in [0, 1], but for `score_rank_correlation` in [-1, 1]. A figure of which the scenes hold no case is
        left out.
    """
    model, processor = builtin.load_base()
    answers: dict[str, list[bool]] = defaultdict(list)
    findings: dict[str, list[Finding]] = defaultdict(list)
    overlaps: dict[str, list[tuple[str, Overlap]]] = defaultdict(list)
    with ExitStack() as attached:
        heads = {
            name: attached.enter_context(builtin.load_head(name).attach(model, processor)) for name in builtin.HEADS
        }
        baselines = Baselines(heads["lite"])
        tuning = tqdm(range(VALIDATION_SCENES), desc="baselines, validation scenes")
        baselines.choose(make_exam(index, "validation") for index in tuning)
        for index in tqdm(range(scenes), desc="test scenes"):
            exam = make_exam(index, "test")
            texts = [question.text for question in exam.questions]
            said = builtin.ask(model, processor, [exam.picture] * len(texts), texts)
            for question, answer in zip(exam.questions, said, strict=True):
                for kind, right in mark(question, answer).items():
                    answers[kind].append(right)
            for name, adapter in heads.items():
                findings[name] += examine(adapter, exam)
            for name, masks in baselines.masks(exam).items():
                for case, mask in zip(with_target(exam), masks, strict=True):
                    overlaps[name].append((case.expression.kind, overlap(mask, case.truth)))
    figures = {f"answers.{kind}": fmean(right) for kind, right in answers.items()}
    for name, found in findings.items():
        figures |= {f"heads.{name}.{key}": value for key, value in head_figures(found).items()}
    for name, measured in overlaps.items():
        figures |= {f"baselines.{name}.{key}": value for key, value in mask_figures(measured).items()}
    return figures


def mark(question: Question, answer: str) -> dict[str, bool]:
    """Kind -> is the answer exactly right; for places also whether it is right to within one cell."""
    marks = {question.kind: answer == question.answer}
    if question.kind == "where":
        marks["where_within_one_cell"] = are_near(answer, question.answer)
    return marks


def are_near(answer: str, truth: str) -> bool:
    """Are two places ("x3 y5") at most one column and one row apart?"""
    said, meant = answer.split(), truth.split()
    if [word[0] for word in said] != [word[0] for word in meant] or not all(word[1:].isdigit() for word in said):
        return False
    return all(abs(int(a[1:]) - int(b[1:])) <= 1 for a, b in zip(said, meant, strict=True))


def examine(adapter: LensAdapter, exam: Exam) -> list[Finding]:
    """Let an attached head segment every case of an exam."""
    out = adapter.segment(exam.picture, exam.prompts)
    return [_finding(out, k, case, adapter.config.score_threshold) for k, case in enumerate(exam.cases)]


def _finding(out: LensOutput, index: int, case: Case, score_threshold: float) -> Finding:
    mask, score, points = out.masks[index].numpy(), float(out.scores[index]), out.keypoints[index].tolist()
    height, width = mask.shape
    on_target = False
    if points:
        x, y = points[0]
        on_target = bool(case.truth[min(int(y), height - 1), min(int(x), width - 1)])
    return Finding(
        kind=case.expression.kind,
        has_target=case.has_target,
        overlap=overlap(mask, case.truth),
        score=score,
        refused=score < score_threshold or not mask.any(),
        peak_on_target=on_target,
    )


def head_figures(findings: Sequence[Finding]) -> dict[str, float]:
    """Figure -> value: `mask_figures`, and how well the head judges itself."""
    present = [finding for finding in findings if finding.has_target]
    figures = mask_figures([(finding.kind, finding.overlap) for finding in present])
    if present:
        figures["target_accepted"] = fmean(not finding.refused for finding in present)
        figures["keypoint_on_target"] = fmean(finding.peak_on_target for finding in present)
    return figures | self_knowledge(
        [finding.overlap for finding in findings],
        [finding.has_target for finding in findings],
        [finding.score for finding in findings],
        [finding.refused for finding in findings],
    )


def mask_figures(overlaps: Sequence[tuple[str, Overlap]]) -> dict[str, float]:
    """(kind, overlap) of cases with targets -> `METRIC.KIND` and `METRIC.all`."""
    groups: dict[str, list[Overlap]] = defaultdict(list)
    for kind, measured in overlaps:
        groups[kind].append(measured)
        groups["all"].append(measured)
    return {
        f"{metric}.{kind}": value for kind, group in groups.items() for metric, value in mask_metrics(group).items()
    }
