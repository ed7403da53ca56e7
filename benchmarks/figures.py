"""What was measured, as pictures: how `segment` grows, where its time goes, and what the CPU does beside the models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from benchmarks.harness import Comparison, Row
from lens_adapter.pictures.colors import ink_on

# Okabe and Ito's colors, which color-blind people tell apart; a marker or a hatch beside each.
LOOKS = {"mirror": ("#0072B2", "o"), "lite": ("#D55E00", "s")}
PARTS = {
    "SAM's image encoder": "#0072B2",
    "base, as far as it is read": "#E69F00",
    "head": "#D55E00",
    "SAM's mask decoder": "#009E73",
    "masks at the image's size": "#56B4E9",
    "processor": "#CC79A7",
}
HOST = {
    "decode a JPEG": ("#E69F00", "o"),
    "SAM's preprocessing": ("#0072B2", "s"),
    "layout, a new size": ("#D55E00", "D"),
    "layout, the first size of all": ("#CC79A7", "v"),
    "a mask at the picture's size": ("#009E73", "^"),
}
SMALL = 0.06  # a share below this has no number written on it

Record = dict[str, Any]


def draw_growth(records: list[Record]) -> Figure | None:
    """Small multiples: a column per axis, time above and memory below; of the first record that has growth."""
    found = next((record["growth"] for record in records if "growth" in record), None)
    if found is None:
        return None
    comparisons = list(map(Comparison.read, found["comparisons"]))
    titles = [comparison.title.split(": ") for comparison in comparisons]
    axes_names = list(dict.fromkeys(axis for _, axis in titles))
    figure = Figure(figsize=(2.48 * len(axes_names), 4.48), layout="constrained")
    grid = figure.subplots(2, len(axes_names), squeeze=False)
    for (fusion, axis), comparison in zip(titles, comparisons, strict=True):
        row = 0 if comparison.quantity == "time" else 1
        _curve(grid[row][axes_names.index(axis)], fusion, comparison.rows)
    for column, axis in enumerate(axes_names):
        for row in range(2):
            _finish(grid[row][column])
        grid[1][column].set_xlabel(axis.replace(", ", ",\n"))
    for row, quantity in enumerate(("time", "peak memory")):
        grid[row][0].set_ylabel(quantity)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    record = found["record"]
    threads = f"{record['threads']} thread{'s' * (record['threads'] != 1)}"
    figure.suptitle(
        "segment, image embeddings cached, relative to the first of each curve: "
        f"base {record['base']} on {record['device']}, {threads}",
        fontsize="medium",
    )
    return figure


def _curve(axes: Axes, fusion: str, rows: list[Row]) -> None:
    color, marker = LOOKS[fusion]
    at, ratios = [row.at for row in rows], [row.ratio for row in rows]
    axes.fill_between(at, [row.low for row in rows], [row.high for row in rows], color=color, alpha=0.2, lw=0)
    axes.plot(at, ratios, color=color, marker=marker, markersize=5, label=f"{fusion} head")
    if not any(line.get_linestyle() == "--" for line in axes.lines):
        axes.plot(at, [place / at[0] for place in at], color="0.5", ls="--", lw=1, label="in proportion", zorder=0)


def _finish(axes: Axes) -> None:
    at = axes.lines[0].get_xdata()
    axes.set_xscale("log")
    axes.set_yscale("log")
    top = max(max(line.get_ydata()) for line in axes.lines if line.get_linestyle() != "--")
    axes.set_ylim(0.8, max(2.0, 1.6 * top))
    # Of two that would touch, the first goes without its number.
    close = [after / place < 2 for place, after in pairwise(at)] + [False]
    axes.set_xticks(list(at), ["" if near else f"{place:g}" for place, near in zip(at, close, strict=True)])
    axes.minorticks_off()
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def draw_profile(records: list[Record]) -> Figure | None:
    """Bars of shares for every base that was profiled; beside them, SAM's image encoders against vit_b."""
    profiled = [record["profile"] for record in records if "profile" in record]
    if not profiled:
        return None
    encoders = next(
        (Comparison.read(record["encoders"]["comparisons"][0]) for record in records if "encoders" in record), None
    )
    bars = [
        (f"{found['record']['base']}, {comparison.title.split(', ')[1]}", comparison.rows[1:])
        for found in profiled
        for comparison in map(Comparison.read, found["comparisons"])
    ]
    figure = Figure(figsize=(8.8, 1.52 + 0.4 * len(bars)), layout="constrained")
    shares, sizes = figure.subplots(1, 2, width_ratios=[3, 1])
    for place, (_, rows) in enumerate(bars):
        start, together = 0.0, sum(row.ratio for row in rows)  # each was timed alone: not quite the time of the whole
        for row in rows:
            share = row.ratio / together
            label = row.name if place == 0 else None
            shares.barh(place, share, left=start, color=PARTS[row.name], edgecolor="white", label=label)
            if share >= SMALL:
                ink = [level / 255 for level in ink_on([round(255 * level) for level in to_rgb(PARTS[row.name])])]
                shares.text(start + share / 2, place, f"{share:.0%}", ha="center", va="center", color=ink)
            start += share
    shares.set_yticks(range(len(bars)), [name for name, _ in bars])
    shares.invert_yaxis()
    shares.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    shares.set_xlim(0, 1)
    shares.set_xlabel("share of the time of all parts of segment, each timed alone:\none new image, one prompt")
    figure.legend(*shares.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    _draw_encoders(sizes, encoders)
    for axes in (shares, sizes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_encoders(axes: Axes, comparison: Comparison | None) -> None:
    if comparison is None:
        axes.set_axis_off()
        return
    rows = comparison.rows
    axes.barh(range(len(rows)), [row.ratio for row in rows], color=PARTS["SAM's image encoder"])
    for place, row in enumerate(rows):
        axes.text(row.ratio, place, f" {row.ratio:.2g}×", va="center")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(row.ratio for row in rows))
    axes.set_xticks([0, 1, 2, 3], ["0", "1×", "2×", "3×"])
    axes.set_xlabel("SAM's encoder:\ntime, vit_b = 1")


def draw_host(records: list[Record]) -> Figure | None:
    """A panel per processor: what the CPU does for a picture, against the processor's work, by megapixels."""
    found = next((record["host"] for record in records if "host" in record), None)
    if found is None:
        return None
    comparisons = list(map(Comparison.read, found["comparisons"]))
    kinds = list(dict.fromkeys(comparison.title.split(": ")[0] for comparison in comparisons))
    figure = Figure(figsize=(3.2 * len(kinds), 3.8), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        rows = [
            row for comparison in comparisons if comparison.title.startswith(f"{kind}: ") for row in comparison.rows
        ]
        for name, (color, marker) in HOST.items():
            own = [row for row in rows if row.name == name]
            axes.plot([row.at for row in own], [row.ratio for row in own], color=color, marker=marker, label=name)
        at = sorted({row.at for row in rows})
        axes.axhline(1, color="0.5", ls="--", lw=1)
        axes.set(xscale="log", yscale="log", title=kind, xlabel="megapixels")
        axes.set_xticks(at, [f"{place:g}" for place in at])
        axes.minorticks_off()
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("time relative to the processor's")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(HOST), frameon=False, fontsize=9)
    return figure
