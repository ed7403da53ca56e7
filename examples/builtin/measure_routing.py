"""How well does `adapter.route` tell requests for a mask from questions, on the built-in model? results/routing.json.

The model knows some ninety words, "segment" and "answer" not among them, and was never taught to route. Beside the
library's own question, one in the model's words is measured: that of WORDINGS which does best on validation scenes.

    python examples/builtin/measure_routing.py
"""

from __future__ import annotations

import argparse
import json
from itertools import cycle
from pathlib import Path
from statistics import fmean

import numpy as np
from tqdm import tqdm

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.exam import Exam, make_exam
from lens_adapter.config import ROUTING_QUESTION

RESULTS = Path(__file__).parents[2] / "results" / "routing.json"
WORDINGS = ("is {prompt} a object ?", "is there {prompt} ?", "{prompt} yes no ?", "is {prompt} what the object is ?")
REQUESTS = ("segment {}", "show me a mask of {}", "outline {}", "{}")  # of an expression


def texts(exam: Exam) -> dict[str, list[str]]:
    """Kind -> what somebody might say about a scene. A mixed one is a question and a request in one."""
    questions = [question.text for question in exam.questions]
    requests = [form.format(prompt) for form, prompt in zip(cycle(REQUESTS), exam.prompts, strict=False)]
    mixed = [f"{question} {request}" for question, request in zip(questions, requests, strict=False)]
    return {"questions": questions, "requests": requests, "mixed": mixed}


def measure(adapter: LensAdapter, split: str, scenes: int, question: str, with_image: bool) -> dict[str, float]:
    """Share of each kind that is taken for a request for a mask, and how well the first two are told apart.

    `balanced_accuracy` and `auroc` (of the probability; threshold-free) are about requests against questions: 0.5 is
    chance.
    """
    found: dict[str, list[float]] = {"questions": [], "requests": [], "mixed": []}
    for index in tqdm(range(scenes), desc=f"{split}: {question[:30]}"):
        exam = make_exam(index, split)
        for kind, said in texts(exam).items():
            image = exam.picture if with_image else None
            found[kind] += [adapter.route(text, image, question).probability for text in said]
    figures = {f"taken_for_requests.{kind}": fmean(p > 0.5 for p in values) for kind, values in found.items()}
    asked, told = np.array(found["requests"])[:, None], np.array(found["questions"])
    figures["balanced_accuracy"] = fmean((fmean(asked[:, 0] > 0.5), fmean(told <= 0.5)))
    figures["auroc"] = float(((asked > told) + 0.5 * (asked == told)).mean())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100, help="of the test split")
    parser.add_argument("--validation-scenes", type=int, default=30, help="to choose the wording on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    model, processor = builtin.load_base()
    with builtin.load_head("lite").attach(model, processor) as adapter:
        tried = {
            wording: measure(adapter, "validation", args.validation_scenes, wording, with_image=True)
            for wording in WORDINGS
        }
        best = max(tried, key=lambda wording: tried[wording]["auroc"])
        asked = {"default": ROUTING_QUESTION, "its_own_words": best}
        figures = {
            f"{name}.{'with' if with_image else 'without'}_image": measure(
                adapter, "test", args.scenes, question, with_image
            )
            for name, question in asked.items()
            for with_image in (True, False)
        }
    report = {"test_scenes": args.scenes, "questions": asked, **figures, "validation": tried}
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
