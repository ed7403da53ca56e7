"""Examples with their truth: what is named, what was found, and where the head looked, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lens_adapter.errors import LensError
from lens_adapter.pictures.colors import GREY, INK, WHITE, color_of
from lens_adapter.pictures.drawing import framed
from lens_adapter.pictures.overlays import heatmap_overlay, mask_overlay
from lens_adapter.pictures.text import font, shortened, wrap

# What a picture of a row shows -> the index of its color in the palette.
FOUND, TRUTH = "found", "truth"
COLORS = {TRUTH: 2, FOUND: 0}  # bluish green, orange
HEAT = "heatmap and keypoints"

# Pixels of a page of samples.
SIDE, GAP, MARGIN, HEAD, COLUMNS = 240, 10, 36, 84, 2


@dataclass(frozen=True)
class Sample:
    """One prompt about one image, its true mask, and what was found.

    Attributes:
        image: RGB (H, W).
        prompt: what was asked for.
        truth: bool (H, W), the true mask.
        mask: bool (H, W), the one that was found.
        heatmap: float (h, w) in [0, 1], spread over the whole image.
        keypoints: (K, 2), x then y, in pixels of the image.
        caption: figures about it.
    """

    image: Image.Image
    prompt: str
    truth: Tensor
    mask: Tensor
    heatmap: Tensor
    keypoints: Tensor
    caption: str = ""

    def pictures(self, side: int) -> dict[str, Image.Image]:
        """Title -> picture, `side` pixels at its longer side: the truth, what was found, the heat."""
        zoom = side / max(self.image.size)
        size = (max(1, round(zoom * self.image.width)), max(1, round(zoom * self.image.height)))
        image = self.image.resize(size, Image.Resampling.LANCZOS)
        points = self.keypoints.detach().float().cpu() * torch.tensor(
            [size[0] / self.image.width, size[1] / self.image.height]
        )
        masks = {TRUTH: self.truth, FOUND: self.mask}
        drawn = {
            name: mask_overlay(image, mask[None], colors=[COLORS[name]], fade=0.55, fill=0.15, unit=side / 230)
            for name, mask in masks.items()
        }
        return {**drawn, HEAT: heatmap_overlay(image, self.heatmap, points, unit=side / 200)}


def sample_grid(samples: Sequence[Sample], *, title: str) -> Image.Image:
    """A page, two samples to a row, each with three pictures below its prompt and its figures.

    Raises:
        LensError: there is no sample.
    """
    if not samples:
        raise LensError("sample_grid: expected at least one sample, got none.")
    columns = min(COLUMNS, len(samples))
    blocks = [_block(sample) for sample in samples]
    rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    heights = [max(block.height for block in row) + 2 * GAP for row in rows]
    width = 2 * MARGIN + columns * blocks[0].width + (columns - 1) * MARGIN
    page = Image.new("RGB", (width, HEAD + sum(heights) + MARGIN), WHITE)
    ImageDraw.Draw(page).text(
        (MARGIN, 26), shortened(title, font(28, bold=True), width - 2 * MARGIN), INK, font(28, bold=True)
    )
    top = HEAD
    for row, height in zip(rows, heights, strict=True):
        for column, block in enumerate(row):
            page.paste(block, (MARGIN + column * (block.width + MARGIN), top))
        top += height
    return page


def _block(sample: Sample) -> Image.Image:
    pictures = sample.pictures(SIDE)
    width = len(pictures) * (SIDE + GAP) - GAP
    face = font(18, bold=True, text=sample.prompt)
    lines = wrap(sample.prompt, face, width - 10 - font(16).getlength(sample.caption), 2) or [""]
    top = 26 * len(lines) + 24
    block = Image.new("RGB", (width, top + max(picture.height for picture in pictures.values()) + GAP), WHITE)
    pen = ImageDraw.Draw(block)
    for line, text in enumerate(lines):
        pen.text((0, 26 * line), text, INK, face)
    pen.text((width, 2), sample.caption, GREY, font(16), anchor="ra")
    for place, (name, picture) in enumerate(pictures.items()):
        left = place * (SIDE + GAP)
        swatch = 16 if name in COLORS else 0
        if swatch:
            pen.rounded_rectangle((left, top - 19, left + 11, top - 8), 3, color_of(COLORS[name]))
        pen.text((left + swatch, top - 6), name, GREY, font(15), anchor="ls")
        block.paste(framed(picture), (left, top))
    return block
