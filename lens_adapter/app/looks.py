"""How the page looks: the words at its head, the table of results, colors, spacing. Nothing comes from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from lens_adapter import builtin
from lens_adapter.adapter import LensAdapter
from lens_adapter.app.findings import ALL, HEATMAP, KEYPOINTS, PageResult, Turn
from lens_adapter.app.kept import Kept
from lens_adapter.app.teaching import Taught
from lens_adapter.errors import LensError
from lens_adapter.fitting import LEAST_IMAGES
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.notebook import marked_html
from lens_adapter.sam.families import family_title

TITLE = "Point at it · lens_adapter"
ONE_LINE = (
    "Type what to find in a picture. A frozen vision-language model points at it through a small LENS head; none of "
    "its weights is touched, and it chats as before."
)
SMALL_WORLD = "It knows 64 everyday things, drawn: on photographs its masks and answers mean little."

FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
THEME = gr.themes.Default(
    primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO
).set(
    # darker than gradio's: small text has to be read, too
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
)

CSS = """
.gradio-container { max-width: 1500px !important; }
.lens-head h1 { font-size: 1.5rem; font-weight: 700; margin: 0 0 .2rem; }
.lens-head p { margin: 0 0 .15rem; line-height: 1.45; }
.lens-head .quiet, .lens-note { color: var(--body-text-color-subdued); font-size: .875rem; }
.lens-step { font-weight: 600; }
.lens-bare .html-container { padding: 0; }
.lens-talk { display: flex; flex-direction: column-reverse; max-height: 22rem; min-height: 8rem;
    overflow-y: auto; padding: .75rem; border: 1px solid var(--border-color-primary);
    border-radius: var(--block-radius); }
.lens-talk > div { display: flex; flex-direction: column; gap: .5rem; margin-bottom: auto; }
.lens-talk p { max-width: 90%; margin: 0; padding: .4rem .7rem; border-radius: 8px; white-space: pre-wrap;
    overflow-wrap: anywhere; line-height: 1.45; border: 1px solid var(--border-color-primary); }
.lens-talk .asked { align-self: flex-end; background: var(--color-accent-soft); }
.lens-talk .answered { align-self: flex-start; background: var(--background-fill-secondary); }
.lens-talk .lens-note { border: 0; padding: 0 .7rem; }
:is(.lens-examples, .lens-pictures, .lens-kept) .grid-wrap { min-height: 0; max-height: none; overflow: visible;
    padding: 0; }
:is(.lens-examples, .lens-pictures) .grid-container { grid-template-columns: repeat(6, 1fr); grid-auto-rows: auto;
    gap: .4rem; }
