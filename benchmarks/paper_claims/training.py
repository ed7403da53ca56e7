"""Train one method, judge its masks, and look at what became of the base. Whatever is done is kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange
from transformers import PreTrainedModel, ProcessorMixin

from benchmarks.paper_claims.methods import LOSS_WEIGHTS, METHODS, QUESTION_STEPS, Base, Method
from benchmarks.paper_claims.scenes import Batch, Encoded, training_batch
from lens_adapter import builtin
from lens_adapter.builtin.baselines import with_target
from lens_adapter.builtin.exam import EXPRESSIONS, Exam, make_exam
from lens_adapter.builtin.figures import mark
from lens_adapter.evaluation import overlap

# Of everything that a method learns, but SAM's mask decoder, which has half of it. Three tries each.
RATES = dict.fromkeys(METHODS, (0.0003, 0.001, 0.003)) | {"lisa_full": (1e-4, 3e-4, 1e-3)}
SAME_RATE_AS = {"lisa_lora_questions": "lisa_lora"}
WARM_UP = 50  # steps
TIMED_STEPS = 24  # a multiple of 3, for the row that asks questions at every third
EXAMS_TOGETHER = 10
SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Settings:
    """How much of everything; the same for all methods."""

    steps: int = 2000
    scenes: int = 3000
    test_scenes: int = 500
    tuning_steps: int = 150
    validation_scenes: int = 60


@dataclass(frozen=True)
class Data:
    """What all methods share."""

    train: Encoded
    validation: Encoded
    test: Encoded


def load_exams(count: int, split: str) -> list[Exam]:
    """Exams without the masks of single objects, which are large and not needed here."""
    scenes = trange(count, desc=f"{split} exams", mininterval=5)
    return [replace(make_exam(index, split), objects=np.empty(0)) for index in scenes]


def learn(method: Method, name: str, rate: float, steps: int, train: Encoded, checkpoint: Path | None = None) -> float:
    """Train for `steps` steps, going on from `checkpoint` if it is there; returns CPU seconds spent on learning."""
    learned, optimizer = method.learned(), make_optimizer(method, rate)
    first, seconds = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        first, seconds = saved["step"], saved["seconds"]
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for key, value in saved["learned"].items():
                learned[key].copy_(value)

    def save(step: int) -> None:
        if checkpoint is None:
            return
        state = {"step": step, "seconds": seconds, "optimizer": optimizer.state_dict(), "learned": learned}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    method.train()
    last_save = time.monotonic()
    bar = trange(first, steps, initial=first, total=steps, desc=f"{name}, rate {rate:g}", mininterval=5)
    for step in bar:
        torch.manual_seed(step)  # of LoRA's dropout: a resumed run draws the same
        batch = training_batch(step, train, method.decoder(), questions=is_question_step(name, step))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / WARM_UP) * _cosine(step / steps)
        spent, losses = take_step(method, optimizer, batch)
        seconds += spent
        if step % 20 == 0:
            bar.set_postfix({key: f"{value.item():.3f}" for key, value in losses.items()}, refresh=False)
        if time.monotonic() - last_save > SAVE_EVERY:
            save(step + 1)
            last_save = time.monotonic()
    save(steps)
    method.eval()
    return seconds


def make_optimizer(method: Method, rate: float) -> torch.optim.Optimizer:
    """AdamW; SAM's mask decoder learns at half the rate."""
    decoder = set(method.decoder().mask_decoder.parameters())
    learned = method.learned().values()
    groups = [
        {"params": [p for p in learned if p not in decoder], "peak": rate},
        {"params": [p for p in learned if p in decoder], "peak": rate / 2},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)


