"""How fast and how large, as ratios measured side by side.

python -m benchmarks                                    # all of them, on the CPU, with a tiny base
python -m benchmarks --device cuda --base llava-1.5-7b  # random weights in the real dimensions
python -m benchmarks --dtype bfloat16 --base llava-1.5-7b --sam vit_b --only peer early_exit  # on a CPU, with 20 GB
python -m benchmarks --only shared_prefix --repeats 9
python -m benchmarks --profile                          # where the time of `segment` goes
python -m benchmarks --render                           # write page and figures again from what was measured
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler is talkative; before torch is loaded

import torch

from benchmarks.bases import BASES
from benchmarks.figures import draw_growth, draw_host, draw_profile
from benchmarks.harness import SECONDS, TOKENS, Stage
from benchmarks.report import page, table
from benchmarks.suite import BENCHMARKS
from lens_adapter.sam.published import PUBLISHED

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "benchmarks"  # suite-BASE-DEVICE.json each
DOCS = ROOT / "docs"
PROFILE = ("profile", "encoders")
DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> None:
    described = "; ".join(
        f"{name}: {' '.join((function.__doc__ or '').split())}" for name, function in BENCHMARKS.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Benchmarks: " + described, prog="python -m benchmarks"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base", choices=list(BASES), default="tiny", help="dimensions of the base; random weights")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of base, head and SAM; default: float32, the base's own for that on a GPU"
    )
    parser.add_argument("--sam", choices=list(PUBLISHED), help="another SAM; default: the one beside the base")
    parser.add_argument("--only", choices=list(BENCHMARKS), nargs="+", default=list(BENCHMARKS), metavar="BENCHMARK")
    parser.add_argument("--profile", action="store_true", help=f"the same as --only {' '.join(PROFILE)}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which every way runs once")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="after which a comparison begins no further round"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="lengths that `capture` is measured at")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the JSON, suite-BASE-DEVICE.json each")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page and its figures")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    if not asked.render:
        dtype = None if asked.dtype is None else getattr(torch, asked.dtype)
        stage = Stage(asked.device, asked.base, asked.repeats, asked.seconds, asked.tokens, dtype=dtype, sam=asked.sam)
        path = asked.records / f"suite-{asked.base}-{asked.device}.json"
        measure(stage, list(PROFILE) if asked.profile else asked.only, path)
    render(read_records(asked.records), asked.docs)


def measure(stage: Stage, names: list[str], path: Path) -> None:
    """Run benchmarks, print their tables, and write them into `path` in the place of earlier ones of the same name."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        comparisons = [asdict(comparison) for comparison in BENCHMARKS[name](stage)]
        found[name] = {"record": stage.record(), "comparisons": comparisons}
        print(table(found[name]), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """What was measured, a dict {benchmark: its record and comparisons} per file."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("suite-*.json"))]


def render(records: list[dict[str, Any]], docs: Path) -> None:
    """Write the page and its figures."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks.md").write_text(page(records))
    for name, draw in (
        ("benchmarks.png", draw_growth),
        ("benchmarks-profile.png", draw_profile),
        ("benchmarks-host.png", draw_host),
    ):
        if figure := draw(records):
            figure.savefig(docs / name, dpi=187.5)


if __name__ == "__main__":
    main()
