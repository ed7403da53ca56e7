"""What a readout reaches with how few examples: the built-in base and SAM, the test scenes of the built-in world.

    python -m benchmarks.few_shot                 # all of it, into results/few_shot.json
    python -m benchmarks.few_shot --page          # docs/first-head.md's table and docs/few-shot.png from that
    python -m benchmarks.few_shot --scenes 50 --draws 1 --json /tmp/few.json

Examples are drawn anew for every draw, from validation scenes; nothing is chosen on test scenes. These are read once by
the frozen base and by SAM's image encoder; then every readout is judged on the same readings, by the protocol of
`lens_adapter.evaluation`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks.pages import between
from lens_adapter import LensAdapter, LensConfig, builtin, fitting
from lens_adapter.builtin.exam import Exam, make_exam
from lens_adapter.builtin.figures import count_instances, findings_of, head_figures, instance_figures
from lens_adapter.builtin.world.labelled import labelled_scenes
from lens_adapter.errors import FitError, InputError
from lens_adapter.fitting import Seen, reliability
from lens_adapter.output import LensOutput
from lens_adapter.segmentation import assemble, segment
from lens_adapter.signals import Reading

ROOT = Path(__file__).parents[1]
SIZES = (5, 20, 50, 200)
DRAWS = 5
BARS = {"20": 0.66, "50": 0.69, "200": 0.71}  # gIoU of all kinds
SEVERAL_BAR, REFUSED_BAR, ACCEPTED_BAR = 0.48, 0.85, 0.95  # with 50 examples
SECONDS_BAR = 5.0  # of fitting 50 examples of 1 024 heads
FEWER_HEADS: dict[str, dict[str, Any]] = {  # read beside the curve, with 50 examples
    "best single head": {"heads": 1},
    "best four heads": {"heads": 4},
    "random single head": {"heads": 1, "at_random": True},
    "four random heads": {"heads": 4, "at_random": True},
}
BEGIN, END = "<!-- few-shot: begin -->", "<!-- few-shot: end -->"  # in docs/first-head.md
BESIDE = {  # of results/builtin.json when it was measured, which the record keeps: about the same base
    "mirror head, trained": "heads.mirror",
    "lite head, trained": "heads.lite",
    "click inside the true mask": "baselines.oracle_keypoint",
    "raw attention, best layer": "baselines.raw_keypoint",
}
KEPT = ("giou.all", "giou.attribute", "giou.spatial", "giou.ordinal", "giou.several", "giou.reasoning")
KEPT += ("giou.held_out_fact", "giou.held_out_phrasing", "giou.held_out_template", "precision_at_50.all")


@dataclass(frozen=True)
class Read:
    """A test scene as the frozen parts read it: the base's attention (no hidden states) and SAM's embedding."""

    exam: Exam
    reading: Reading
    embedding: Tensor


def read_scenes(adapter: LensAdapter, count: int) -> list[Read]:
    """The first test scenes, with all their prompts, read once."""
    layers, read = range(adapter.config.num_hidden_layers), []
    for index in tqdm(range(count), desc="reading test scenes", mininterval=5):
        exam = make_exam(index, "test")
        reading = adapter.base.read([exam.picture] * len(exam.prompts), exam.prompts, layers=layers)
        signals = reading.signals
        slim = replace(signals, hidden=signals.hidden[..., :1].clone(), layer_kwargs={}, prefix=None)
        with torch.no_grad():
            embedding = torch.stack(list(adapter.encode_images([exam.picture])))
        read.append(Read(exam, replace(reading, signals=slim), embedding))
    return read


class ReadAlready:
    """Stands in for a base: one picture's prompts, read before."""

    def __init__(self, reading: Reading):
        self.reading = reading

    def runs(self, pictures: Sequence[Any]) -> list[list[int]]:
        return [list(range(len(pictures)))]

    def prepare(self, pictures: Sequence[Any], prompts: Sequence[str]) -> None:
        """Nothing is left to prepare."""

    def read(self, pictures: Sequence[Any], prompts: Sequence[str], prepared: None) -> Reading:
        return self.reading


@torch.no_grad()
def answers(adapter: LensAdapter, scenes: Sequence[Read]) -> Iterator[tuple[LensOutput, Exam]]:
    """What `segment` would answer for every scene, with instances, before any score threshold."""
    thresholds = adapter.config.thresholds(None, 0.0)
    for one in scenes:
        request = (one.exam.picture, one.exam.prompts)
        base: Any = ReadAlready(one.reading)
        (drafts,) = segment(
            [request], base, lambda _: torch.empty(0), lambda _, of=one: of.embedding, adapter, len(one.exam.prompts)
        )
        yield assemble(request, drafts, adapter.decoder, thresholds, instances=True), one.exam


