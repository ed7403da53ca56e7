"""Heads for the built-in model side by side, on scenes that no training saw: masks by kind of prompt, outlines, time.

python -m benchmarks.compare_heads lens_adapter/builtin/lens-lite build/my-head --json comparison.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any

import torch
from tqdm import tqdm

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.exam import EXPRESSIONS, Exam, make_exam
from lens_adapter.builtin.figures import findings_of, head_figures
from lens_adapter.evaluation import Finding
from lens_adapter.evaluation.outlines import boundary_f
from lens_adapter.output import LensOutput

SHOWN = ("giou.all", *(f"giou.{kind}" for kind in EXPRESSIONS if kind != "absent"), "boundary_f", "no_target_accuracy")


def outlines(out: LensOutput, exam: Exam, threshold: float) -> list[float]:
    """Boundary F (2 pixels at 384) of every seen prompt that names something; 0 where the head refuses."""
    return [
        boundary_f(mask, case.truth) if score >= threshold else 0.0
        for mask, score, case in zip(out.masks.numpy(), out.scores.tolist(), exam.cases, strict=True)
        if case.has_target and case.group in EXPRESSIONS
    ]


def compare(folders: list[Path], scenes: int, split: str) -> dict[str, Any]:
    """{folder's name: figures}; `seconds` are of the processor, in proportion to the first folder's."""
    torch.set_num_threads(1)
    model, processor = builtin.load_base()
    findings: dict[str, list[Finding]] = defaultdict(list)
    edges: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as attached:
        heads = {
            folder.name: attached.enter_context(LensAdapter.from_pretrained(folder).attach(model, processor))
            for folder in folders
        }
        for index in tqdm(range(scenes), desc=f"{split} scenes", mininterval=5):
            exam = make_exam(index, split)
            for name, adapter in heads.items():
                start = process_time()
                out = adapter.segment(exam.picture, exam.prompts, score_threshold=0.0)
                seconds[name] += process_time() - start
                findings[name] += findings_of(out, exam)
                edges[name] += outlines(out, exam, adapter.config.score_threshold)
    first = folders[0].name
    return {"scenes": scenes, "split": split} | {
        name: head_figures(findings[name], adapter.config.score_threshold)
        | {"boundary_f": fmean(edges[name]), "seconds": seconds[name] / seconds[first]}
        for name, adapter in heads.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = compare(args.folders, args.scenes, args.split)
    for folder in args.folders:
        figures = results[folder.name]
        shown = [key for key in (*SHOWN, "seconds") if key in figures]
        print(folder.name, *(f"{key} {figures[key]:.3f}" for key in shown), sep="  ")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