:is(.lens-examples, .lens-pictures) .thumbnail-item { aspect-ratio: 1; width: 100%; height: auto; min-width: 0; }
.lens-picture img { max-height: min(22rem, 30vh); }
.lens-canvas img { max-height: 28rem; }
.lens-result img { max-height: min(28rem, 45vh); } /* what is below it has to be seen with it */
.lens-canvas img { cursor: crosshair; }
.lens-pictures { max-height: 16rem; overflow-y: auto !important; }
.lens-kept .caption-label { left: 0; right: 0; max-width: 100%; border-radius: 0; padding: .1rem .4rem; }
.lens-kept .thumbnail-item img { position: absolute; top: 0; height: calc(100% - 1.4rem); object-fit: contain; }
.lens-kept .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.lens-kept { max-height: 24rem; overflow-y: auto !important; }
.lens-refused { border-left: 4px solid #d55e00; padding: .1rem 0 .1rem .75rem; line-height: 1.45; }
.lens-refused b { display: block; }
.lens-table { overflow-x: auto; }
.lens-table table { width: 100%; border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
.lens-table th { text-align: left; font-weight: 600; font-size: .85rem; color: var(--body-text-color-subdued); }
.lens-table th, .lens-table td { padding: .35rem .5rem .35rem 0; border-bottom: 1px solid var(--border-color-primary); }
.lens-table .number { text-align: right; padding-right: 0; padding-left: .5rem; }
.lens-table .number { white-space: nowrap; }
.lens-table td:first-child { min-width: 6.5rem; }
.lens-table .swatch { float: left; width: .85em; height: .85em; border-radius: 3px; margin: .3em .55em 0 0;
    box-shadow: 0 0 0 1px rgb(128 128 128 / 50%); }
.lens-table .prompt { display: block; overflow: hidden; overflow-wrap: anywhere; }
.lens-table .unknown { display: block; margin-left: 1.65em; font-size: .85rem; color: var(--body-text-color-subdued);
    overflow-wrap: anywhere; }
.lens-table .absent .swatch { height: 2px; margin-top: .75em; border-radius: 0; box-shadow: none;
    background: var(--body-text-color-subdued) !important; }
.lens-table .absent td { color: var(--body-text-color-subdued); }
.lens-heat { display: inline-block; width: 5rem; height: .6rem; border-radius: 3px; vertical-align: middle;
    background: linear-gradient(90deg, #000004, #3b0f70, #8c2981, #de4968, #fe9f6d, #fcfdbf);
    box-shadow: 0 0 0 1px rgb(128 128 128 / 50%); }
"""  # .lens-heat: matplotlib's magma at fifths

# Ctrl+Enter (on a Mac Command+Enter) in a text presses the button that belongs to it.
SCRIPT = """() => document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const button = event.target.closest(".lens-asks")?.querySelector(".lens-runs, .submit-button");
    if (button) { event.preventDefault(); button.click(); }
})"""
# Where a result and its table are out of sight, they are brought into it, once the picture has its size.
SEEN = """async () => {
    await new Promise((resolve) => setTimeout(resolve, 100));
    await document.querySelector(".lens-result img")?.decode().catch(() => {});
    const heading = document.querySelector(".lens-seen"), table = document.querySelector(".lens-table");
    const below = (table ?? heading).getBoundingClientRect().bottom > innerHeight;
    if (below || heading.getBoundingClientRect().top < 0) heading.scrollIntoView();
}"""

SILENCE = "Its answers are its own: the head has no part in them."
FIRST = (
    '<p class="lens-note">Chooses attention heads of the frozen model on what was kept, and judges them on pictures '
    "that had no part in it. It takes seconds.</p>"
)
TOKEN = '<p class="lens-note">With the token of this machine: HF_TOKEN, or that of hf auth login.</p>'
ENOUGH = 20  # prompts; fewer make rough figures


def head(adapter: LensAdapter) -> str:
    """What the page is, in one line, and which models are at work."""
    base = adapter.base.anatomy
    is_builtin = Path(base.config.name_or_path or "") == builtin.VLM
    frozen = "the built-in tiny LLaVA" if is_builtin else _named(base.config.name_or_path) or base.architecture
    facts = (
        f"Frozen model: {frozen} ({_millions(base.model.parameters())}) · "
        f"LENS head: {_head_name(adapter)} · SAM: {_sam_name(adapter)}."
    )
    quiet = f"{facts} {SMALL_WORLD}" if is_builtin else facts
    return f'<div class="lens-head"><h1>{TITLE}</h1><p>{escape(ONE_LINE)}</p><p class="quiet">{escape(quiet)}</p></div>'


def _head_name(adapter: LensAdapter) -> str:
    config, name = adapter.config, adapter.config.name_or_path
    if config.fusion == "readout" and not config.readout:
        return "none yet; teach one"
    origin = "the built-in one" if _is_builtin_head(adapter) else _named(name)
    facts = f"{config.fusion}, {_millions([*adapter.head.parameters(), *adapter.head.buffers()])}"
    return f"{origin} ({facts})" if origin else facts


def _sam_name(adapter: LensAdapter) -> str:
    sam = adapter.config.sam
    if sam["variant"] == "builtin" or _is_builtin_head(adapter):
        return f"the built-in tiny one ({family_title(sam)})"
    name = sam["variant"] if sam["variant"] != "custom" else _named(sam["weights"]) or "the head's own"
    return f"{name} ({family_title(sam)})"


def _is_builtin_head(adapter: LensAdapter) -> bool:
    return Path(adapter.config.name_or_path or "") in builtin.HEADS.values()


def _named(source: str | None) -> str | None:
    """A repository as it is called; of a folder its last name: where the server keeps it is nobody's business."""
    return source if source is None or not Path(source).exists() else Path(source).resolve().name


def step(text: str) -> str:
    """The heading of a column."""
    return f'<div class="lens-step">{escape(text)}</div>'


def legend(result: PageResult, layers: Collection[str], prompt: int = ALL) -> str:
    """What those of the drawn layers mean that do not speak for themselves; "" where there are none."""
    shown = [result.records[k] for k in result.shown(prompt)]
    words = []
    if HEATMAP in layers and shown:
        scale = '<span class="lens-heat" role="img" aria-label="black over purple and orange to pale yellow"></span>'
        words.append(f"Heat 0 {scale} 1")
    if KEYPOINTS in layers and any(record["keypoints"] for record in shown):
        words.append("rings: keypoints")
    return f'<p class="lens-note">{" &nbsp;·&nbsp; ".join(words)}</p>' if words else ""


def table(result: PageResult) -> str:
    """A row per prompt: whether it was found or understood, its score, the area of its mask."""
    height, width = result.size
    rows = "".join(
        f'<tr class="{"present" if record["found"] else "absent"}">'
        f'<td><span class="swatch" style="background: rgb{color_of(index)}"></span>'
        f'<span class="prompt">{escape(record["prompt"])}</span>{_unknown(words)}</td>'
        f'<td class="judged">{_judged(record, words)}</td>'
        f'<td class="number">{record["score"]:.2f}</td>'
        f'<td class="number">{record["area"] / (height * width):.1%}</td></tr>'
        for index, (record, words) in enumerate(zip(result.records, result.unknown, strict=True))
    )
    columns = '<th>Prompt</th><th>Judged</th><th class="number">Score</th><th class="number">Area</th>'
    note = f"{width} x {height} pixels. A score is the head's own estimate of its mask's quality."
    if not result.shown():
        note += f" No score reaches {result.threshold:.3f}: a lower threshold shows what came nearest."
    return (
        f'<div class="lens-table"><table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="lens-note">{escape(note)}</p>'
    )


def _judged(record: dict[str, Any], unknown: Sequence[str]) -> str:
    if unknown:
        return "? not understood"
    return "✓ found" if record["found"] else "✗ not in the picture"


def _unknown(words: Sequence[str]) -> str:
    return f'<span class="unknown">unknown: {escape(", ".join(words))}</span>' if words else ""


def conversation(turns: Sequence[Turn]) -> str:
    """What was asked and answered, letter by letter: nothing in it is markup."""
    said = "".join(
        f'<p class="asked">{escape(turn.question)}</p><p class="answered">{marked_html(turn.answer, turn.names)}</p>'
        + (f'<p class="lens-note">{escape(turn.note)}</p>' if turn.note else "")
        for turn in turns
    )
    said = said or f'<p class="lens-note">{SILENCE}</p>'
    return f'<div class="lens-talk" role="log" aria-label="Chat" tabindex="0"><div>{said}</div></div>'


def kept(everything: list[Kept], folder: Path, shown: int) -> str:
    """How many examples there are and where, above the strip of them."""
    pictures = len({one.record.image_id for one in everything})
    if not everything:
        words = f"Nothing yet. What you keep is written to {folder} at once."
    else:
        words = f"{_count(len(everything), 'example')} about {_count(pictures, 'picture')}, in {folder}."
        if len(everything) < ENOUGH or pictures < LEAST_IMAGES:
            words += f" A fit takes {LEAST_IMAGES} pictures at least; {ENOUGH} examples are a good start."
        if shown < len(everything):
            words += f" The newest {shown} are shown."
    return f'<p class="lens-note">{escape(words)}</p>'


def fit_table(taught: Taught) -> str:
    """What a fit found: figures on pictures that the reading had not seen."""
    report = taught.report
    rows = [
        (f"Its first click hits the thing (a random one: {report.chance:.1%})", f"{report.pointing:.1%}"),
        ("Present things accepted", f"{report.present_accepted:.1%}"),
        (
            "Absent things refused",
            "not known" if report.absent_refused is None else f"{report.absent_refused:.1%}",
        ),
    ]
    body = "".join(f'<tr><td>{escape(what)}</td><td class="number">{value}</td></tr>' for what, value in rows)
    note = (
        f"Fitted on {_count(report.examples, 'prompt')} about {_count(report.images, 'picture')} ({report.data}): "
        f"{len(report.heads)} attention heads."
    )
    if taught.drawn_scenes:
        note += " Whether that carries over to photographs is not known: try it."
    elif report.examples < ENOUGH:
        note += " With so few the figures are rough: keep more, and fit again."
    return (
        '<div class="lens-table"><table><thead><tr><th>On pictures it had not seen</th><th></th></tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="lens-note">{escape(note)}</p>'
    )


def refusal(error: LensError, earlier: bool) -> str:
    """Why there is no new head, and whether an earlier one is still there."""
    words = f"{error} The head below is the one fitted before." if earlier else str(error)
    return f'<div class="lens-refused"><b>Not fitted</b>{escape(words)}</div>'


def pushed(address: str) -> str:
    """Where a head was published."""
    link = escape(address, quote=True)
    return f'<p class="lens-note">Published: <a href="{link}" target="_blank" rel="noopener">{link}</a></p>'


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _millions(tensors: Iterable[torch.Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors) / 1e6:,.1f} M parameters"
