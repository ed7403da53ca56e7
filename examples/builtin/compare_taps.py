"""Is the layer that `lens-adapter probe` recommends worth it? A lite head on it against one on the default layer.

Both learn for the same time from the same scenes and are measured on validation scenes. Writes results/probe.json.

    python examples/builtin/compare_taps.py --minutes 8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from recipe import WORK
from tqdm import trange

from lens_adapter import LensAdapter, builtin, probe
from lens_adapter.builtin.exam import make_exam
from lens_adapter.builtin.figures import head_figures, take_exam

RESULTS = Path(__file__).parents[2] / "results" / "probe.json"
SCENES = 200  # of the validation split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="of training, for each head; both run side by side")
    args = parser.parse_args()
    model, processor = builtin.load_base()
    probed = probe(model, processor)
    taps = {"default": probed.default_tap_layer, "recommended": probed.recommended_tap_layer}
    folders = {tap: WORK / f"lite-tap-{tap}" for tap in taps.values()}
    script = [sys.executable, str(Path(__file__).with_name("train_head.py")), "lite", "--threads", "1"]
    running = [
        subprocess.Popen([*script, "--minutes", str(args.minutes), "--tap-layer", str(tap), "--output", str(folder)])
        for tap, folder in folders.items()
    ]
    if any(process.wait() for process in running):
        raise SystemExit("A training failed; see above.")
    figures: dict[str, object] = {"minutes_of_training": args.minutes, "validation_scenes": SCENES}
    figures["layers"] = {str(layer): vars(score) for layer, score in probed.layers.items()}
    for name, tap in taps.items():
        with LensAdapter.from_pretrained(folders[tap]).attach(model, processor) as adapter:
            exams = (make_exam(index, "validation") for index in trange(SCENES, desc=f"tap layer {tap}"))
            found = head_figures(
                [one for exam in exams for one in take_exam(adapter, exam)], adapter.config.score_threshold
            )
        figures[name] = {"tap_layer": tap, **{key: value for key, value in found.items() if key.startswith("giou")}}
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
