"""The two tiny SAMs that ship, side by side: masks, outlines and times, each with a lite head of its own.

python -m benchmarks.outlines                   # the 1 000 test scenes, into results/outlines.json
python -m benchmarks.outlines --page            # docs/sam.md's table from that
python -m benchmarks.outlines --scenes 20 --split validation --json /tmp/outlines.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from time import process_time
from typing import Any

import torch
from tqdm import tqdm

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.baselines import innermost_point, with_target
from lens_adapter.builtin.exam import EXPRESSIONS, Exam, make_exam
from lens_adapter.builtin.figures import findings_of, head_figures
from lens_adapter.evaluation import overlap
from lens_adapter.evaluation.outlines import boundary_f
from lens_adapter.sam.build import build_decoder
from lens_adapter.sam.decoder import MaskDecoder

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- outlines: begin -->", "<!-- outlines: end -->"  # in docs/sam.md
HEADS = {"lite": builtin.FOLDER / "lens-lite", "lite-sam2": builtin.FOLDER / "lens-lite-sam2"}
SAMS = {"lite": builtin.FOLDER / "sam", "lite-sam2": builtin.FOLDER / "sam2"}
TITLES = {"lite": "segment-anything, tiny", "lite-sam2": "SAM 2, tiny"}
TIMED = 10  # calls of each kind, in turn


def pretrained(adapter: LensAdapter, folder: Path) -> MaskDecoder:
    """The SAM that a head was trained with, as it was before."""
    decoder = build_decoder(adapter.config.sam).eval()
    decoder.load_weights(folder)
    return decoder


@torch.no_grad()
def click(decoder: MaskDecoder, exam: Exam) -> list[dict[str, float]]:
    """IoU and boundary F of one click on the innermost pixel of every thing that a case names alone."""
    cases = [case for case in with_target(exam) if len(case.expression.targets) == 1]
    if not cases:
        return []
    size = (exam.picture.height, exam.picture.width)
    points = torch.tensor([innermost_point(case.truth) for case in cases])
    sparse = decoder.clicks(points[:, None], [size] * len(points))
    found = decoder(decoder.encode_images([exam.picture]), torch.zeros(len(points), dtype=torch.long), sparse)
    masks = decoder.masks(found.logits, size, 0.5).numpy()
    return [
        {"iou": overlap(mask, case.truth).iou, "boundary_f": boundary_f(mask, case.truth)}
        for mask, case in zip(masks, cases, strict=True)
    ]


def seconds(adapters: dict[str, LensAdapter], exam: Exam) -> dict[str, dict[str, float]]:
    """Median CPU seconds of an image's encoding, of one prompt's decoding, and of `segment` of one new picture."""
    index, size = torch.zeros(1, dtype=torch.long), [(exam.picture.height, exam.picture.width)]
    works: dict[str, Callable[[LensAdapter], Callable[[], Any]]] = {
        "encode": lambda adapter: lambda: adapter.decoder.encode_images([exam.picture]),
        "decode": lambda adapter: _decoding(adapter, exam, index, size),
        "segment": lambda adapter: lambda: adapter.segment(exam.picture, exam.prompts[0]),
    }
    times: dict[str, dict[str, float]] = {name: {} for name in adapters}
    for kind, work in works.items():
        ready = {name: work(adapter) for name, adapter in adapters.items()}
        taken: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(TIMED):
            for name, run in ready.items():
                start = process_time()
                run()
                taken[name].append(process_time() - start)
        for name, each in taken.items():
            times[name][kind] = median(each)
    return times


def _decoding(adapter: LensAdapter, exam: Exam, index: torch.Tensor, size: list[tuple[int, int]]) -> Callable[[], Any]:
    embedding = adapter.decoder.encode_images([exam.picture])
    sparse = adapter.decoder.clicks(torch.tensor([[[0.5, 0.5]]]), size)
    return lambda: adapter.decoder(embedding, index, sparse)


@torch.no_grad()
def measure(scenes: int, split: str = "test", heads: Sequence[str] = tuple(HEADS)) -> dict[str, Any]:
    """Figures of each head and its SAM, and times in proportion to the first one's."""
    torch.set_num_threads(1)
    model, processor = builtin.load_base()
    results: dict[str, Any] = {"scenes": scenes, "split": split}
    adapters = {}
    for name in heads:
        adapters[name] = LensAdapter.from_pretrained(HEADS[name]).attach(model, processor)
        adapters[name].embedding_cache = None
    for name, adapter in adapters.items():
        decoder, clicks, findings, edges = pretrained(adapter, SAMS[name]), [], [], []
        for index in tqdm(range(scenes), desc=name, mininterval=5):
            exam = make_exam(index, split)
            clicks += click(decoder, exam)
            out = adapter.segment(exam.picture, exam.prompts, score_threshold=0.0)
            findings += findings_of(out, exam)
            edges += [
                boundary_f(out.masks[k].numpy(), case.truth)
                for k, case in enumerate(exam.cases)
                if case.has_target and case.group in EXPRESSIONS
            ]
        results[name] = {
            "click": {key: fmean(one[key] for one in clicks) for key in ("iou", "boundary_f")},
            "boundary_f": fmean(edges),
            **head_figures(findings, adapter.config.score_threshold),
            "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        }
    times = seconds(adapters, make_exam(0, split))
    first = times[next(iter(times))]
    results["times"] = {name: {kind: value / first[kind] for kind, value in one.items()} for name, one in times.items()}
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per SAM."""
    columns = ("click: IoU", "boundary F", "lite head: gIoU", "boundary F", "encode", "decode", "`segment`")
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in HEADS:
        found, times = results[name], results["times"][name]
        cells = [found["click"]["iou"], found["click"]["boundary_f"], found["giou.all"], found["boundary_f"]]
        ratios = [f"{times[kind]:.2f}" for kind in ("encode", "decode", "segment")]
        lines.append(f"| {TITLES[name]} | {' | '.join([*(f'{cell:.3f}' for cell in cells), *ratios])} |")
    return "\n".join(lines)


def with_table(page: str, results: dict[str, Any]) -> str:
    """A page with the table between its marks written anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--page", action="store_true", help="only write the table of what was measured")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "outlines.json")
    args = parser.parse_args()
    if args.page:
        page = ROOT / "docs" / "sam.md"
        page.write_text(with_table(page.read_text(), json.loads(args.json.read_text())))
        return
    results = measure(args.scenes, args.split)
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
