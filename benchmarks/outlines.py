"""The two tiny SAMs that ship, side by side: what one click on a thing gives, how well its outline is met, and time.

python -m benchmarks.outlines                   # 300 test scenes, into results/outlines.json
python -m benchmarks.outlines --page            # docs/sam.md's table from that
python -m benchmarks.outlines --scenes 20 --split validation --json /tmp/outlines.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from time import process_time
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.pages import between
from lens_adapter import LensConfig
from lens_adapter.builtin.baselines import innermost_point, with_target
from lens_adapter.builtin.exam import Exam, make_exam
from lens_adapter.evaluation import overlap
from lens_adapter.evaluation.outlines import boundary_f
from lens_adapter.sam.build import build_decoder
from lens_adapter.sam.decoder import MaskDecoder

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- outlines: begin -->", "<!-- outlines: end -->"  # in docs/sam.md
SAMS = ("builtin", "builtin-sam2")
TIMED = 10  # calls of each kind, in turn


def load(name: str) -> MaskDecoder:
    decoder = build_decoder({**LensConfig(sam=name).sam, "include_image_encoder": True}).eval()
    decoder.load_weights(name)
    return decoder


@torch.no_grad()
def click(decoder: MaskDecoder, exam: Exam) -> list[tuple[float, float]]:
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
        (overlap(mask, case.truth).iou, boundary_f(mask, case.truth)) for mask, case in zip(masks, cases, strict=True)
    ]


@torch.no_grad()
def seconds(decoders: dict[str, MaskDecoder], picture: Image.Image) -> dict[str, dict[str, float]]:
    """{kind: {name: median CPU seconds}} of encoding an image and of decoding one click, in turn."""
    index, size = torch.zeros(1, dtype=torch.long), [(picture.height, picture.width)]
    works: dict[str, dict[str, Callable[[], Any]]] = {"encode": {}, "decode": {}}
    for name, decoder in decoders.items():
        embedding, sparse = decoder.encode_images([picture]), decoder.clicks(torch.tensor([[[0.5, 0.5]]]), size)
        works["encode"][name] = lambda decoder=decoder: decoder.encode_images([picture])
        works["decode"][name] = lambda decoder=decoder, e=embedding, s=sparse: decoder(e, index, s)
    taken = {kind: {name: [] for name in named} for kind, named in works.items()}
    for kind, named in works.items():
        for _ in range(TIMED):
            for name, run in named.items():
                start = process_time()
                run()
                taken[kind][name].append(process_time() - start)
    return {kind: {name: median(each) for name, each in named.items()} for kind, named in taken.items()}


def measure(scenes: int, split: str = "test") -> dict[str, Any]:
    """Figures of each SAM, and times in proportion to the first one's."""
    torch.set_num_threads(1)
    decoders = {name: load(name) for name in SAMS}
    results: dict[str, Any] = {"scenes": scenes, "split": split}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SAMS}
    for index in tqdm(range(scenes), desc="scenes", mininterval=5):
        exam = make_exam(index, split)
        for name, decoder in decoders.items():
            found[name] += click(decoder, exam)
    times = seconds(decoders, make_exam(0, split).picture)
    for name, decoder in decoders.items():
        iou, edge = zip(*found[name], strict=True)
        results[name] = {
            "clicks": len(iou),
            "iou": fmean(iou),
            "boundary_f": fmean(edge),
            "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
            **{kind: times[kind][name] / times[kind][SAMS[0]] for kind in times},
        }
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per SAM."""
    columns = ("parameters, M", "IoU of one click", "boundary F", "time to encode", "time to decode")
    lines = [f"| `sam=` | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in SAMS:
        one = results[name]
        cells = [f"{one['parameters'] / 1e6:.2f}", f"{one['iou']:.3f}", f"{one['boundary_f']:.3f}"]
        lines.append(f'| `"{name}"` | {" | ".join(cells)} | {one["encode"]:.1f} | {one["decode"]:.1f} |')
    return "\n".join(lines)


def with_table(page: str, results: dict[str, Any]) -> str:
    """A page with the table between its marks written anew."""
    return between(page, BEGIN, END, table(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=300)
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
