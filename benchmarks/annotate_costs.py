"""What it costs to annotate: the seconds of each part of a picture, and pictures an hour, added up and in a real run.

    python -m benchmarks.annotate_costs --base llava-1.5-7b --sam vit_b --dtype bfloat16 --device cuda
    python -m benchmarks.annotate_costs --render            # only write the page's table again

Base, head and SAM have random weights; speed does not depend on them. Masks cover whole pictures, which is the most
that they can cost. A picture with p prompts takes

    encode + base(p) + p * (head + decode + write)

seconds: SAM's image encoder, the base as far as it is read (with its processor; prompts share the picture), and for
every prompt the head, the mask decoder, and the mask at full size with its run lengths and its row. Pictures are opened
by threads meanwhile. The run is `annotate` over as many JPEGs: with batches, which the sum knows nothing of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from benchmarks.bases import BASES
from benchmarks.harness import Stage, Work
from benchmarks.pages import between
from benchmarks.suite.registry import PROMPTS, picture, segment
from benchmarks.suite.steps import Steps
from lens_adapter import LensAdapter, LensOutput, annotate
from lens_adapter.annotation.local import BATCH_SIZE, WORKERS
from lens_adapter.annotation.rows import rows_of, shards_in
from lens_adapter.sam.published import PUBLISHED
from lens_adapter.vlm.images import load_image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ten-million-pictures.md"
BEGIN, END = "<!-- costs: begin -->", "<!-- costs: end -->"
COUNTS = (1, 4)  # prompts about each picture
HEADS = ("lite", "mirror")


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Pictures as large as COCO's, no two alike."""
    paths = [folder / f"{seed:05d}.jpg" for seed in range(count)]
    for seed, path in enumerate(paths):
        picture(seed).save(path, quality=90)
    return paths


@torch.no_grad()
def seconds_of_parts(stage: Stage, adapter: LensAdapter, jpeg: Path) -> dict[str, float]:
    """Medians over the stage's rounds, after one to warm up."""
    adapter.embedding_cache = None
    steps, image = Steps(adapter), picture()
    output = segment(adapter, image, PROMPTS[0])
    ways: dict[str, Work] = {
        "open a JPEG": partial(load_image, jpeg),
        "encode": steps.encode,
        "head": steps.point,
        "decode": steps.decode,
        "write": lambda: (steps.enlarge(), rows_of("a.jpg", output, 0.0)),
    }
    for count in COUNTS:
        ways[f"base, {count} prompts"] = partial(adapter.base.read, [image] * count, PROMPTS[:count])
    rounds = [{name: stage.timed(work) for name, work in ways.items()} for _ in range(stage.repeats + 1)]
    return {name: median(one[name] for one in rounds[1:]) for name in ways}


def seconds_of(parts: dict[str, float], count: int) -> list[float]:
    """Of a picture with so many prompts: to encode it, in the base, in the head, to decode, and to write."""
    return [parts["encode"], parts[f"base, {count} prompts"], *(count * parts[k] for k in ("head", "decode", "write"))]


def added_up(parts: dict[str, float], count: int) -> float:
    """Seconds of a picture with so many prompts."""
    return sum(seconds_of(parts, count))


def run(adapter: LensAdapter, folder: Path, pictures: int, count: int) -> dict[str, float]:
    """`annotate` over a folder: seconds a picture, and bytes a row."""
    output = folder.parent / f"annotations-{count}"

    def drawn(images: list[Image.Image], prompts: list[list[str]]) -> list[LensOutput]:
        """As `annotate` asks an adapter, but without the digest of its weights, which a short run would feel."""
        return segment(adapter, images, prompts, batch_size=BATCH_SIZE, score_threshold=0.0)

    began = perf_counter()
    report = annotate(drawn, folder, output, prompts=PROMPTS[:count])
    seconds = (perf_counter() - began) / pictures
    assert report.errors == 0 and report.rows == pictures * count
    return {"seconds": seconds, "row_bytes": sum(path.stat().st_size for path in shards_in(output)) / report.rows}


