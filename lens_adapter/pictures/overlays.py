"""An image with what was found in it: masks, keypoints, labels, heat."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from lens_adapter.pictures.colors import PALETTE, WHITE, color_of, ink_on
from lens_adapter.pictures.drawing import Canvas, stencil, to_image
from lens_adapter.pictures.labels import place_labels
from lens_adapter.pictures.outlines import in_turn, outlines

FILL = 0.18  # opacity of a mask's color: what is under it stays to be seen
DASH = 9  # units; of outlines that run along each other
KEYPOINT = PALETTE[1]  # on a heatmap: the one hue that magma lacks


def labelled_overlay(
    image: Image.Image,
    masks: Tensor,
    keypoints: Sequence[Tensor],
    prompts: Sequence[str],
    scores: Sequence[float],
    found: Sequence[bool],
    understood: Sequence[bool] | None = None,
    **style: Any,
) -> Image.Image:
    """An RGB image with the masks of N prompts, their outlines, their keypoints, and a label for each.

    A label has the prompt and its score, and says "absent" where the prompt was not found ("not understood" where the
    model does not know its words), "empty" where its mask has no pixels all the same. It is shortened to fit; an image
    too small to be read under labels gets none.

    Args:
        image: what is drawn on.
        masks: bool (N, h, w), spread over the whole image.
        keypoints: N times (K_i, 2), x then y, in pixels.
        prompts: N texts.
        scores: N numbers in [0, 1].
        found: N times, whether the prompt names something in the image.
        understood: N times, whether the model knows the words of the prompt; default: it does.
        style: as for `mask_overlay`.
    """
    canvas = _painted(image, masks, keypoints, **style)
    points = [each.detach().float().cpu().numpy() for each in keypoints]
    shapes, colors = masks.detach().cpu().numpy(), style.get("colors") or range(len(prompts))
    labels = place_labels(image.size, shapes, points, prompts, scores, found, colors, understood)
    for label in labels:
        if label.leader is not None:
            canvas.leader(label.leader, label.color)
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
    fill: float = FILL,
    unit: float | None = None,
    parts: Sequence[Tensor] | None = None,
) -> Canvas:
    colors = colors or range(max(len(masks), len(keypoints)))
    shapes = masks.detach().cpu().numpy()
    picture = image.copy()
    if fade:
        pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, WHITE), fade)
        picture = Image.composite(image, pale, stencil(np.asarray(shapes.any(0)), image.size))
    # Every pixel gets one color, that of the smallest mask it is in: colors laid over each other would be none.
    free = np.ones(shapes.shape[1:], bool)
    by_area = np.argsort(shapes.sum((1, 2)), kind="stable").tolist()
    for index in by_area if fill else ():
        picture.paste(color_of(colors[index]), mask=stencil(shapes[index] & free, image.size, opacity=fill))
        free &= ~shapes[index]
    canvas = Canvas(picture, unit)
    zoom = np.divide(image.size, shapes.shape[:0:-1])
    outlined = masks[:, None] if parts is None else parts
    lines = [[line * zoom for part in each.detach().cpu().numpy() for line in outlines(part)] for each in outlined]
    shown = in_turn(lines, image.size, DASH * canvas.unit, max(zoom))
    for index in reversed(by_area):
        for line, turns in zip(lines[index], shown[index], strict=True):
            canvas.outline(line, color_of(colors[index]), turns)
    # A keypoint does not hide a thing that is hardly larger than itself.
    sides = [sqrt(shape.mean() * image.width * image.height) or inf for shape in shapes]
    for index, points in enumerate(keypoints):
        for x, y in points.tolist():
            canvas.ring(x, y, color_of(colors[index]), most=0.2 * sides[index] if sides else inf)
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
    alpha = (0.5 + 0.4 * heat)[..., None]
    canvas = Canvas(to_image(grey * (1 - alpha) + glow * alpha), unit)
    for x, y in [] if keypoints is None else keypoints.tolist():
        canvas.ring(x, y, KEYPOINT)
    return canvas.drawn()
