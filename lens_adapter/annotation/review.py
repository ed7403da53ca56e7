"""A page for the eye: found masks, the least sure first, what was just not found, and errors. One file, no other."""

from __future__ import annotations

import heapq
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter.annotation.rows import Row, read_rows
from lens_adapter.annotation.tasks import Task, opened
from lens_adapter.pictures.overlays import mask_overlay
from lens_adapter.writing import write_text

_SIDE = 480  # pixels of a picture on the page, at most
_BINS = 20  # of the scores
_COLORS = {"found": 0, "below": 3}  # of masks: orange, reddish purple
_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #20242a; --soft: #68707c; --line: #dfe2e6;
  --found: #d08600; --below: #b9638f }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --card: #212429; --ink: #e8eaed; --soft: #9aa3ae;
  --line: #353a41; --found: #f0ad2d; --below: #d98cb5 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 1280px; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.35rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .2rem }
p { color: var(--soft); margin: .2rem 0; overflow-wrap: anywhere }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr));
  margin-top: 1rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
figure img, .none { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--page) }
.none { padding: 1rem; color: var(--soft); overflow: auto }
figcaption { padding: .6rem .8rem .7rem; overflow-wrap: anywhere }
figcaption b { display: block } small { color: var(--soft) }
.score { display: flex; align-items: center; gap: .5rem; font-variant-numeric: tabular-nums; margin: .25rem 0 }
.score i { flex: 1; height: 6px; border-radius: 3px; background: var(--line); overflow: hidden }
.score i i { display: block; background: var(--found) } .below .score i i { background: var(--below) }
.scores { display: flex; align-items: flex-end; gap: 2px; height: 90px; max-width: 480px; margin-top: 1rem }
.scores i { flex: 1; min-height: 1px; background: var(--found); border-radius: 2px 2px 0 0 }
.scores i.below { background: var(--below) }
.ends { display: flex; justify-content: space-between; max-width: 480px; color: var(--soft); font-size: 13px }
.table { overflow-x: auto } table { border-collapse: collapse; margin-top: .8rem; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; min-width: 7rem }
td:last-child { min-width: 15rem }
@media (max-width: 640px) { th { display: none } td { display: block; border: 0; padding: 0 }
  td:first-child { border-top: 1px solid var(--line); padding-top: .5rem; font-weight: 600 } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Annotations of {data}</title><style>{style}</style></head><body>
<h1>Annotations of {data}</h1>
<p>{counts}</p><p>{made_with}</p>
<div class="scores" role="img" aria-label="How many prompts have which score">{bars}</div>
<div class="ends"><span>score 0</span><span>score threshold {threshold:g}</span><span>1</span></div>
{sections}
</body></html>
"""


@dataclass
class _Choice:
    """What is shown, chosen in one passage over all rows.

    Attributes:
        found: (score, shard, row) of the least sure.
        below: of those just not found.
        errors: the first rows with one.
        counts: rows that are "found", "not found" or "with an error".
        bins: rows per span of scores: found, and not.
    """

    found: list[tuple[float, int, int]] = field(default_factory=list)
    below: list[tuple[float, int, int]] = field(default_factory=list)
    errors: list[Row] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"found": 0, "not found": 0, "with an error": 0})
    bins: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in range(_BINS)])


def write_preview(
    file: Path,
    shards: Sequence[Path],
    plan: Mapping[str, Any],
    tasks_of_shard: Callable[[int], Iterable[Task]],
    count: int,
) -> None:
    """Write the page.

    Args:
        file: where it goes.
        shards: all of them.
        plan: what stands in them.
        tasks_of_shard: number of a shard -> the tasks that its rows are of, in their order.
        count: masks of each kind, and errors.
    """
    choice = _choose(shards, count)
    wanted = {place[1:] for place in choice.found + choice.below}
    cards = dict(_cards(shards, wanted, tasks_of_shard))
    sections = [
        _section("Found, the least sure first", "", [cards[place[1:]] for place in choice.found]),
        _section(
            "Just not found",
            "Their scores are nearest below the threshold; a lower one would find them.",
            [cards[place[1:]] for place in choice.below],
        ),
        _error_section(choice),
    ]
    names = ("base", "base_revision", "head", "segmenter", "mask_threshold", "score_threshold")
    made_with = " · ".join(f"{name.replace('_', ' ')} {plan[name]}" for name in names if plan.get(name) is not None)
    tallest = max(1, *(sum(pair) for pair in choice.bins))
    bars = "".join(
        f'<i class="{"found" if found >= below else "below"}" style="height:{100 * (found + below) / tallest:.1f}%" '
        f'title="{k / _BINS:.2f} to {(k + 1) / _BINS:.2f}: {found + below}"></i>'
        for k, (found, below) in enumerate(choice.bins)
    )
    page = _PAGE.format(
        data=escape(str(plan["data"])),
        style=_STYLE,
        counts=escape(", ".join(f"{number} rows {name}" for name, number in choice.counts.items())),
        made_with=escape(made_with),
        bars=bars,
        threshold=plan["score_threshold"],
        sections="\n".join(filter(None, sections)),
    )
    write_text(file, page)


def _choose(shards: Sequence[Path], count: int) -> _Choice:
    choice = _Choice()
    for number, shard in enumerate(shards):
        for place, row in enumerate(read_rows([shard], ["image", "prompt", "found", "score", "error"])):
            if row["error"] is not None:
                choice.counts["with an error"] += 1
                choice.errors += [row] if len(choice.errors) < count else []
                continue
            found = row["found"]
            choice.counts["found" if found else "not found"] += 1
            choice.bins[min(int(row["score"] * _BINS), _BINS - 1)][0 if found else 1] += 1
            # A heap whose top is the first to go.
            heap, worth = (choice.found, -row["score"]) if found else (choice.below, row["score"])
            entry = (worth, -number, -place)
            if len(heap) < count:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    for heap in (choice.found, choice.below):
        heap[:] = [(worth, -number, -place) for worth, number, place in sorted(heap, reverse=True)]
    return choice


def _cards(
    shards: Sequence[Path], wanted: set[tuple[int, int]], tasks_of_shard: Callable[[int], Iterable[Task]]
) -> Iterable[tuple[tuple[int, int], str]]:
    """((shard, row), card) of the wanted rows."""
    for number, group in groupby(sorted(wanted), key=lambda place: place[0]):
        places, first = {place for _, place in group}, 0
        rows = enumerate(read_rows([shards[number]]))
        chosen = {place: row for place, row in rows if place in places}
        for task in tasks_of_shard(number):
            mine = range(first, first + max(1, len(task.prompts)))
            first = mine.stop
            if inside := [place for place in mine if place in places]:
                found = opened(task)
                picture = found if isinstance(found, str) else found[0]
                yield from (((number, place), _card(chosen[place], picture)) for place in inside)


def _card(row: Row, picture: Image.Image | str) -> str:
    kind = "found" if row["found"] else "below"
    share = row["area"] / max(1, row["width"] * row["height"])
    shown = (
        f'<div class="none">{escape(picture)}</div>'
        if isinstance(picture, str)
        else f'<img src="{_drawn(row, picture, _COLORS[kind])}" alt="{escape(row["prompt"])}">'
    )
    bar = f'<i><i style="width:{100 * row["score"]:.0f}%;height:100%"></i></i>'
    return (
        f'<figure class="{kind}">{shown}<figcaption><b>{escape(row["prompt"])}</b>'
        f'<span class="score">{row["score"]:.2f}{bar}</span>'
        f"<small>{escape(row['image'])} · {share:.1%} of the picture</small></figcaption></figure>"
    )


def _drawn(row: Row, picture: Image.Image, color: int) -> str:
    """The picture with its mask, small, as a data URI."""
    mask = torch.from_numpy(coco.decode({**row["rle"], "counts": row["rle"]["counts"].encode()})).bool()
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    scale = torch.tensor([small.width / picture.width, small.height / picture.height])
    points = torch.tensor(row["keypoints"]).reshape(-1, 2) * scale
    drawn = mask_overlay(small, mask[None], [points], colors=[color], fade=0.35, fill=0.35)
    file = BytesIO()
    drawn.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + b64encode(file.getvalue()).decode("ascii")


def _section(title: str, about: str, cards: Sequence[str]) -> str:
    if not cards:
        return ""
    return f'<h2>{title}</h2>{f"<p>{about}</p>" if about else ""}<div class="cards">{"".join(cards)}</div>'


def _error_section(choice: _Choice) -> str:
    if not choice.errors:
        return ""
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(str(row[key] or ''))}</td>" for key in ("image", "prompt", "error")) + "</tr>"
        for row in choice.errors
    )
    total = choice.counts["with an error"]
    shown = f"The first {len(choice.errors)} of {total}." if total > len(choice.errors) else ""
    head = "<tr><th>picture</th><th>prompt</th><th>error</th></tr>"
    return f'<h2>Errors</h2><p>{shown}</p><div class="table"><table>{head}{lines}</table></div>'
