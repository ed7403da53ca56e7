"""Pictures of what was found: an image with its masks, a heatmap, a page of many."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from math import ceil, sqrt
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lens_adapter.errors import LensError
from lens_adapter.output import LensOutput
from lens_adapter.pictures.drawing import (
    GREY,
    HAIRLINE,
    INK,
    WHITE,
    Box,
    Canvas,
    Color,
    fit,
    font,
    framed,
    ink_on,
    outlines,
    scaled,
    stencil,
    wrap,
)

# Okabe and Ito's colours, told apart by nearly every eye (jfly.uni-koeln.de/color); black is left out.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
    (240, 228, 66),  # yellow
)
HTML_WIDTH = 640  # pixels
_CELL = 'style="text-align: left; padding: 2px 16px 2px 0"'
KEYPOINT = PALETTE[1]  # on a heatmap: the one hue that magma lacks


def color_of(index: int) -> Color:
    """The color of the prompt at `index`: of the palette, then darker, then lighter, and so round again."""
    towards, share = ((0, 0.0), (0, 0.45), (255, 0.55))[index // len(PALETTE) % 3]
    return tuple(round(level + share * (towards - level)) for level in PALETTE[index % len(PALETTE)])


def plot_output(output: LensOutput, *, colors: Sequence[int] | None = None) -> Image.Image:
    """The image at its own resolution with every mask, its outline, its keypoints and a label with prompt and score.

    Labels are shortened to fit; an image too small to be read under them gets none.

    Args:
        colors: as for `mask_overlay`.

    Raises:
        LensError: `output.image` is None.
    """
    canvas = _painted(_image_of(output), output.masks, output.keypoints, colors=colors)
    labels = list(_place_labels(output, colors or range(len(output.prompts))))
    for label in labels:
        canvas.chip(label.box, label.color)
    picture = canvas.drawn()
    draw = ImageDraw.Draw(picture)
    for label in labels:
        left, top, right, bottom = label.box
        middle = ((left + right) / 2, (top + bottom) / 2)
        draw.text(middle, label.text, ink_on(label.color), label.face, anchor="mm")
    return picture


def mask_overlay(image: Image.Image, masks: Tensor, keypoints: Sequence[Tensor] = (), **style: Any) -> Image.Image:
    """Soft fills, crisp outlines and ringed keypoints over an RGB image of any size.

    Args:
        masks: bool (N, h, w), spread over the whole image.
        keypoints: N times (K_i, 2), x then y, in pixels of `image`; or nothing.
        style: `colors` (N indices for `color_of`, one per mask or list of keypoints; default: 0, 1, ...), `fade` (in
            [0, 1]: how far what is outside all masks goes to light grey), `fill` (opacity of the colour inside), `unit`
            (pixels of a fine line; default: follows the image's size).
    """
    return _painted(image, masks, keypoints, **style).drawn()


def _painted(
    image: Image.Image,
    masks: Tensor,
    keypoints: Sequence[Tensor],
    *,
    colors: Sequence[int] | None = None,
    fade: float = 0.0,
    fill: float = 0.45,
    unit: float | None = None,
) -> Canvas:
    colors = colors or range(max(len(masks), len(keypoints)))
    shapes = list(zip(colors, masks.detach().cpu().numpy(), strict=False))
    picture = image
    if fade:
        pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, WHITE), fade)
        picture = Image.composite(image, pale, stencil(masks.any(0).cpu().numpy(), image.size))
    for index, mask in shapes:
        color = Image.new("RGB", image.size, color_of(index))
        picture = Image.composite(color, picture, stencil(mask, image.size, opacity=fill))
    canvas = Canvas(picture, unit)
    for index, mask in shapes:
        zoom = np.divide(image.size, mask.shape[::-1])
        for outline in outlines(mask):
            canvas.outline(outline * zoom, color_of(index))
    for index, points in zip(colors, keypoints, strict=False):
        for x, y in points.tolist():
            canvas.ring(x, y, color_of(index))
    return canvas


def heatmap_overlay(
    image: Image.Image, heatmap: Tensor, keypoints: Tensor | None = None, *, unit: float | None = None
) -> Image.Image:
    """A heatmap in matplotlib's magma over a greyed RGB image; the colour is the heat itself, 0 to 1.

    Args:
        heatmap: float (h, w) in [0, 1], spread over the whole image.
        keypoints: (K, 2), x then y, in pixels of `image`.
        unit: pixels of a fine line; default: follows the image's size.
    """
    cells = Image.fromarray(heatmap.detach().float().cpu().numpy())
    heat = np.asarray(cells.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    glow = matplotlib.colormaps["magma"](heat, bytes=True)[..., :3]  # uint8 (H, W, 3)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    alpha = (0.6 + 0.3 * heat)[..., None]
    canvas = Canvas(_to_image(grey * (1 - alpha) + glow * alpha), unit)
    for x, y in [] if keypoints is None else keypoints.tolist():
        canvas.ring(x, y, KEYPOINT)
    return canvas.drawn()


def to_detections(output: LensOutput) -> Any:
    """`supervision.Detections`: boxes, masks, scores as confidence, prompts as `class_name`.

    Boxes are pixel edges (right and lower ones exclusive, so that area = width x height); an empty mask has 0 0 0 0.

    Raises:
        LensError: supervision is not installed.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise LensError("to_supervision needs supervision: pip install 'lens_adapter[supervision]'.") from error
    masks = output.masks.cpu().numpy()
    return Detections(
        xyxy=np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4),
        mask=masks,
        confidence=output.scores.detach().float().cpu().numpy(),
        class_id=np.arange(len(masks)),
        data={"class_name": np.array(output.prompts, dtype=str)},
    )


