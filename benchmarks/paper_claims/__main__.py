"""python -m benchmarks.paper_claims: train, measure, and write the table."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

import torch

from benchmarks.paper_claims.methods import METHODS, Base, Lens
from benchmarks.paper_claims.report import write_report
from benchmarks.paper_claims.scenes import SIDE, encode_scenes
from benchmarks.paper_claims.training import Data, Settings, fingerprint, load_exams, run_base, run_method, time_steps
from lens_adapter.builtin.exam import PICTURE_SIZE


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_claims", description=__doc__)
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/paper_claims"), help="checkpoints; a restart goes on")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of results/ and docs/")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    args.work.mkdir(parents=True, exist_ok=True)

    base = Base.load()
    kept = {**asdict(settings), "base": fingerprint(base.model.state_dict())}
    note = args.work / "settings.json"
    if note.exists() and json.loads(note.read_text()) != kept:
        raise SystemExit(f"{args.work} holds a run with other settings ({note}); choose another --work or delete it.")
    note.write_text(json.dumps(kept))

    sam = Lens(base, "lite").decoder()
    counts = {"train": settings.scenes, "validation": settings.validation_scenes, "test": settings.test_scenes}
    encoded = {
        split: encode_scenes(
            base.model, base.processor, sam, count, split, SIDE if split == "train" else PICTURE_SIZE, args.work
        )
        for split, count in counts.items()
    }
    data, exams = Data(**encoded), load_exams(settings.test_scenes, "test")
    before = run_base(settings, exams, args.work)
    results = {}
    for name in args.methods:
        results[name] = run_method(name, settings, data, exams, before, args.work / name)
        write_report(args.output, settings, args.threads, before, results)
    timing = time_steps(args.methods, data, args.work)
    print(write_report(args.output, settings, args.threads, before, results, timing))


if __name__ == "__main__":
    main()
