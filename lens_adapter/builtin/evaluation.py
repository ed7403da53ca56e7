"""The models that ship with the package, measured on their test split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import fmean

from tqdm import tqdm

from lens_adapter import builtin
from lens_adapter.adapter import LensAdapter
from lens_adapter.builtin.baselines import Baselines, with_target
from lens_adapter.builtin.exam import Exam, make_exam
from lens_adapter.data.examples import Example
from lens_adapter.data.expressions import Question
from lens_adapter.evaluation import Finding, by_subset, finding_of, measure, overlap

VALIDATION_SCENES = 40  # to choose the baselines' layer and share of the peak on
MASK_METRICS = ("giou", "ciou", "precision_at_50")
# what it is called here -> in `lens_adapter.evaluation`
JUDGEMENTS = {
    "no_target_accuracy": "no_target_accuracy",
    "target_accepted": "target_accuracy",
    "keypoint_on_target": "first_keypoint_on_target",
    "score_rank_correlation": "score_rank_correlation",
    "score_error": "score_error",
}


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
    bare: dict[str, list[Finding]] = defaultdict(list)
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
                    bare[name].append(Finding(overlap(mask, case.truth), score=1.0, subset=case.expression.kind))
    figures = {f"answers.{kind}": fmean(right) for kind, right in answers.items()}
    for name, found in findings.items():
        judged = head_figures(found, heads[name].config.score_threshold)
        figures |= {f"heads.{name}.{key}": value for key, value in judged.items()}
    for name, found in bare.items():
        figures |= {f"baselines.{name}.{key}": value for key, value in mask_figures(found).items()}
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
    """Let an attached head segment every case of an exam; the subset is the kind of expression."""
    out = adapter.segment(exam.picture, exam.prompts, score_threshold=0.0)
    examples = (Example(exam.picture, c.expression.text, c.truth, subset=c.expression.kind) for c in exam.cases)
    return [finding_of(out, k, example) for k, example in enumerate(examples)]


def head_figures(findings: Sequence[Finding], score_threshold: float) -> dict[str, float]:
    """Figure -> value: `mask_figures` of the cases with targets, and how well the head judges itself."""
    figures = mask_figures([finding for finding in findings if finding.has_target], score_threshold)
    judged = measure(findings, score_threshold)
    return figures | {name: judged[metric] for name, metric in JUDGEMENTS.items() if metric in judged}


def mask_figures(findings: Sequence[Finding], score_threshold: float = 0.0) -> dict[str, float]:
    """Of cases with targets: `METRIC.KIND` and `METRIC.all`."""
    groups = by_subset(findings) if findings else {}
    measured = {kind: measure(group, score_threshold) for kind, group in groups.items()}
    return {f"{metric}.{kind}": values[metric] for kind, values in measured.items() for metric in MASK_METRICS}
