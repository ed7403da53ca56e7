"""Whether the memory of `annotate` grows with the data: the process's own, over thousands of pictures.

    python -m benchmarks.annotate_memory                     # into results/annotate_memory.json
    python -m benchmarks.annotate_memory --pictures 2000 --scenes 50 --json /tmp/memory.json

Twice: tiny pictures from a list, with a segmenter that costs nothing, so that reading, opening, encoding and writing
are what is seen; and drawn scenes with the model that ships. Each in a process of its own. The resident memory (RSS) is
read after every batch; the slope is that of a straight line through all of it after the first third, in which caches
and allocators fill. The adapter's cache of image embeddings, which is bounded (`EmbeddingCache`), is made smaller, so
that it is full by then.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import numpy as np
import torch
from PIL import Image

from lens_adapter import EmbeddingCache, LensOutput, annotate, builtin
from lens_adapter.builtin.world.labelled import labelled_scenes

ROOT = Path(__file__).parents[1]
PROMPTS = ["a dog", "something you can eat"]
WARM_UP = 1 / 3
CACHE_BYTES = 8 * 2**20  # of image embeddings; the default, 64 MiB, would be filled by 256 pictures only


def cheap_segmenter(images: list[Image.Image], prompts: list[list[str]]) -> list[LensOutput]:
    """Masks of what is dark, by no model."""
    outputs = []
    for image, asked in zip(images, prompts, strict=True):
        mask = torch.from_numpy(np.asarray(image.convert("L")) < 128)
        masks = mask.repeat(len(asked), 1, 1)
        outputs.append(
            LensOutput(
                prompts=asked,
                image_size=(image.height, image.width),
                masks=masks,
                scores=masks.float().mean((1, 2)),
                keypoints=[torch.zeros(1, 2)] * len(asked),
                keypoint_scores=[torch.ones(1)] * len(asked),
                heatmaps=torch.zeros(len(asked), 2, 2),
            )
        )
    return outputs


def resident_bytes() -> int:
    """What of this process is in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(kind: str, pictures: int, folder: Path) -> dict[str, Any]:
    """Annotate `pictures` pictures, of a "list" or of the "model" that ships, and watch the process."""
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    drawn = labelled_scenes(2 * min(pictures, 40)) if kind == "model" else []
    scenes = list({id(example.image): example.image for example in drawn}.values())
    with (folder / "list.jsonl").open("w") as listed:
        for number in range(pictures):
            name = f"pictures/{number}.png"
            pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
            if scenes:  # no two alike, so that no kept embedding serves again
                scene = np.asarray(scenes[number % len(scenes)]).copy()
                scene[:24, :32] = pixels
                pixels = scene
            Image.fromarray(pixels).save(folder / name)
            listed.write(json.dumps({"image": name, "prompts": PROMPTS}) + "\n")
    seen: list[tuple[int, int]] = []  # pictures, bytes

    def watched(segmenter: Any) -> Any:
        def segment(images: list[Image.Image], prompts: list[list[str]]) -> list[LensOutput]:
            seen.append(((seen[-1][0] if seen else 0) + len(images), resident_bytes()))
            return list(segmenter(images, prompts))

        return segment

    began = monotonic()
    if kind == "list":
        report = annotate(watched(cheap_segmenter), folder / "list.jsonl", folder / "out", shard_size=256)
    else:
        with builtin.load_head("lite").attach(*builtin.load_base()) as adapter:
            adapter.embedding_cache = EmbeddingCache(CACHE_BYTES)
            report = annotate(
                watched(lambda images, prompts: adapter.segment(images, prompts, batch_size=8, score_threshold=0.0)),
                folder / "list.jsonl",
                folder / "out",
                shard_size=64,
            )
    counts, taken = np.array([entry for entry in seen if entry[0] > WARM_UP * pictures], float).T
    slope = float(np.polyfit(counts, taken, 1)[0])
    return {
        "pictures": report.pictures,
        "rows": report.rows,
        "seconds": round(monotonic() - began, 1),
        "resident_mib_after_warm_up": round(float(taken[0]) / 2**20, 1),
        "resident_mib_at_the_end": round(float(taken[-1]) / 2**20, 1),
        "resident_mib_at_most": round(float(taken.max()) / 2**20, 1),
        "slope_bytes_per_picture": round(slope, 1),
        "resident_mib_by_picture": [
            [int(counts[k]), round(float(taken[k]) / 2**20, 1)] for k in np.linspace(0, len(counts) - 1, 12).astype(int)
        ],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m benchmarks.annotate_memory")
    parser.add_argument("--pictures", type=int, default=10_000, help="of the list")
    parser.add_argument("--scenes", type=int, default=900, help="for the model that ships")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "annotate_memory.json")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "PICTURES"), help=argparse.SUPPRESS)  # in a process alone
    asked = parser.parse_args(arguments)
    if asked.only:
        with TemporaryDirectory() as folder:
            print(json.dumps(measure(asked.only[0], int(asked.only[1]), Path(folder))))
        return
    found: dict[str, Any] = {"machine": platform.platform(), "processors": os.cpu_count(), "torch": torch.__version__}
    for kind, pictures in (("list", asked.pictures), ("model", asked.scenes)):
        command = [sys.executable, "-m", "benchmarks.annotate_memory", "--only", kind, str(pictures)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(kind, json.dumps(found[kind], indent=1), flush=True)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
