"""What the runs found, as JSON, as a page with tables, and as a picture."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.paper_claims.methods import LORA, Lisa
from benchmarks.paper_claims.scenes import BATCH_SCENES, PROMPTS
from benchmarks.paper_claims.training import Settings
from lens_adapter import __version__
from lens_adapter.builtin.exam import EXPRESSIONS, QUESTIONS

LABELS = {
    "lens_mirror": "LENS mirror",
    "lens_lite": "LENS lite",
    "flmm": "F-LMM style",
    "lisa_lora": "LISA style, LoRA",
    "lisa_full": "LISA style, full",
    "lisa_lora_questions": "LISA style, LoRA, ⅓ questions",
}
FROZEN = ("lens_mirror", "lens_lite", "flmm")
REFERENCE = "lens_lite"
KINDS = ("attribute", "spatial", "ordinal", "several", "reasoning", "held_out_fact", "all")
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"  # in README.md
DRAWS = 2000  # of the bootstrap, over scenes: what is said about one scene is not independent
# Okabe and Ito's colors, which color-blind people tell apart, and a marker each.
LOOKS = {
    "lens_mirror": ("#0072B2", "o"),
    "lens_lite": ("#56B4E9", "s"),
    "flmm": ("#009E73", "D"),
    "lisa_lora": ("#D55E00", "^"),
    "lisa_full": ("#E69F00", "v"),
    "lisa_lora_questions": ("#CC79A7", "P"),
}
PACKAGES = ("torch", "transformers", "peft", "segment-anything", "numpy")

Found = list[tuple[int, str, float]]  # scene, group, IoU


def write_report(
    output: Path,
    settings: Settings,
    threads: int,
    before: dict[str, Any],
    results: dict[str, dict[str, Any]],
    timing: dict[str, float] | None = None,
) -> str:
    """Write results/paper_claims.json, docs/paper-claims.md, docs/paper-claims.png and, where there is a README.md, its
    table; returns the first table."""
    report = summarize(settings, threads, before, results, timing or {})
    for folder in ("results", "docs"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    (output / "results/paper_claims.json").write_text(json.dumps(report, indent=1) + "\n")
    (output / "docs/paper-claims.md").write_text(page(report))
    draw(report).savefig(output / "docs/paper-claims.png", dpi=150)
    if (readme := output / "README.md").exists():
        before, _, rest = readme.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        readme.write_text(f"{before}{BEGIN}\n{short_table(report)}\n{END}{after}")
    return main_table(report)


def summarize(
    settings: Settings,
    threads: int,
    before: dict[str, Any],
    results: dict[str, dict[str, Any]],
    timing: dict[str, float],
) -> dict[str, Any]:
    """Every figure; shares and gIoU as fractions in [0, 1], intervals are 95% ones."""
    reference = results.get(REFERENCE)
    methods = {}
    for name, result in results.items():
        methods[name] = {
            "parameters": result["parameters"],
            "cpu_seconds": result["cpu_seconds"],
            "rate": result["rate"],
            "rates_tried": result["tried"],
            "giou": {kind: interval(result["masks"], kind, settings.test_scenes) for kind in KINDS},
            "answers": result["answers"],
            "answers_changed": result["answers_changed"],
            "answers_with_segment": sum(Lisa.SEGMENT.lower() in said.lower() for said in result["said"]),
            "same_weights": result["same_weights"],
            "changed_tensors": result["changed_tensors"],
        }
        if reference is not None:
            methods[name]["giou_minus_lens_lite"] = interval(
                result["masks"], "all", settings.test_scenes, minus=reference["masks"]
            )
        if REFERENCE in timing:
            methods[name]["step_time_ratio"] = timing[name] / timing[REFERENCE]
    return {
        "settings": {**asdict(settings), "scenes_per_step": BATCH_SCENES, "prompts_per_scene": PROMPTS},
        "environment": {
            "device": f"cpu, {_processor()}",
            "threads": threads,
            "python": platform.python_version(),
            "lens_adapter": __version__,
            **{package: version(package) for package in PACKAGES},
        },
        "base": {
            "parameters": before["parameters"],
            "answers": before["answers"],
            "questions": len(before["said"]),
            "tensors": next(iter(results.values()))["tensors"],
        },
        "methods": methods,
    }


def interval(found: Found, kind: str, scenes: int, minus: Found | None = None) -> dict[str, float]:
    """gIoU of a kind ("all": of all that training may use), or its difference to another method's on the same."""
    sums, counts = np.zeros(scenes), np.zeros(scenes)
    others = [0.0] * len(found) if minus is None else [iou for _, _, iou in minus]
    for (scene, group, iou), other in zip(found, others, strict=True):
        if kind == group or (kind == "all" and group in EXPRESSIONS):
            sums[scene] += iou - other
            counts[scene] += 1
    weights = np.random.default_rng(0).multinomial(scenes, [1 / scenes] * scenes, DRAWS)  # (DRAWS, scenes)
    drawn = weights @ sums / np.maximum(weights @ counts, 1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


# -- the page ---------------------------------------------------------------------------------------------------------


def page(report: dict[str, Any]) -> str:
    settings, environment = report["settings"], report["environment"]
    sizes = sorted({found["parameters"]["mask_decoder"] / 1e6 for found in report["methods"].values()})
    packages = ("lens_adapter", *PACKAGES)
    return PAGE.format(
        **settings,
        prompts=settings["steps"] * settings["scenes_per_step"] * settings["prompts_per_scene"],
        base=report["base"]["parameters"] / 1e6,
        questions=report["base"]["questions"],
        decoder=" or ".join(f"{size:.2f}" for size in sizes),
        rank=LORA["r"],
        main_table=main_table(report),
        findings="\n".join(f"- {line}" for line in findings(report)),
        answers_table=answers_table(report),
        rates_table=rates_table(report),
        device=environment["device"],
        threads=environment["threads"],
        versions=", ".join(f"{package} {environment[package]}" for package in packages),
    )


PAGE = """\
# The paper's claims on the built-in model

Written by `python -m benchmarks.paper_claims`; every figure is in
`results/paper_claims.json`.

The LENS paper says: masks as good as those of fine-tuned models, from a model that is not touched. Here every method
learns from the same {steps} batches ({prompts} prompts about {scenes} scenes, each with a target), starts from the same
tiny LLaVA ({base:.1f} M parameters) and the same tiny SAM, trains SAM's mask decoder along, and is judged on
{test_scenes} test scenes. Heads start untrained. That tiny LLaVA is the one that shipped before it learned everyday
words.

![Per method: gIoU, and questions answered right](paper-claims.png)

{main_table}

gIoU with 95% bootstrap intervals over scenes; the difference to LENS lite is paired. *Held-out facts*: pairs of a thing
and a fact that no training mask was named by; they are not part of *all*. Answers: exactly right ones of
{questions} questions, before and after training. Learned: millions of parameters, SAM's mask decoder ({decoder})
included. Time: CPU time of a training step, steps of all methods taken in turns, LENS lite = 1.

## What was found

{findings}

## Attention before and after

![Where the frozen model looks, and where the two heads look](attention.png)

Drawn by `examples/builtin/attention_before_and_after.py` with the shipped heads: the last token's attention in the
layer that a head taps, as the frozen model has it, and what the head makes of it.

## Answers by kind of question

{answers_table}

## The methods

- **LENS mirror**, **LENS lite**: adapters of this package, from `LensAdapter.from_model`, with the settings of the
  shipped heads. Beside the mask's loss, that of the heatmap.
- **F-LMM style** ([arXiv 2406.05821](https://arxiv.org/abs/2406.05821)): the attention of every layer and head, from
  the last token and from the expression's words to the image, as channels of a small U-Net. Its coarse mask, the
  box around it and two text vectors prompt SAM. Beside the mask's loss, that of the coarse mask.
- **LISA style** ([arXiv 2308.00692](https://arxiv.org/abs/2308.00692)): the model learns a word [SEG], whose last
  hidden state prompts SAM. The request starts with a word that starts none of the questions of the exam.
  Beside the mask's loss, that of the words. *LoRA*: rank {rank} on queries and values, with word vectors and output
  layer; *full*: the whole language model.
- LISA style learns **from segmentation data only, as the others do**. LISA's authors mix in question answering: the
  row **⅓ questions** spends every third step on questions of the exam's kinds about the training scenes, and so
  sees a third fewer masks.

All: AdamW, mask loss 2 BCE + 4 dice, warm-up, cosine; vision tower, projector and SAM's image encoder frozen. The tiny
SAM was taught clicks only, so F-LMM's prompts for boxes and masks learn too.

## Rates

Three rates each, {tuning_steps} steps, gIoU on {validation_scenes} validation scenes; the best is taken (bold).
Beside it the share of right answers that it left, which had no say.

{rates_table}

## What this cannot show

- One tiny model in one synthetic world: the figures rank nothing at 7 B. No author's code or weights were used.
- Equal steps are not equal convergence. The shipped heads learned longer, and are better (see the README).
- One seed each: the intervals are about scenes, not about seeds.
- A rate is chosen by masks alone and after a few steps, few for LISA style, which starts slowly: where its three masks
  above differ by hundredths, the choice is near chance. A lower rate would cost LISA style fewer answers.
- LISA style's request holds "where is", as the prompts of the others do, after that word. That questions with
  these words suffer most is in part due to this; those without them are in the table of kinds.
- The questions are of kinds that the base was taught, in few words. What a fine-tuned 7 B model forgets is another
  matter.

Ran on {device}, threads: {threads}; {versions}.
"""


def main_table(report: dict[str, Any]) -> str:
    head = [
        *(kind.replace("_", " ") for kind in KINDS),
        "all − LENS lite",
        "answers right",
        "answers changed",
        "base's weights",
        "learned",
        "time",
    ]
    right = report["base"]["answers"]["all"]
    rows = []
    for name, found in report["methods"].items():
        giou = found["giou"]
        cells = [f"{giou[kind]['mean']:.3f}" for kind in KINDS[:-1]]
        cells.append(f"**{giou['all']['mean']:.3f}** [{giou['all']['low']:.3f}, {giou['all']['high']:.3f}]")
        cells.append("" if name == REFERENCE else _signed(found.get("giou_minus_lens_lite")))
        cells.append(f"{right:.1%} → **{found['answers']['all']:.1%}**")
        cells.append(f"{found['answers_changed']} of {report['base']['questions']}")
        cells.append(
            "identical"
            if found["same_weights"]
            else f"{found['changed_tensors']} of {report['base']['tensors']} tensors changed"
        )
        cells.append(f"{found['parameters']['all'] / 1e6:.2f}")
        cells.append(f"{found['step_time_ratio']:.2f}" if "step_time_ratio" in found else "")
        rows.append([LABELS[name], *cells])
    return _table(["gIoU, test", *head], rows)


def short_table(report: dict[str, Any]) -> str:
    """For people in a hurry."""
    right = report["base"]["answers"]["all"]
    rows = []
    for name, found in report["methods"].items():
        kept = f"{right:.1%} → {found['answers']['all']:.1%}"
        giou = (f"{found['giou'][kind]['mean']:.3f}" for kind in ("all", "held_out_fact"))
        rows.append([LABELS[name], *giou, kept, "frozen" if found["same_weights"] else "fine-tuned"])
    return _table(["", "gIoU, all", "gIoU, held-out facts", "questions answered right, before → after", "base"], rows)


def answers_table(report: dict[str, Any]) -> str:
    kinds = [*QUESTIONS, "where_within_one_cell"]
    graded = {"before": report["base"]["answers"]}
    graded |= {LABELS[name]: found["answers"] for name, found in report["methods"].items()}
    rows = [[label, *(f"{shares[kind]:.1%}" for kind in kinds)] for label, shares in graded.items()]
    return _table(["right", *(kind.replace("_", " ") for kind in kinds)], rows)


def rates_table(report: dict[str, Any]) -> str:
    rows = []
    for name, found in report["methods"].items():
        cells = []
        for rate, result in found["rates_tried"].items():
            bold = "**" if float(rate) == found["rate"] else ""
            cells.append(f"{bold}{float(rate):g}{bold}: {result['giou']:.3f}, {result['answers']:.1%}")
        rows.append([LABELS[name], *cells])
    return _table(["rate: gIoU, answers right", "first", "second", "third"], rows)


def findings(report: dict[str, Any]) -> list[str]:
    """Sentences that say what was found, whichever way it went."""
    lines, found = [], report["methods"]
    questions = report["base"]["questions"]
    for name in found:
        same, changed = found[name]["same_weights"], found[name]["answers_changed"]
        if name in FROZEN:
            kept = "byte-identical weights" if same else "CHANGED weights"
            lines.append(f"{LABELS[name]} leaves {kept} and {questions - changed} of {questions} answers as they were.")
        else:
            lost = report["base"]["answers"]["all"] - found[name]["answers"]["all"]
            word = found[name]["answers_with_segment"]
            lines.append(
                f"{LABELS[name]} changes {changed} of {questions} answers, {word} of them to ones with [SEG]; "
                f"the share of right ones falls by {100 * lost:.1f} points."
            )
    for name in found:
        if name == REFERENCE or REFERENCE not in found:
            continue
        gap = found[name]["giou_minus_lens_lite"]
        verdict = "better than" if gap["low"] > 0 else "worse than" if gap["high"] < 0 else "not to be told from"
        lines.append(f"{LABELS[name]}'s masks are {verdict} LENS lite's: {_signed(gap)} gIoU.")
    return lines


def draw(report: dict[str, Any]) -> Figure:
    """A row per method: its gIoU on all expressions, and the share of questions it answers right."""
    methods = report["methods"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    masks, answers = figure.subplots(1, 2, sharey=True)
    before = report["base"]["answers"]["all"]
    answers.axvline(before, color="0.5", linewidth=1, linestyle="--", zorder=0)
    for row, (name, found) in enumerate(methods.items()):
        color, marker = LOOKS[name]
        giou, right = found["giou"]["all"], found["answers"]["all"]
        reach = [[giou["mean"] - giou["low"]], [giou["high"] - giou["mean"]]]
        masks.errorbar(giou["mean"], row, xerr=reach, color=color, marker=marker, markersize=6, capsize=3)
        masks.annotate(f"{giou['mean']:.3f}", (giou["mean"], row), (0, 9), textcoords="offset points", ha="center")
        answers.plot([before, right], [row, row], color=color, linewidth=1, zorder=1)
        answers.plot(right, row, color=color, marker=marker, markersize=8, clip_on=False)
        # To the left of the line, or above what leads to it.
        place, ha = ((-10, -4), "right") if right > 0.5 else ((0, 9), "left")
        answers.annotate(f"{right:.1%}", (right, row), place, textcoords="offset points", ha=ha)
    masks.set_yticks(range(len(methods)), [LABELS[name] for name in methods])
    masks.margins(x=0.12)
    masks.set(ylim=(len(methods) - 0.5, -0.7), xlabel="gIoU, 95% interval")
    answers.set(xlim=(-0.03, 1.03), xlabel="questions answered right\nafter training (line: before)")
    answers.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes in (masks, answers):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle("Same scenes, same number of steps")
    return figure


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _signed(gap: dict[str, float] | None) -> str:
    return "" if gap is None else f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"


def _processor() -> str:
    """The name of the CPU, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
