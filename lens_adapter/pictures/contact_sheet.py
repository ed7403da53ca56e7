"""A page of many results: per image its prompts, each with heatmap and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from lens_adapter.errors import LensError
from lens_adapter.pictures.colors import GREY, HAIRLINE, INK, WHITE, color_of
from lens_adapter.pictures.drawing import framed, scaled, to_image
from lens_adapter.pictures.overlays import heatmap_overlay, mask_overlay
from lens_adapter.pictures.text import font, shortened, wrap

# Pixels of the page, of its parts, and of a fine line.
MARGIN, SPACE, GAP, PICTURE_WIDTH, CELL_WIDTH = 64, 36, 20, 460, 320
UNIT = 1.4
MOST_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One image of a contact sheet and what was found for its N prompts; `LensOutput.to_panel` makes one.

    Attributes:
        image: RGB (H, W).
        masks: bool (N, h, w), spread over the whole image.
        keypoints: N times (K_i, 2), x then y, in pixels of the image.
        heatmaps: float (N, h, w) in [0, 1], spread over the whole image.
        prompts: N texts.
        scores: N numbers in [0, 1].
        found: N times, whether the prompt names something in the image.
        ious: per prompt the overlap with the true mask in [0, 1]; None where it is not known.
        question: what the frozen model was asked about the image.
        answer: what it said.
        understood: N times, whether the model knows the words of the prompt; None: it does.
    """

    image: Image.Image
    masks: Tensor
    keypoints: Sequence[Tensor]
    heatmaps: Tensor
    prompts: Sequence[str]
    scores: Sequence[float]
    found: Sequence[bool]
    ious: Sequence[float | None] | None = None
    question: str | None = None
    answer: str | None = None
    understood: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        if self.ious is not None and len(self.ious) != len(self.prompts):
            raise LensError(f"Panel.ious: expected {len(self.prompts)} numbers, got {len(self.ious)}.")


def contact_sheet(panels: Sequence[Panel], *, title: str, subtitle: str = "") -> Image.Image:
    """A page: per panel the image with question and answer, and per prompt the heatmap above the mask.

    Raises:
        LensError: there is no panel.
    """
    if not panels:
        raise LensError("contact_sheet: expected at least one panel, got none.")
    columns = min(MOST_COLUMNS, max(len(panel.prompts) for panel in panels))
    blocks = [_block(panel, columns) for panel in panels]
    width = blocks[0].width + 2 * MARGIN
    top = 150
    page = Image.new("RGB", (width, top + sum(block.height + 2 * SPACE for block in blocks)), WHITE)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, 44), shortened(title, font(34, bold=True), width - 2 * MARGIN - 280), INK, font(34, bold=True))
    draw.text((MARGIN, 98), shortened(subtitle, font(18), width - 2 * MARGIN), GREY, font(18))
    _draw_color_bar(page, width - MARGIN, 56)
    for block in blocks:
        draw.line((MARGIN, top, width - MARGIN, top), HAIRLINE, 2)
        page.paste(block, (MARGIN, top + SPACE))
        top += block.height + 2 * SPACE
    return page


def _block(panel: Panel, columns: int) -> Image.Image:
    """The image with question and answer at the left, the prompts at the right, `columns` to a row."""
    prompts = panel.prompts
    faces = [font(19, bold=True, text=prompt) for prompt in prompts]
    titles = [wrap(prompt, face, CELL_WIDTH - 28, 2) for prompt, face in zip(prompts, faces, strict=True)]
    title_height = 26 * max(map(len, titles), default=0) + 8
    scene = _scene(panel)
    cells = [_cell(panel, index) for index in range(len(prompts))]
    row_height = title_height + max((cell.height for cell in cells), default=0)
    rows = ceil(len(cells) / max(columns, 1))
    height = max(title_height + scene.height, rows * (row_height + GAP) - GAP)
    block = Image.new("RGB", (PICTURE_WIDTH + GAP + columns * (CELL_WIDTH + GAP), height), WHITE)
    block.paste(scene, (0, title_height))
    draw = ImageDraw.Draw(block)
    for index, (title, face, cell) in enumerate(zip(titles, faces, cells, strict=True)):
        left = PICTURE_WIDTH + 2 * GAP + index % columns * (CELL_WIDTH + GAP)
        top = index // columns * (row_height + GAP)
        draw.rounded_rectangle((left, top + 4, left + 15, top + 19), 4, color_of(index))
        for line, text in enumerate(title):
            draw.text((left + 26, top + 26 * line), text, INK, face)
        block.paste(cell, (left, top + title_height))
    return block


def _scene(panel: Panel) -> Image.Image:
    """The image, and below it what the model was asked and said."""
    picture = framed(scaled(panel.image, PICTURE_WIDTH))
    question, answer = panel.question or "", panel.answer or ""
    asked, said = font(19, text=question), font(21, bold=True, text=answer)
    texts = [(text, GREY, asked) for text in wrap(question, asked, PICTURE_WIDTH, 3)]
    texts += [(text, INK, said) for text in wrap(answer, said, PICTURE_WIDTH, 3)]
    scene = Image.new("RGB", (PICTURE_WIDTH, picture.height + 14 + 30 * len(texts)), WHITE)
    scene.paste(picture, (0, 0))
    draw = ImageDraw.Draw(scene)
    for line, (text, color, face) in enumerate(texts):
        draw.text((0, picture.height + 16 + 30 * line), text, color, face)
    return scene


def _cell(panel: Panel, index: int) -> Image.Image:
    """One prompt: heatmap with keypoints, mask, and how good it is."""
    large = scaled(panel.image, CELL_WIDTH)
    points = panel.keypoints[index].detach().float().cpu() * (large.width / panel.image.width)
    heat = framed(heatmap_overlay(large, panel.heatmaps[index], points, unit=UNIT))
    one = panel.masks[index : index + 1]
    mask = framed(mask_overlay(large, one, colors=[index], fade=0.55, fill=0.15, unit=UNIT))
    absent = "   absent" if panel.understood is None or panel.understood[index] else "   not understood"
    nothing = absent if not panel.found[index] else "" if one.any() else "   empty mask"
    caption = f"score {panel.scores[index]:.2f}{nothing}"
    if panel.ious is not None and panel.ious[index] is not None:
        caption += f"   IoU {panel.ious[index]:.2f}"
    cell = Image.new("RGB", (CELL_WIDTH, 2 * large.height + 12 + 34), WHITE)
    cell.paste(heat, (0, 0))
    cell.paste(mask, (0, large.height + 12))
    ImageDraw.Draw(cell).text((0, 2 * large.height + 22), caption, GREY, font(17))
    return cell


def _draw_color_bar(page: Image.Image, right: int, top: int) -> None:
    """The scale of the heatmaps, its right end at `right`."""
    ramp = matplotlib.colormaps["magma"](np.linspace(0, 1, 160))[None, :, :3] * 255
    bar = to_image(ramp.repeat(14, axis=0))
    page.paste(bar, (right - 184, top))
    draw = ImageDraw.Draw(page)
    draw.text((right - 196, top + 7), "heat  0", GREY, font(17), anchor="rm")
    draw.text((right, top + 7), "1", GREY, font(17), anchor="rm")