def measure(stage: Stage, heads: Sequence[str], pictures: int) -> dict[str, Any]:
    """Of each head: parts, and what they come to for each number of prompts."""
    found: dict[str, Any] = {"record": stage.record(), "pictures": pictures, "opening_threads": WORKERS, "heads": {}}
    for head in heads:
        adapter = stage.adapter(head)
        with TemporaryDirectory() as place:
            folder = Path(place, "pictures")
            folder.mkdir()
            jpegs = write_jpegs(folder, pictures)
            parts = seconds_of_parts(stage, adapter, jpegs[0])
            by_count = {}
            for count in COUNTS:
                ran, summed = run(adapter, folder, pictures, count), added_up(parts, count)
                by_count[str(count)] = {
                    "pictures_per_hour_added_up": 3600 / summed,
                    "pictures_per_hour": 3600 / ran["seconds"],
                    "row_bytes": ran["row_bytes"],
                }
        found["heads"][head] = {"seconds": parts, "prompts": by_count}
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown: one row per place, head and number of prompts.

    On a CPU, whose seconds say little of another, parts are shares of what they add up to; so is the run.
    """
    if not results:
        return "*Not measured yet.*"
    lines = [
        "| base, SAM | on | head | prompts | encode | base | heads | decode | write | added up | in a run |",
        "|---" * 11 + "|",
    ]
    for one in results.values():
        record = one["record"]
        what = f"{record['base']} in {record['base_dtype']}, {record['sam']}"
        where = f"a CPU, threads: {record['threads']}" if record["device_kind"] == "cpu" else record["device"]
        for head, found in one["heads"].items():
            for count in map(int, found["prompts"]):
                cells = _shares(found, count) if record["device_kind"] == "cpu" else _milliseconds(found, count)
                lines.append(f"| {what} | {where} | {head} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _milliseconds(found: dict[str, Any], count: int) -> list[str]:
    rates = found["prompts"][str(count)]
    hours = [rates["pictures_per_hour_added_up"], rates["pictures_per_hour"]]
    parts = seconds_of(found["seconds"], count)
    return [*(f"{1000 * part:.1f} ms" for part in parts), *(f"{rate:,.0f} an hour" for rate in hours)]


def _shares(found: dict[str, Any], count: int) -> list[str]:
    parts, rates = seconds_of(found["seconds"], count), found["prompts"][str(count)]
    ran = rates["pictures_per_hour_added_up"] / rates["pictures_per_hour"]
    return [*(f"{part / sum(parts):.2f}" for part in parts), "1", f"{ran:.2f}"]


def with_table(page: str, results: dict[str, Any]) -> str:
    """The page with the table between its markers."""
    return between(page, BEGIN, END, table(results))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m benchmarks.annotate_costs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base", choices=list(BASES), default="tiny", help="whose dimensions; random weights")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of base, head and SAM")
    parser.add_argument("--sam", choices=list(PUBLISHED), help="default: the one beside the base")
    parser.add_argument("--heads", choices=HEADS, nargs="+", default=list(HEADS))
    parser.add_argument("--pictures", type=int, default=64, help="of each run")
    parser.add_argument("--repeats", type=int, default=5, help="of each part")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "annotate_costs.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--render", action="store_true", help="measure nothing")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    results = json.loads(asked.json.read_text(encoding="utf-8")) if asked.json.exists() else {}
    if not asked.render:
        dtype = getattr(torch, asked.dtype)
        stage = Stage(asked.device, asked.base, asked.repeats, dtype=dtype, sam=asked.sam)
        found = measure(stage, asked.heads, asked.pictures)
        results[f"{asked.base}, {found['record']['sam']}, {asked.device}"] = found
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(table(results))
    asked.page.write_text(with_table(asked.page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
