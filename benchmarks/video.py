"""Moving scenes of the built-in world: how well masks that are drawn frame by frame follow a thing.

python -m benchmarks.video                     # 100 test scenes, into results/video.json
python -m benchmarks.video --page              # docs/video.md's table from that
python -m benchmarks.video --scenes 5 --split validation --json /tmp/video.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.pages import between
from lens_adapter import LensVideoOutput, builtin
from lens_adapter.builtin.world import Expression, Scene, Speaker, moving_scene
from lens_adapter.evaluation import overlap
from lens_adapter.evaluation.outlines import boundary_f

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- video: begin -->", "<!-- video: end -->"  # in docs/video.md
FRAMES, SIDE = 12, 384
ATTEMPTS = 8  # to name one thing of a scene
ROWS = {
    **{f"{name}, frame by frame": (name, False) for name in builtin.HEADS},
    **{f"{name}, best frame held still": (name, True) for name in builtin.HEADS},
}


def named(scenes: list[Scene]) -> Expression | None:
    """A thing by what stays true of it while it moves; None: no words for one."""
    speaker = Speaker(scenes[0], np.random.default_rng([scenes[0].seed, 22]))
    said = (speaker.expression("attribute") for _ in range(ATTEMPTS))
    return next((one for one in said if one is not None and len(one.targets) == 1), None)


def judged(video: LensVideoOutput, truths: list[np.ndarray], *, still: bool) -> tuple[float, float]:
    """J and F of one video: means over its frames.

    Args:
        still: whether the best frame's mask stands for all of them.
    """
    best = video.best[0]
    masks = [video.masks[frame if not still or best is None else best, 0].numpy() for frame in range(len(video))]
    pairs = list(zip(masks, truths, strict=True))
    return fmean(overlap(*pair).iou for pair in pairs), fmean(boundary_f(*pair) for pair in pairs)


def measure(scenes: int, split: str = "test") -> dict[str, Any]:
    """Means over the videos in which a thing has a name."""
    heads = dict.fromkeys(name for name, _ in ROWS.values())
    adapters = {name: builtin.load_head(name).attach(*builtin.load_base()) for name in heads}
    found: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    unnamed = 0
    for index in tqdm(range(scenes), desc="videos", mininterval=5):
        moving = moving_scene(index, split, frames=FRAMES)
        expression = named(moving)
        if expression is None:
            unnamed += 1
            continue
        frames = [scene.draw(SIDE) for scene in moving]
        truths = [scene.masks(SIDE)[expression.targets[0]] for scene in moving]
        videos = {name: adapter.segment_video(frames, expression.text) for name, adapter in adapters.items()}
        for row, (name, still) in ROWS.items():
            found[row].append(judged(videos[name], truths, still=still))
    facts = {"scenes": scenes, "split": split, "frames": FRAMES, "unnamed": unnamed}
    return {
        **facts,
        **{row: {"j": fmean(j for j, _ in pairs), "f": fmean(f for _, f in pairs)} for row, pairs in found.items()},
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each head and way."""
    lines = ["| masks | J | F |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row} | {results[row]['j']:.3f} | {results[row]['f']:.3f} |" for row in ROWS)])


def with_table(page: str, results: dict[str, Any]) -> str:
    """A page with the table between its marks written anew."""
    return between(page, BEGIN, END, table(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--page", action="store_true", help="only write the table of what was measured")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "video.json")
    args = parser.parse_args()
    if args.page:
        page = ROOT / "docs" / "video.md"
        page.write_text(with_table(page.read_text(), json.loads(args.json.read_text())))
        return
    results = measure(args.scenes, args.split)
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