def to_html(output: LensOutput) -> str:
    """For notebooks: the overlay, at most `HTML_WIDTH` pixels wide, and a table of all prompts.

    Nothing is loaded from elsewhere, and colours are those of the page, light or dark. An output without its image has
    the table alone.
    """
    rows = "".join(_html_row(output, index) for index in range(len(output.prompts)))
    heads = "".join(f"<th {_CELL}>{title}</th>" for title in ("", "prompt", "score", "area", "keypoints (x, y)"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return table if output.image is None else f"<div>{_html_picture(plot_output(output))}{table}</div>"


def grounded_html(text: str, spans: Sequence[tuple[tuple[int, int] | None, int]], output: LensOutput) -> str:
    """For notebooks: a text whose names are marked in the colors of their masks, above `to_html`.

    Args:
        spans: per name its place in the text, or None, and its prompt's index in `output`; where two overlap, the first
            is marked.
    """
    marked, done = [], 0
    for (start, end), index in sorted((span, index) for span, index in spans if span is not None):
        if start >= done:
            background, ink = color_of(index), ink_on(color_of(index))
            style = f"background: rgb{background}; color: rgb{ink}; border-radius: 3px; padding: 0 3px"
            marked.append(f'{escape(text[done:start])}<mark style="{style}">{escape(text[start:end])}</mark>')
            done = end
    words = "".join(marked) + escape(text[done:])
    return f'<div><p style="white-space: pre-wrap">{words}</p>{to_html(output)}</div>'


def _html_picture(picture: Image.Image) -> str:
    width = min(picture.width, HTML_WIDTH)
    buffer = BytesIO()
    picture.resize((width, max(1, round(width * picture.height / picture.width)))).save(buffer, "PNG")
    return f'<img alt="masks" src="data:image/png;base64,{b64encode(buffer.getvalue()).decode("ascii")}"/>'


def _html_row(output: LensOutput, index: int) -> str:
    mask, points = output.masks[index], output.keypoints[index].tolist()
    area = f"{int(mask.sum()):,} px ({mask.float().mean().item():.1%})" if mask.any() else "empty"
    named = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in points[:3]) or "none"
    more = f" and {len(points) - 3} more" if len(points) > 3 else ""
    swatch = f'<span style="color: rgb{color_of(index)}">&#9632;</span>'
    cells = (swatch, escape(output.prompts[index]), f"{float(output.scores[index]):.2f}", area, named + more)
    return "<tr>" + "".join(f"<td {_CELL}>{cell}</td>" for cell in cells) + "</tr>"


@dataclass(frozen=True)
class Panel:
    """One image of a contact sheet with all its prompts.

    Attributes:
        output: what `segment` returned.
        ious: per prompt the overlap with the true mask in [0, 1]; None where it is not known.
        question: what the frozen model was asked about the image.
        answer: what it said.
    """

    output: LensOutput
    ious: Sequence[float | None] | None = None
    question: str | None = None
    answer: str | None = None

    def __post_init__(self) -> None:
        if self.ious is not None and len(self.ious) != len(self.output.prompts):
            raise LensError(f"Panel.ious: expected {len(self.output.prompts)} numbers, got {len(self.ious)}.")


# Pixels of a contact sheet.
MARGIN, SPACE, GAP, PICTURE, CELL, COLUMNS = 64, 36, 20, 460, 320, 3
UNIT = 1.4


def contact_sheet(panels: Sequence[Panel], *, title: str, subtitle: str = "") -> Image.Image:
    """A page: per panel the image with question and answer, and per prompt the heatmap above the mask.

    Raises:
        LensError: no panel, or an output without its image.
    """
    if not panels:
        raise LensError("contact_sheet: expected at least one panel, got none.")
    columns = min(COLUMNS, max(len(panel.output.prompts) for panel in panels))
    blocks = [_block(panel, columns) for panel in panels]
    width = blocks[0].width + 2 * MARGIN
    top = 150
    page = Image.new("RGB", (width, top + sum(block.height + 2 * SPACE for block in blocks)), WHITE)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, 44), fit(title, font(34, bold=True), width - 2 * MARGIN - 280), INK, font(34, bold=True))
    draw.text((MARGIN, 98), fit(subtitle, font(18), width - 2 * MARGIN), GREY, font(18))
    _draw_color_bar(page, width - MARGIN, 56)
    for block in blocks:
        draw.line((MARGIN, top, width - MARGIN, top), HAIRLINE, 2)
        page.paste(block, (MARGIN, top + SPACE))
        top += block.height + 2 * SPACE
    return page