def take_step(method: Method, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Learn from a batch; returns CPU seconds and the losses."""
    start = time.process_time()
    _, losses = method(batch)
    optimizer.zero_grad()
    sum(LOSS_WEIGHTS[key] * value for key, value in losses.items()).backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return time.process_time() - start, losses


def is_question_step(name: str, step: int) -> bool:
    every = QUESTION_STEPS.get(name)
    return every is not None and step % every == every - 1


def _cosine(progress: float) -> float:
    """1 at the start, 0.01 at the end."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def measure_masks(method: Method, exams: Sequence[Exam], encoded: Encoded) -> list[tuple[int, str, float]]:
    """(scene, group, IoU) of every expression with a target, at the picture's own size."""
    found = []
    for number, exam in enumerate(exams):
        cases = with_target(exam)
        index = torch.zeros(len(cases), dtype=torch.long)
        tokens, embeddings = (
            encoded.tokens[number : number + 1].float(),
            encoded.embeddings[number : number + 1].float(),
        )
        logits, _ = method(Batch(tokens[index], embeddings, index, [case.expression.text for case in cases]))
        masks = (method.decoder().upsample(logits, (exam.picture.height, exam.picture.width)) > 0).numpy()
        for case, mask in zip(cases, masks, strict=True):
            found.append((number, case.group, overlap(mask, case.truth).iou))
    return found


def answer(model: PreTrainedModel, processor: ProcessorMixin, exams: Sequence[Exam]) -> list[str]:
    """The model's answers to the questions of all exams, in order."""
    answers = []
    for start in trange(0, len(exams), EXAMS_TOGETHER, desc="questions", mininterval=5):
        asked = [(exam.picture, q.text) for exam in exams[start : start + EXAMS_TOGETHER] for q in exam.questions]
        answers += builtin.ask(model, processor, [picture for picture, _ in asked], [text for _, text in asked])
    return answers


def grade(answers: Sequence[str], exams: Sequence[Exam]) -> dict[str, float]:
    """Kind of question -> share of right answers, and "all": of all exactly right ones."""
    questions = [question for exam in exams for question in exam.questions]
    marks: dict[str, list[bool]] = {"all": []}
    for question, said in zip(questions, answers, strict=True):
        graded = mark(question, said)
        marks["all"].append(graded[question.kind])
        for kind, right in graded.items():
            marks.setdefault(kind, []).append(right)
    return {kind: float(np.mean(right)) for kind, right in marks.items()}


def fingerprint(state: dict[str, Tensor]) -> str:
    """SHA-256 of names and bytes of a state dict."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def changed_tensors(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """How many tensors of `before` differ in `after`; rows that were added for new words do not count."""
    return sum(not torch.equal(tensor, after[key][: len(tensor)]) for key, tensor in before.items())


def choose_rate(name: str, settings: Settings, data: Data, folder: Path) -> dict[str, Any]:
    """Try three rates for a few steps; the best gIoU on validation scenes wins. Answers are noted, not judged."""
    path = folder / "rates.json"
    tried = json.loads(path.read_text()) if path.exists() else {}
    exams = load_exams(settings.validation_scenes, "validation")
    for rate in RATES[name]:
        if str(rate) in tried:
            continue
        method = start(name)
        learn(method, name, rate, settings.tuning_steps, data.train)
        found = measure_masks(method, exams, data.validation)
        giou = float(np.mean([iou for _, group, iou in found if group in EXPRESSIONS]))
        base = method.base
        accuracy = grade(answer(method.finish(), base.processor, exams), exams)["all"]
        tried[str(rate)] = {"giou": giou, "answers": accuracy}
        path.write_text(json.dumps(tried))
    best = max(tried, key=lambda rate: tried[rate]["giou"])
    return {"rate": float(best), "tried": tried}


def start(name: str) -> Method:
    """A method before training; the same in every run."""
    torch.manual_seed(0)
    return METHODS[name](Base.load())


def time_steps(names: Sequence[str], data: Data, folder: Path) -> dict[str, float]:
    """CPU seconds of a training step of each method, taken in turns: whatever else the machine does hits all alike."""
    path = folder / "timing.json"
    timed = json.loads(path.read_text()) if path.exists() else {}
    if not set(names) <= set(timed):
        methods = {name: start(name).train() for name in names}
        optimizers = {name: make_optimizer(method, 0.0) for name, method in methods.items()}
        timed = dict.fromkeys(names, 0.0)
        for step in trange(-3, TIMED_STEPS, desc="steps in turns", mininterval=5):  # the first three warm up
            for name, method in methods.items():
                questions = is_question_step(name, step)
                batch = training_batch(max(step, 0), data.train, method.decoder(), questions=questions)
                spent, _ = take_step(method, optimizers[name], batch)
                timed[name] += spent / TIMED_STEPS * (step >= 0)
        path.write_text(json.dumps(timed))
    return timed


def run_base(settings: Settings, exams: Sequence[Exam], folder: Path) -> dict[str, Any]:
    """The base before anything: its weights' fingerprint and its answers."""
    path = folder / "base.json"
    if not path.exists():
        base = Base.load()
        answers = answer(base.model, base.processor, exams)
        result = {
            "fingerprint": fingerprint(base.model.state_dict()),
            "parameters": sum(p.numel() for p in base.model.parameters()),
            "said": answers,
            "answers": grade(answers, exams),
        }
        path.write_text(json.dumps(result))
    return json.loads(path.read_text())


def run_method(
    name: str, settings: Settings, data: Data, exams: Sequence[Exam], before: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Everything about one method; what an earlier, interrupted run did is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    if path.exists():
        return json.loads(path.read_text())
    sibling = SAME_RATE_AS.get(name, name)
    (folder.parent / sibling).mkdir(exist_ok=True)
    chosen = choose_rate(sibling, settings, data, folder.parent / sibling)
    method = start(name)
    learned = method.learned()
    decoder = set(method.decoder().mask_decoder.parameters())
    original = {key: value.clone() for key, value in Base.load().model.state_dict().items()}
    seconds = learn(method, name, chosen["rate"], settings.steps, data.train, folder / "checkpoint.pt")
    masks = measure_masks(method, exams, data.test)
    model = method.finish()  # after LENS: the base with the adapter still attached
    said = answer(model, method.base.processor, exams)
    after = model.state_dict()
    result = {
        "settings": asdict(settings),
        "parameters": {
            "all": sum(p.numel() for p in learned.values()),
            "mask_decoder": sum(p.numel() for p in learned.values() if p in decoder),
        },
        "cpu_seconds": seconds,
        **chosen,
        "masks": masks,
        "said": said,
        "answers": grade(said, exams),
        "answers_changed": sum(new != old for new, old in zip(said, before["said"], strict=True)),
        "questions": len(said),
        "same_weights": fingerprint(after) == before["fingerprint"],
        "changed_tensors": changed_tensors(original, after),
        "tensors": len(original),
    }
    path.write_text(json.dumps(result))
    return result
