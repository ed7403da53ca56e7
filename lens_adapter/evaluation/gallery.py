"""A page of the best, median and worst prompts: one HTML file that needs no other."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.data.examples import Example, Examples
from lens_adapter.evaluation.metrics import Finding
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.samples import COLORS, HEAT, Sample
from lens_adapter.results import Evaluation, metric_name
from lens_adapter.writing import write_text

COUNT = 6  # of each kind
SIDE = 300  # pixels of a picture on the page, at most
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 1040px; padding: 0 1rem }}
h1 {{ font-size: 1.3rem }} h2 {{ font-size: 1.1rem; margin-top: 2.5rem }} p, small {{ color: #666 }}
figure {{ margin: 1.2rem 0 }} figcaption {{ margin-bottom: .4rem }} b {{ font-variant-numeric: tabular-nums }}
div {{ display: flex; gap: 12px; flex-wrap: wrap }} img {{ display: block; border-radius: 4px }}
div small {{ display: block; margin-bottom: .2rem }} div > span {{ width: {side}px }}
i {{ display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .4em }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
table {{ font-size: 13px }} td, th {{ text-align: right; white-space: nowrap; padding: .2rem .8rem }}
td, th {{ border-bottom: 1px solid #ddd }}
th:first-child {{ text-align: left }}
section {{ overflow-x: auto }}
</style></head><body>
<h1>{title}</h1><p>{heading}</p>
<section>{table}</section>
{sections}
</body></html>
"""


def save_gallery(
    file: str | Path,
    evaluation: Evaluation,
    adapter: LensAdapter,
    examples: Examples | Sequence[Example],
    count: int = COUNT,
) -> None:
    """Write the page. The prompts it shows are segmented again, as an evaluation keeps no masks.

    Args:
        evaluation: what `evaluate` returned.
        adapter: what it was called with.
        examples: likewise.
        count: prompts of each kind.
    """
    sections = []
    for title, findings in choose(evaluation.findings, evaluation.score_threshold or 0.0, count).items():
        rows = [_row(finding, examples[finding.index], adapter, evaluation) for finding in findings]
        sections.append(f"<h2>{title}</h2>\n" + "\n".join(rows))
    page = _PAGE.format(
        title="Best, median and worst",
        heading=escape(evaluation.heading()),
        table=_table(evaluation),
        sections="\n".join(sections),
        side=SIDE,
    )
    write_text(file, page)


def choose(findings: Sequence[Finding], score_threshold: float, count: int) -> dict[str, list[Finding]]:
    """Title -> findings to show: prompts with a target, by IoU, none of them twice; of equal ones the surest first."""

    def iou(finding: Finding) -> float:
        return finding.judged(score_threshold).iou

    ranked = sorted((f for f in findings if f.has_target), key=lambda f: (-iou(f), -f.score))
    best = ranked[:count]
    worst = sorted(ranked[count:], key=lambda f: (iou(f), -f.score))[:count]
    shown = {f.index for f in best + worst}
    others = [(abs(k - len(ranked) / 2), k) for k, f in enumerate(ranked) if f.index not in shown]
    median = [ranked[k] for k in sorted(k for _, k in sorted(others)[:count])]
    alarms = [f for f in findings if not f.has_target and not f.refused(score_threshold)]
    chosen = {
        "Best": best,
        "Median": median,
        "Worst": worst,
        "Named although absent": sorted(alarms, key=lambda f: -f.score)[:count],
    }
    return {title: some for title, some in chosen.items() if some}


def _row(finding: Finding, example: Example, adapter: LensAdapter, evaluation: Evaluation) -> str:
    threshold = evaluation.score_threshold or 0.0
    out = adapter.segment(
        example.image, example.prompt, mask_threshold=evaluation.mask_threshold, score_threshold=threshold
    )
    sample = Sample(
        image=example.image,
        prompt=example.prompt,
        truth=torch.from_numpy(example.mask),
        mask=out.masks[0],
        heatmap=out.heatmaps[0],
        keypoints=out.keypoints[0],
    )
    facts = [f"IoU <b>{finding.judged(threshold).iou:.2f}</b>", f"score <b>{finding.score:.2f}</b>"]
    facts += ["empty mask"] if finding.refused(threshold) else []
    facts += [escape(text) for text in (finding.subset, example.id) if text]
    pictures = "".join(
        f"<span><small>{_swatch(name)}{name}</small>"
        f'<img src="{_as_text(picture)}" alt="{name}" width="{picture.width}" height="{picture.height}"></span>'
        for name, picture in sample.pictures(SIDE).items()
    )
    caption = f"{escape(example.prompt)}<br><small>{' · '.join(facts)}</small>"
    return f"<figure><figcaption>{caption}</figcaption><div>{pictures}</div></figure>"


def _swatch(name: str) -> str:
    return f'<i style="background: rgb{color_of(COLORS[name])}"></i>' if name != HEAT else ""


def _table(evaluation: Evaluation) -> str:
    """Every figure with its interval, a row per metric and a column per subset."""
    subsets = list(evaluation.figures)
    metrics = dict.fromkeys(metric for row in evaluation.figures.values() for metric in row)
    rows = ["".join(f"<th>{escape(subset)}</th>" for subset in ["", *subsets])]
    for metric in metrics:
        cells = "".join(f"<td>{evaluation.figures[subset].get(metric, '')}</td>" for subset in subsets)
        rows.append(f"<th>{escape(metric_name(metric))}</th>{cells}")
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _as_text(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + b64encode(file.getvalue()).decode("ascii")