def _block(panel: Panel, columns: int) -> Image.Image:
    """The image with question and answer at the left, the prompts at the right, `columns` to a row."""
    image, prompts = _image_of(panel.output), panel.output.prompts
    faces = [font(19, bold=True, text=prompt) for prompt in prompts]
    titles = [wrap(prompt, face, CELL - 28, 2) for prompt, face in zip(prompts, faces, strict=True)]
    title_height = 26 * max(map(len, titles), default=0) + 8
    scene = _scene(panel, image)
    cells = [_cell(panel, image, index) for index in range(len(prompts))]
    row_height = title_height + max((cell.height for cell in cells), default=0)
    rows = ceil(len(cells) / max(columns, 1))
    height = max(title_height + scene.height, rows * (row_height + GAP) - GAP)
    block = Image.new("RGB", (PICTURE + GAP + columns * (CELL + GAP), height), WHITE)
    block.paste(scene, (0, title_height))
    draw = ImageDraw.Draw(block)
    for index, (title, face, cell) in enumerate(zip(titles, faces, cells, strict=True)):
        left = PICTURE + 2 * GAP + index % columns * (CELL + GAP)
        top = index // columns * (row_height + GAP)
        draw.rounded_rectangle((left, top + 4, left + 15, top + 19), 4, color_of(index))
        for line, text in enumerate(title):
            draw.text((left + 26, top + 26 * line), text, INK, face)
        block.paste(cell, (left, top + title_height))
    return block


def _scene(panel: Panel, image: Image.Image) -> Image.Image:
    """The image, and below it what the model was asked and said."""
    picture = framed(scaled(image, PICTURE))
    question, answer = panel.question or "", panel.answer or ""
    asked, said = font(19, text=question), font(21, bold=True, text=answer)
    texts = [(text, GREY, asked) for text in wrap(question, asked, PICTURE, 3)]
    texts += [(text, INK, said) for text in wrap(answer, said, PICTURE, 3)]
    scene = Image.new("RGB", (PICTURE, picture.height + 14 + 30 * len(texts)), WHITE)
    scene.paste(picture, (0, 0))
    draw = ImageDraw.Draw(scene)
    for line, (text, color, face) in enumerate(texts):
        draw.text((0, picture.height + 16 + 30 * line), text, color, face)
    return scene


