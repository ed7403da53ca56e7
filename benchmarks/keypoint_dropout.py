"""What it does to a head when keypoint prompts are dropped in training: probability 0, 0.5 and 0.9 (LENS's own code).

    python -m benchmarks.keypoint_dropout

The same untrained head, scenes, prompts, order and steps each time, on the models that ship with the package; trained
by `LensTrainer` from cached features. Measured on validation scenes: gIoU as the head is used, gIoU with every keypoint
taken away (what the query token does alone), and how often the first keypoint lies on its target. A run that was
stopped goes on with the next head.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.builtin.exam import EXPRESSIONS, Exam, make_exam
from lens_adapter.builtin.world import Speaker, sample_scene
from lens_adapter.data.examples import Example
from lens_adapter.evaluation import overlap
from lens_adapter.output import LensOutput
from lens_adapter.training import CachedFeatures, LensTrainer, LensTrainingArguments, cache_features

DROPOUTS = (0.0, 0.5, 0.9)
KINDS = ("attribute", "attribute", "spatial", "spatial", "ordinal", "several", "reasoning", "reasoning", "absent")
SIDE = 192  # pixels at which scenes are drawn for training
SHIPPED_FIELDS = ("fusion", "fusion_layers", "fusion_width", "tap_layer", "attention_layers", "num_keypoints")
SHIPPED_FIELDS += (
    "suppression_radius",
    "keypoint_threshold",
    "mask_threshold",
    "prompt_template",
    "sam",
    "dense_prompt",
)


class SceneExamples:
    """`PROMPTS` prompts about each of `count` training scenes, the same at each reading."""

    PROMPTS = 3

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.PROMPTS * self.count

    def __getitem__(self, index: int) -> Example:
        scene = sample_scene(index // self.PROMPTS)
        speaker = Speaker(scene, np.random.default_rng([index, 9]))
        kinds = speaker.rng.permutation(KINDS)
        expression = next(made for kind in kinds if (made := speaker.expression(str(kind))))
        masks = scene.masks(SIDE)
        return Example(scene.draw(SIDE), expression.text, np.logical_or.reduce(masks[list(expression.targets)]))


def new_head(fusion: str, model: Any, processor: Any) -> LensAdapter:
    """Untrained, with the settings of the shipped one, and the shipped SAM's mask decoder."""
    shipped = LensConfig.from_pretrained(builtin.HEADS[fusion])
    torch.manual_seed(0)
    fields = {name: getattr(shipped, name) for name in SHIPPED_FIELDS}
    adapter = LensAdapter.from_model(model, processor, load_sam=False, **fields)
    adapter.decoder.load_weights(builtin.SAM)
    return adapter


def train(adapter: LensAdapter, features: CachedFeatures, dropout: float, args: argparse.Namespace) -> None:
    settings = LensTrainingArguments(
        str(args.work / "unused"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        adam_beta2=0.95,
        keypoint_dropout=dropout,
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        use_cpu=True,
        seed=0,
    )
    LensTrainer(adapter, settings, train_dataset=features).train()


def measure(adapter: LensAdapter, exams: list[Exam]) -> dict[str, float]:
    """gIoU of prompts with a target, with and without keypoints; share of first keypoints on their target."""
    figures: dict[str, list[float]] = {"giou": [], "giou_without_keypoints": [], "first_keypoint_on_target": []}
    for exam, out, blind in segmented(adapter, exams):
        for k, case in enumerate(exam.cases):
            if case.group not in EXPRESSIONS or not case.has_target:
                continue
            figures["giou"].append(overlap(out.masks[k].numpy(), case.truth).iou)
            figures["giou_without_keypoints"].append(overlap(blind.masks[k].numpy(), case.truth).iou)
            hit = False
            if len(out.keypoints[k]):
                x, y = out.keypoints[k][0].long().clamp(max=case.truth.shape[0] - 1).tolist()
                hit = bool(case.truth[y, x])
            figures["first_keypoint_on_target"].append(float(hit))
    return {name: fmean(values) for name, values in figures.items()}


def segmented(adapter: LensAdapter, exams: list[Exam]) -> Iterator[tuple[Exam, LensOutput, LensOutput]]:
    """Each exam, segmented as always, and without keypoint prompts."""
    for exam in tqdm(exams, desc="validation scenes"):
        out = adapter.segment(exam.picture, exam.prompts)
        threshold, adapter.config.keypoint_threshold = adapter.config.keypoint_threshold, 1.0  # none is above the peak
        try:
            blind = adapter.segment(exam.picture, exam.prompts)
        finally:
            adapter.config.keypoint_threshold = threshold
        yield exam, out, blind


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| head | dropped with probability | gIoU | gIoU without keypoints | first keypoint on the target |"]
    lines.append("|---" * 5 + "|")
    for fusion, by_dropout in results.items():
        for dropout, figures in by_dropout.items():
            lines.append(f"| {fusion} | {dropout} | " + " | ".join(f"{value:.3f}" for value in figures.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--scenes", type=int, default=1500, help="to learn from")
    parser.add_argument("--validation", type=int, default=150, help="scenes to measure on")
    parser.add_argument("--heads", nargs="+", choices=builtin.HEADS, default=["lite", "mirror"])
    parser.add_argument("--work", type=Path, default=Path("build/keypoint_dropout"), help="cached features")
    parser.add_argument("--json", type=Path, default=Path("results/keypoint_dropout.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {key: getattr(args, key) for key in ("steps", "batch_size", "scenes", "validation")}
    found = json.loads(args.json.read_text()) if args.json.is_file() else {}
    results = found["results"] if found.get("settings") == settings else {}
    model, processor = builtin.load_base()
    exams = [make_exam(index, "validation") for index in range(args.validation)]
    for fusion in args.heads:
        for dropout in DROPOUTS:
            if str(dropout) in results.setdefault(fusion, {}):
                continue
            adapter = new_head(fusion, model, processor)
            data_key = f"{args.scenes} training scenes"
            features = cache_features(adapter, SceneExamples(args.scenes), args.work / fusion, data_key=data_key)
            train(adapter, features, dropout, args)
            results[fusion][str(dropout)] = measure(adapter.eval(), exams)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