def judged(adapter: LensAdapter, scenes: Sequence[Read]) -> dict[str, float]:
    """gIoU by kind with nothing refused, and what the score threshold refuses and accepts."""
    threshold, found, tallies = adapter.config.score_threshold, [], []
    for out, exam in answers(adapter, scenes):
        found += findings_of(out, exam)
        tallies += count_instances(out, exam, threshold)
    free, strict = head_figures(found, 0.0), head_figures(found, threshold)
    figures = {key: free[key] for key in KEPT if key in free}
    figures |= {key: strict[key] for key in ("no_target_accuracy", "target_accepted") if key in strict}
    present = np.array([one.score for one in found if one.has_target and not one.subset.startswith("held_out")])
    absent = np.array([one.score for one in found if not one.has_target])
    if len(absent):
        figures["calibration_error"] = calibration_error(present, absent)
        # The threshold of this one is the test set's own: what could be refused while 95 % of the rest is accepted.
        figures["refused_where_95_percent_are_accepted"] = float((absent < np.quantile(present, 0.05)).mean())
    return figures | instance_figures(tallies) | {"first_click_on_target": free["keypoint_on_target"]}


def calibration_error(present: np.ndarray, absent: np.ndarray) -> float:
    """Mean distance of a score from the share of prompts with a target among those of such a score.

    Present and absent prompts count as in a fit: one of these for one of those.
    """
    draw = np.random.default_rng(0)
    count = min(len(present), len(absent))
    chosen = [draw.choice(scores, count, replace=False) for scores in (present, absent)]
    table = reliability(np.concatenate(chosen), np.repeat([True, False], count), bins=10)
    return float(sum(abs(score - share) * prompts for score, share, prompts in table) / (2 * count))


def new_adapter() -> LensAdapter:
    model, processor = builtin.load_base()
    return LensAdapter.from_model(model, processor, fusion="readout", sam="builtin", **builtin.QUESTIONS)


def fit_some(adapter: LensAdapter, count: int, draw: int, heads: int = fitting.HEADS, at_random: bool = False) -> bool:
    """Fit on a draw of examples, on the best `heads` heads or on random ones. False: refused, the head is as it was."""
    anatomy, config = adapter.base.anatomy, adapter.config
    names = [(layer, head) for layer in anatomy.readable for head in range(anatomy.num_heads[layer])]
    try:
        seen = fitting.read_examples(adapter.base, labelled_scenes(count, start=1000 * draw))
        if at_random:
            chosen = np.random.default_rng(draw).permutation(len(names))[:heads].tolist()
            names, seen = [names[k] for k in chosen], [replace(one, logs=one.logs[chosen]) for one in seen]
        report, fitted, readout = fitting.choose_and_judge(names, config, seen, validation=0.25, heads=heads)
    except (FitError, InputError):
        return False
    adapter.head, config.score_threshold, config.readout = readout, fitted.score_threshold, report.to_dict()
    return True