def _cell(panel: Panel, image: Image.Image, index: int) -> Image.Image:
    """One prompt: heatmap with keypoints, mask, and how good it is."""
    output, large = panel.output, scaled(image, CELL)
    points = output.keypoints[index].detach().float().cpu() * (large.width / image.width)
    heat = framed(heatmap_overlay(large, output.heatmaps[index], points, unit=UNIT))
    one = output.masks[index : index + 1]
    mask = framed(mask_overlay(large, one, colors=[index], fade=0.55, fill=0.15, unit=UNIT))
    caption = f"score {float(output.scores[index]):.2f}" + ("" if one.any() else "   empty mask")
    if panel.ious is not None and panel.ious[index] is not None:
        caption += f"   IoU {panel.ious[index]:.2f}"
    cell = Image.new("RGB", (CELL, 2 * large.height + 12 + 34), WHITE)
    cell.paste(heat, (0, 0))
    cell.paste(mask, (0, large.height + 12))
    ImageDraw.Draw(cell).text((0, 2 * large.height + 22), caption, GREY, font(17))
    return cell


def _draw_color_bar(page: Image.Image, right: int, top: int) -> None:
    """The scale of the heatmaps, its right end at `right`."""
    ramp = matplotlib.colormaps["magma"](np.linspace(0, 1, 160))[None, :, :3] * 255
    bar = _to_image(ramp.repeat(14, axis=0))
    page.paste(bar, (right - 184, top))
    draw = ImageDraw.Draw(page)
    draw.text((right - 196, top + 7), "heat  0", GREY, font(17), anchor="rm")
    draw.text((right, top + 7), "1", GREY, font(17), anchor="rm")


@dataclass(frozen=True)
class _Label:
    text: str
    face: ImageFont.FreeTypeFont
    color: Color
    box: Box


def _place_labels(output: LensOutput, colors: Sequence[int]) -> Iterator[_Label]:
    """A label per prompt: beside its mask, clear of the labels before it, over as little of any mask as may be."""
    height, width = output.image_size
    size = round(max(9, min(0.024 * sqrt(width * height), 0.1 * height)))
    pad, tall = 0.45 * size, round(1.6 * size)
    cover = output.masks.any(0).float().cpu().numpy()  # (H, W), what it costs to hide a pixel
    for index, prompt in enumerate(output.prompts):
        face, mask = font(size, bold=True, text=prompt), output.masks[index].cpu().numpy()
        ending = f"{float(output.scores[index]):.2f}" + ("" if mask.any() else " empty")
        start = fit(prompt, face, width - 4 * pad - face.getlength("  " + ending))
        text = f"{start}  {ending}" if start else ending
        wide = round(face.getlength(text) + 2 * pad)
        if wide > width or 7 * tall > height:
            continue
        left, top, right, bottom = _box(mask)
        columns = np.clip([left, right - wide], pad, max(width - wide - pad, 0)).astype(int)
        wanted = np.array([top - tall - pad, bottom + pad, top + pad])
        rows = np.concatenate([wanted, np.arange(pad, height - tall, tall / 2)]).clip(0, height - tall).astype(int)
        away = np.abs(rows[:, None] - wanted).min(1, keepdims=True) / height  # (rows, 1)
        hidden = np.array([[cover[y : y + tall, x : x + wide].mean() for x in columns] for y in rows])
        row, column = np.unravel_index(np.argmin(hidden + 3 * away), hidden.shape)
        x, y = int(columns[column]), int(rows[row])
        cover[y : y + tall, x : x + wide] = 100  # more than any distance
        yield _Label(text, face, color_of(colors[index]), (x, y, x + wide, y + tall))


def _image_of(output: LensOutput) -> Image.Image:
    if output.image is None:
        raise LensError("LensOutput.image: expected the picture to draw on, got None; set it to a PIL image first.")
    return output.image.convert("RGB")


def _box(mask: np.ndarray) -> Box:
    """Left, top, right, bottom in pixel edges; all 0 for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
