"""A page of the best, median and worst prompts: one HTML file that needs no other."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.data.examples import Example, Examples
from lens_adapter.evaluation.metrics import Finding
from lens_adapter.pictures.overlays import heatmap_overlay, mask_overlay
from lens_adapter.results import Evaluation
from lens_adapter.writing import written_aside

COUNT = 6  # of each kind
SIDE = 300  # pixels of a picture on the page, at most
TRUTH_COLOR = 2  # bluish green; what was found is orange
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 1040px; padding: 0 1rem }}
h1 {{ font-size: 1.3rem }} h2 {{ font-size: 1.1rem; margin-top: 2.5rem }} p, small {{ color: #666 }}
figure {{ margin: 1.2rem 0 }} figcaption {{ margin-bottom: .4rem }} b {{ font-variant-numeric: tabular-nums }}
div {{ display: flex; gap: 12px; flex-wrap: wrap }} img {{ display: block; border-radius: 4px }}
</style></head><body>
<h1>{title}</h1><p>{heading}</p>
<p>Each row: what is named, what was found, the heatmap with its keypoints.</p>
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
        title="Best, median and worst", heading=escape(evaluation.heading()), sections="\n".join(sections)
    )
    with written_aside(file) as aside:
        aside.write_text(page, encoding="utf-8")


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
    image = example.image.copy()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    points = out.keypoints[0] * torch.tensor([image.width / example.image.width, image.height / example.image.height])
    style: dict[str, Any] = {"fade": 0.6, "fill": 0.3}
    truth = mask_overlay(image, torch.from_numpy(example.mask)[None], colors=[TRUTH_COLOR], **style)
    found = mask_overlay(image, out.masks, **style)
    heat = heatmap_overlay(image, out.heatmaps[0], points)
    facts = [f"IoU <b>{finding.judged(threshold).iou:.2f}</b>", f"score <b>{finding.score:.2f}</b>"]
    facts += ["empty mask"] if finding.refused(threshold) else []
    facts += [escape(text) for text in (finding.subset, example.id) if text]
    pictures = "".join(
        f'<img src="{_as_text(picture)}" alt="{name}" width="{picture.width}" height="{picture.height}">'
        for name, picture in (("truth", truth), ("found", found), ("heatmap", heat))
    )
    caption = f"{escape(example.prompt)}<br><small>{' · '.join(facts)}</small>"
    return f"<figure><figcaption>{caption}</figcaption><div>{pictures}</div></figure>"


def _as_text(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + b64encode(file.getvalue()).decode("ascii")
