"""An image with what was found in it: masks, keypoints, labels, heat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import sqrt
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lens_adapter.pictures.colors import PALETTE, RGB, WHITE, color_of, ink_on
from lens_adapter.pictures.drawing import Canvas, stencil, to_image
from lens_adapter.pictures.outlines import Box, bounding_box, outlines
from lens_adapter.pictures.text import font, shortened

KEYPOINT = PALETTE[1]  # on a heatmap: the one hue that magma lacks


def labelled_overlay(
    image: Image.Image,
    masks: Tensor,
    keypoints: Sequence[Tensor],
    prompts: Sequence[str],
    scores: Sequence[float],
    found: Sequence[bool],
    *,
    colors: Sequence[int] | None = None,
    parts: Sequence[Tensor] | None = None,
) -> Image.Image:
    """An RGB image with the masks of N prompts, their outlines, their keypoints, and a label for each.

    A label has the prompt and its score, and says "absent" where the prompt was not found, "empty" where its mask has
    no pixels all the same. It is shortened to fit; an image too small to be read under labels gets none.

    Args:
        image: (H, W), what is drawn on.
        masks: bool (N, H, W).
        keypoints: N times (K_i, 2), x then y, in pixels.
        prompts: N texts.
        scores: N numbers in [0, 1].
        found: N times, whether the prompt names something in the image.
        colors: as for `mask_overlay`.
        parts: as for `mask_overlay`.
    """
    canvas = _painted(image, masks, keypoints, colors=colors, parts=parts)
    shapes = masks.detach().cpu().numpy()
    labels = list(_place_labels(shapes, prompts, scores, found, colors or range(len(prompts))))
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
        image: what is drawn on.
        masks: bool (N, h, w), spread over the whole image.
        keypoints: N times (K_i, 2), x then y, in pixels of `image`; or nothing.
        style: `colors` (N indices for `color_of`, one per mask or list of keypoints; default: 0, 1, ...), `fade` (in
            [0, 1]: how far what is outside all masks goes to light grey), `fill` (opacity of the color inside), `unit`
            (pixels of a fine line; default: follows the image's size), `parts` (N times bool (K_i, h, w), outlined each
            in place of the mask that they are parts of).
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
    parts: Sequence[Tensor] | None = None,
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
    zoom = np.divide(image.size, masks.shape[:0:-1])
    for index, outlined in zip(colors, masks[:, None] if parts is None else parts, strict=False):
        for outline in chain.from_iterable(map(outlines, outlined.detach().cpu().numpy())):
            canvas.outline(outline * zoom, color_of(index))
    for index, points in zip(colors, keypoints, strict=False):
        for x, y in points.tolist():
            canvas.ring(x, y, color_of(index))
    return canvas


def heatmap_overlay(
    image: Image.Image, heatmap: Tensor, keypoints: Tensor | None = None, *, unit: float | None = None
) -> Image.Image:
    """A heatmap in matplotlib's magma over a greyed RGB image; the color is the heat itself, 0 to 1.

    Args:
        image: what is drawn on.
        heatmap: float (h, w) in [0, 1], spread over the whole image.
        keypoints: (K, 2), x then y, in pixels of `image`.
        unit: pixels of a fine line; default: follows the image's size.
    """
    cells = Image.fromarray(heatmap.detach().float().cpu().numpy())
    heat = np.asarray(cells.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    glow = matplotlib.colormaps["magma"](heat, bytes=True)[..., :3]  # uint8 (H, W, 3)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    alpha = (0.6 + 0.3 * heat)[..., None]
    canvas = Canvas(to_image(grey * (1 - alpha) + glow * alpha), unit)
    for x, y in [] if keypoints is None else keypoints.tolist():
        canvas.ring(x, y, KEYPOINT)
    return canvas.drawn()


@dataclass(frozen=True)
class _Label:
    text: str
    face: ImageFont.FreeTypeFont
    color: RGB
    box: Box


def _place_labels(
    masks: np.ndarray, prompts: Sequence[str], scores: Sequence[float], found: Sequence[bool], colors: Sequence[int]
) -> Iterator[_Label]:
    """A label per prompt: beside its mask, clear of the labels before it, over as little of any mask as may be."""
    height, width = masks.shape[1:]
    size = round(max(9, min(0.024 * sqrt(width * height), 0.1 * height)))
    pad, tall = 0.45 * size, round(1.6 * size)
    cover = np.asarray(masks.any(0), np.float32)  # (H, W), what it costs to hide a pixel
    for mask, prompt, score, named, color in zip(masks, prompts, scores, found, colors, strict=True):
        face = font(size, bold=True, text=prompt)
        ending = f"{score:.2f}" + (" absent" if not named else "" if mask.any() else " empty")
        start = shortened(prompt, face, width - 4 * pad - face.getlength("  " + ending))
        text = f"{start}  {ending}" if start else ending
        wide = round(face.getlength(text) + 2 * pad)
        if wide > width or 7 * tall > height:
            continue
        left, top, right, bottom = bounding_box(mask)
        columns = np.clip([left, right - wide], pad, max(width - wide - pad, 0)).astype(int)
        wanted = np.array([top - tall - pad, bottom + pad, top + pad])
        rows = np.concatenate([wanted, np.arange(pad, height - tall, tall / 2)]).clip(0, height - tall).astype(int)
        away = np.abs(rows[:, None] - wanted).min(1, keepdims=True) / height  # (rows, 1)
        hidden = np.array([[cover[y : y + tall, x : x + wide].mean() for x in columns] for y in rows])
        row, column = np.unravel_index(np.argmin(hidden + 3 * away), hidden.shape)
        x, y = int(columns[column]), int(rows[row])
        cover[y : y + tall, x : x + wide] = 100  # more than any distance
        yield _Label(text, face, color_of(color), (x, y, x + wide, y + tall))