def seconds_of_fitting(heads: int = 1024, examples: int = 50, side: int = 24) -> float:
    """CPU seconds of choosing, weighting and judging after the base was read, of made-up attention."""
    draw = torch.Generator().manual_seed(0)
    names, seen = [(index // 32, index % 32) for index in range(heads)], []
    for group in range(examples):
        cover, (y, x) = torch.zeros(side, side), torch.randint(0, side - 4, (2,), generator=draw).tolist()
        cover[y : y + 4, x : x + 4] = 1
        logs = torch.randn(heads, side, side, generator=draw)
        logs[:: heads // 8] += cover
        mask = cover.numpy() > 0
        seen.append(Seen(logs, cover, mask, False, group))
        seen.append(Seen(torch.randn(heads, side, side, generator=draw), 0 * cover, mask & False, False, group))
    config = LensConfig(fusion="readout", num_hidden_layers=32, num_attention_heads=32)
    start = process_time()
    fitting.choose_and_judge(names, config, seen, validation=0.25)
    return process_time() - start


def spread(figures: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, least and most of every figure over draws."""
    columns = {key: [one[key] for one in figures if key in one] for key in figures[0]}
    return {key: {"mean": float(np.mean(v)), "low": min(v), "high": max(v)} for key, v in columns.items()}


def measure(scenes: int, draws: int, sizes: Sequence[int], beside: Sequence[str], file: Path) -> dict[str, Any]:
    """Figures of each number of examples and of each reading beside them, into the file; others in it stay."""
    torch.set_num_threads(1)
    adapter = new_adapter()
    results: dict[str, Any] = {"scenes": scenes, "draws": draws, "curve": {}, "refused_fits": {}, "beside": {}}
    if file.exists():
        before = json.loads(file.read_text())
        if (before["scenes"], before["draws"]) != (scenes, draws):
            raise SystemExit(f"{file} holds figures of other scenes or draws. Choose another --json.")
        results = before
    results.setdefault("builtin", figures_beside())
    results.setdefault("seconds_of_fitting_1024_heads_50_examples", seconds_of_fitting())
    read = read_scenes(adapter, scenes)
    for name in (*map(str, sizes), *beside):
        count = 50 if name in FEWER_HEADS else int(name)
        fewer, figures = FEWER_HEADS.get(name, {}), []
        for draw in tqdm(range(draws), desc=name, mininterval=5):
            if fit_some(adapter, count, draw, **fewer):
                pointing = adapter.config.readout["pointing"]
                figures.append({**judged(adapter, read), "held_out_pointing": pointing})
        results["refused_fits"][name] = draws - len(figures)
        if figures:
            results["beside" if name in FEWER_HEADS else "curve"][name] = spread(figures)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
    return results


def table(results: dict[str, Any], beside: dict[str, float], trained: dict[str, Any]) -> str:
    """Markdown: gIoU by kind, a row for each number of examples, then what it is to be read against.

    Args:
        results: as `measure` returns.
        beside: of results/builtin.json when it was measured.
        trained: gIoU by kind, of results/paper_claims.json.
    """
    kinds = ("all", "attribute", "spatial", "ordinal", "several", "reasoning")
    titles = (*kinds, "absent refused, present accepted", "instances: precision, recall")
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]

    def pair(found: dict[str, Any], *names: str) -> str:
        """Two figures, or nothing where they were not measured."""
        values = [found[name] for name in names if name in found]
        return ", ".join(f"{value['mean'] if isinstance(value, dict) else value:.2f}" for value in values)

    judged, things = ("no_target_accuracy", "target_accepted"), ("instances.precision", "instances.recall")
    for size in sorted(results["curve"], key=int):
        found = results["curve"][size]
        cells = [f"{found[f'giou.{kind}']['mean']:.3f}" for kind in kinds]
        low, high = found["giou.all"]["low"], found["giou.all"]["high"]
        cells[0] += f" ({low:.3f} to {high:.3f})"
        cells += [pair(found, *judged), pair(found, *things)]
        refused = results["refused_fits"][size]
        note = f" ({refused} of {results['draws']} draws refused)" if refused else ""
        lines.append(f"| {size} examples{note} | {' | '.join(cells)} |")
    for name, found in results["beside"].items():
        cells = [f"{found[f'giou.{kind}']['mean']:.3f}" for kind in kinds] + [
            pair(found, *judged),
            pair(found, *things),
        ]
        refused = results["refused_fits"][name]
        note = f" ({refused} of {results['draws']} draws refused)" if refused else ""
        lines.append(f"| {name}, 50 examples{note} | {' | '.join(cells)} |")
    for title, key in BESIDE.items():
        found = {name: beside[f"{key}.{name}"] for name in (*judged, *things) if f"{key}.{name}" in beside}
        cells = [f"{beside[f'{key}.giou.{kind}']:.3f}" for kind in kinds] + [pair(found, *judged), pair(found, *things)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    cells = [f"{trained[kind]['mean']:.3f}" for kind in kinds]
    lines.append(f"| F-LMM style, trained (500 of the scenes) | {' | '.join(cells)} | | |")
    return "\n".join(lines)


def with_table(page: str, results: dict[str, Any], beside: dict[str, float], trained: dict[str, Any]) -> str:
    """A page with the table between its marks written anew."""
    return between(page, BEGIN, END, table(results, beside, trained))


def records() -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """What `table` takes, from the committed records."""
    few, claims = (json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in ("few_shot", "paper_claims"))
    return few, few["builtin"], claims["methods"]["flmm"]["giou"]


def figures_beside() -> dict[str, float]:
    """What `BESIDE` names, of the models as they ship now."""
    figures = json.loads((ROOT / "results" / "builtin.json").read_text())
    return {
        name: value for name, value in figures.items() if name.startswith(tuple(f"{key}." for key in BESIDE.values()))
    }


def draw(results: dict[str, Any], beside: dict[str, float]) -> Figure:
    """gIoU against the number of examples, with the spread over draws."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    sizes = sorted(map(int, results["curve"]))
    for key, name, color, marker in (
        ("all", "all kinds", "#0072B2", "o"),
        ("several", "several things", "#D55E00", "s"),
    ):
        found = [results["curve"][str(size)][f"giou.{key}"] for size in sizes]
        axes.fill_between(
            sizes, [one["low"] for one in found], [one["high"] for one in found], color=color, alpha=0.2, lw=0
        )
        axes.plot(sizes, [one["mean"] for one in found], color=color, marker=marker, label=f"readout, {name}")
    for (title, key), style in zip(BESIDE.items(), ("-", "--", "-.", ":"), strict=True):
        axes.axhline(beside[f"{key}.giou.all"], color="0.35", ls=style, lw=1.2, label=f"{title}, all kinds")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="labelled prompts", ylabel="gIoU on 1000 test scenes", ylim=(0.2, 0.9))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def write_page() -> None:
    """Table and picture of the committed record into the documentation."""
    results, beside, trained = records()
    page = ROOT / "docs" / "first-head.md"
    page.write_text(with_table(page.read_text(), results, beside, trained))
    draw(results, beside).savefig(ROOT / "docs" / "few-shot.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--beside", choices=FEWER_HEADS, nargs="*", default=list(FEWER_HEADS))
    parser.add_argument("--page", action="store_true", help="only write table and picture of what was measured")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "few_shot.json")
    args = parser.parse_args()
    if args.page:
        return write_page()
    results = measure(args.scenes, args.draws, args.sizes, args.beside, args.json)
    print(json.dumps({key: value["giou.all"] for key, value in results["curve"].items()}, indent=1))


if __name__ == "__main__":
    main()
