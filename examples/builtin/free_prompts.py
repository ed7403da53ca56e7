"""Forty prompts that somebody typed freely before the models learned more words; no training has seen them.

python examples/builtin/free_prompts.py    # a table, and results/free_prompts.json
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
from tqdm import tqdm

from lens_adapter import builtin
from lens_adapter.builtin.exam import PICTURE_SIZE
from lens_adapter.builtin.world import sample_scene
from lens_adapter.evaluation import overlap

PROMPTS = Path(__file__).with_suffix(".jsonl")  # scene of the test split, prompt, and which of its things are meant
RESULTS = Path(__file__).parents[2] / "results" / "free_prompts.json"


def measure() -> dict[str, object]:
    """gIoU of each head that ships (a refusal counts as an empty mask), and IoU by prompt."""
    asked = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    model, processor = builtin.load_base()
    ious: dict[str, dict[str, float]] = {}
    for name in builtin.HEADS:
        with builtin.load_head(name).attach(model, processor) as adapter:
            ious[name] = {}
            for one in tqdm(asked, desc=name):
                scene = sample_scene(one["scene"], "test")
                truth = np.logical_or.reduce(scene.masks(PICTURE_SIZE)[one["targets"]])
                out = adapter.segment(scene.draw(PICTURE_SIZE), one["prompt"])
                mask = out.masks[0].numpy() & bool(out.found[0])
                ious[name][one["prompt"]] = round(overlap(mask, truth).iou, 4)
    return {"giou": {name: fmean(each.values()) for name, each in ious.items()}, "iou": ious}


def main() -> None:
    results = measure()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    names = list(results["giou"])
    for prompt in results["iou"][names[0]]:
        print(*(f"{results['iou'][name][prompt]:.2f}" for name in names), prompt)
    print(*(f"{name} {value:.3f}" for name, value in results["giou"].items()))


if __name__ == "__main__":
    main()
