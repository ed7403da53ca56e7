"""What a notebook shows: HTML that loads nothing from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image
from torch import Tensor

from lens_adapter.pictures.colors import color_of, ink_on
from lens_adapter.pictures.overlays import labelled_overlay

# Pixels of the longer side of a picture: larger ones are made so small, smaller ones up to so large.
MOST, LEAST = 640, 320
_CELL = 'style="text-align: left; padding: 2px 16px 2px 0"'


def results_html(
    image: Image.Image | None,
    masks: Tensor,
    keypoints: Sequence[Tensor],
    prompts: Sequence[str],
    scores: Sequence[float],
    found: Sequence[bool],
    parts: Sequence[Tensor] | None = None,
    unknown_words: Sequence[Sequence[str]] = (),
) -> str:
    """The overlay, drawn at the size at which it is shown, and a table of all prompts.

    The table's text has the colors of the page around it, light or dark.

    Args:
        image: RGB; None: the table alone.
        masks: as for `labelled_overlay`, like all that follow.
        unknown_words: of each prompt, those that the model has no token for; default: none.
    """
    columns = zip(masks, keypoints, prompts, scores, found, unknown_words or [()] * len(prompts), strict=True)
    rows = "".join(_html_row(index, *row) for index, row in enumerate(columns))
    heads = "".join(f"<th {_CELL}>{title}</th>" for title in ("", "prompt", "score", "area", "keypoints (x, y)"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    if image is None:
        return table
    shown = _at_shown_size(image)
    points = [each * (shown.width / image.width) for each in keypoints]
    overlay = labelled_overlay(
        shown, masks, points, prompts, scores, found, [not words for words in unknown_words] or None, parts=parts
    )
    return f"<div>{_html_picture(overlay)}{table}</div>"


def grounded_html(text: str, spans: Sequence[tuple[tuple[int, int] | None, int]], results: str) -> str:
    """A text whose names are marked in the colors of their masks, above the results.

    Args:
        text: as it is, not HTML.
        spans: per name its place in the text, or None, and the index of its prompt; where two overlap, the first is
            marked.
        results: HTML of the prompts, as from `results_html`.
    """
    return f'<div><p style="white-space: pre-wrap">{marked_html(text, spans)}</p>{results}</div>'


def marked_html(text: str, spans: Sequence[tuple[tuple[int, int] | None, int]]) -> str:
    """A text, escaped, with its names marked; arguments as for `grounded_html`."""
    marked, done = [], 0
    for (start, end), index in sorted((span, index) for span, index in spans if span is not None):
        if start >= done:
            background, ink = color_of(index), ink_on(color_of(index))
            style = f"background: rgb{background}; color: rgb{ink}; border-radius: 3px; padding: 0 3px"
            marked.append(f'{escape(text[done:start])}<mark style="{style}">{escape(text[start:end])}</mark>')
            done = end
    return "".join(marked) + escape(text[done:])


def _html_picture(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f'<img alt="masks" src="data:image/png;base64,{b64encode(buffer.getvalue()).decode("ascii")}"/>'


def _at_shown_size(image: Image.Image) -> Image.Image:
    """Small pictures are enlarged pixel by pixel, as they are."""
    longer = max(image.size)
    if longer <= MOST:
        times = max(1, LEAST // longer)
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    zoom = MOST / longer
    return image.resize((max(1, round(image.width * zoom)), max(1, round(image.height * zoom))))


def _html_row(
    index: int, mask: Tensor, keypoints: Tensor, prompt: str, score: float, found: bool, unknown: Sequence[str]
) -> str:
    points = keypoints.tolist()
    area = f"{int(mask.sum()):,} px ({mask.float().mean().item():.1%})" if mask.any() else "empty"
    named = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in points[:3]) or "none"
    more = f" and {len(points) - 3} more" if len(points) > 3 else ""
    box = (
        f"display: inline-block; width: 0.9em; height: 0.9em; border: 1px solid #888; background: rgb{color_of(index)}"
    )
    swatch = f'<span style="{box}"></span>'
    judged = area if found else "" if unknown else "absent"
    doubt = f"not understood: {escape(', '.join(unknown))}" if unknown else ""
    cells = (swatch, escape(prompt), f"{score:.2f}", "; ".join(filter(None, (judged, doubt))), named + more)
    return "<tr>" + "".join(f"<td {_CELL}>{cell}</td>" for cell in cells) + "</tr>"
