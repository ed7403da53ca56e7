"""Where labels go: near their mask, clear of each other, over as little of any thing as may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, hypot, sqrt

import numpy as np
from PIL import Image, ImageFont

from lens_adapter.pictures.colors import RGB, color_of
from lens_adapter.pictures.outlines import Box, bounding_box
from lens_adapter.pictures.text import can_write, font, shortened

# Of a picture: how much of it all labels together may cover, and how high one may be.
MOST_COVERED, MOST_HEIGHT = 0.3, 0.25
# What a place for a label costs. Hiding: the share of the label that lies on another thing, on its own one, on a
# keypoint. Distance: from the top of its mask, per height of the label.
OTHER, OWN, POINT, AWAY = 3.0, 1.0, 2.0, 0.15
BELOW, ASIDE = 0.05, 0.02  # rather above than below, rather flush left than further along


@dataclass(frozen=True)
class Label:
    """A text in a colored box, and a line to what it names where that is not beside it.

    Attributes:
        text, face: what is written, and in which font.
        color: of the box.
        box: left, top, right, bottom in pixels of the picture.
        leader: from x, y to x, y in pixels; None: the label is beside its mask, or there is no mask.
    """

    text: str
    face: ImageFont.FreeTypeFont
    color: RGB
    box: Box
    leader: tuple[float, float, float, float] | None = None


def place_labels(
    size: tuple[int, int],
    masks: np.ndarray,
    keypoints: Sequence[np.ndarray],
    prompts: Sequence[str],
    scores: Sequence[float],
    found: Sequence[bool],
    colors: Sequence[int],
    understood: Sequence[bool] | None = None,
) -> list[Label]:
    """Labels of N prompts in their order, none upon another; one for which there is no room is left out.

    Args:
        size: (W, H) of the picture.
        masks: bool (N, h, w), spread over the whole picture.
        keypoints: N times (K_i, 2), x then y, in pixels.
        prompts, scores, found: as for `overlays.labelled_overlay`.
        colors: N indices for `color_of`.
        understood: as for `overlays.labelled_overlay`.
    """
    width, height = size
    letter = _letter_size(width, height)
    tall, pad = round(1.6 * letter), round(0.45 * letter)
    if not prompts or tall > MOST_HEIGHT * height:
        return []
    widest = min(width - 2 * pad, MOST_COVERED * width * height / tall / len(prompts))
    plan = _Plan(size, masks, keypoints, tall)
    placed: dict[int, Label] = {}
    # Small things first: they leave the fewest places. What has no mask can go anywhere.
    for index in sorted(range(len(prompts)), key=lambda index: plan.areas[index] or np.inf):
        # Where no font here has its letters, its number is better than empty boxes.
        prompt = prompts[index] if can_write(prompts[index]) else f"prompt {colors[index] + 1}"
        face = font(letter, bold=True, text=prompt)
        absent = " absent" if understood is None or understood[index] else " not understood"
        ending = f"{scores[index]:.2f}" + (absent if not found[index] else "" if masks[index].any() else " empty")
        start = shortened(prompt, face, widest - 2 * pad - face.getlength("  " + ending))
        for text in dict.fromkeys([f"{start}  {ending}" if start else ending, ending]):
            wide = round(face.getlength(text)) + 2 * pad
            if wide <= widest and (box := plan.take(index, wide)) is not None:
                placed[index] = Label(text, face, color_of(colors[index]), box, plan.leader(index, box))
                break
    return [placed[index] for index in sorted(placed)]


def _letter_size(width: int, height: int) -> int:
    """Of a label's letters, in pixels: growing with the picture, and less than it does below a thousand pixels."""
    side = sqrt(width * height)
    return round(max(9, min(0.016 * side + 3, 0.1 * height)))


class _Plan:
    """A picture in square cells, a quarter of a label high: what lies in them, and where labels are by now."""

    def __init__(self, size: tuple[int, int], masks: np.ndarray, keypoints: Sequence[np.ndarray], tall: int):
        self.size, self.tall, self.cell = size, tall, max(1, tall // 4)
        self.shape = (ceil(size[1] / self.cell), ceil(size[0] / self.cell))  # rows, columns
        zoom = np.divide(size, masks.shape[:0:-1])
        self.boxes = [np.multiply(bounding_box(mask), [*zoom, *zoom]) for mask in masks]
        self.areas = [float(mask.mean()) for mask in masks]
        self.shares = np.array([_shrunk(mask, self.shape) for mask in masks]).reshape(-1, *self.shape)
        # A cell of a thing as small as a label counts twice, of a smaller one more, of a large one hardly more.
        label = 20 * tall**2 / self.cell**2 / 4
        weights = [1 + min(label / max(share.sum(), 1), 4) for share in self.shares]
        self.hidden = self.shares * np.array(weights).reshape(-1, 1, 1)
        self.points = np.zeros(self.shape)
        for x, y in (point for points in keypoints for point in points):
            row, column = int(y // self.cell), int(x // self.cell)
            self.points[min(max(row, 0), self.shape[0] - 1), min(max(column, 0), self.shape[1] - 1)] = 4
        self.taken = np.zeros(self.shape)

    def take(self, index: int, wide: int) -> Box | None:
        """The best place for the label of mask `index`, `wide` pixels wide, which is taken then; None: none is free."""
        rows, columns = ceil(self.tall / self.cell), ceil(wide / self.cell)
        others = np.delete(self.hidden, index, axis=0).max(0, initial=0)
        cost = OTHER * others + OWN * self.hidden[index] + POINT * self.points
        cost, taken = (_around(each, rows, columns) for each in (cost, self.taken))
        cost += self._inconvenience(index, rows, columns)
        cost[taken > 1e-9] = np.inf
        row, column = np.unravel_index(np.argmin(cost), cost.shape)
        if not np.isfinite(cost[row, column]):
            return None
        self.taken[row : row + rows, column : column + columns] = 1
        edge = min(self.cell, 3)  # labels stay off the border by as much
        left = min(max(int(column) * self.cell, edge), self.size[0] - wide - edge)
        top = min(max(int(row) * self.cell, edge), self.size[1] - self.tall - edge)
        return (left, top, left + wide, top + self.tall)

    def _inconvenience(self, index: int, rows: int, columns: int) -> np.ndarray:
        """Per place, how far a label would be from mask `index`, and how far from where one looks for it."""
        left, top = np.array(self.boxes[index][:2]) / self.cell
        y = np.arange(self.shape[0] - rows + 1)[:, None]
        x = np.arange(self.shape[1] - columns + 1)[None]
        touching = _around(self.shares[index], rows, columns) > 1e-6
        away = _distance(touching) if touching.any() else np.maximum(0, x + y - 2)
        return np.asarray((AWAY * away + ASIDE * np.abs(x - left)) / rows + BELOW * (y + rows > top + 1))

    def leader(self, index: int, box: Box) -> tuple[float, float, float, float] | None:
        """From a label to the nearest of its mask; None where that is about as near as a label is high."""
        if not self.areas[index]:
            return None
        rows, columns = np.nonzero(self.shares[index] >= 0.5 * self.shares[index].max())
        x, y = (columns + 0.5) * self.cell, (rows + 0.5) * self.cell
        inset = 0.3 * self.tall  # it begins below the box, whose corners are round
        from_x = np.clip(x, box[0] + inset, box[2] - inset)
        from_y = np.clip(y, box[1] + inset, box[3] - inset)
        nearest = np.argmin(np.hypot(x - from_x, y - from_y))
        ends = (from_x[nearest], from_y[nearest], x[nearest], y[nearest])
        return ends if hypot(ends[2] - ends[0], ends[3] - ends[1]) > 1.5 * self.tall else None


def _shrunk(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """bool (h, w) -> the share of each cell that it covers, float (rows, columns)."""
    levels = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(levels.resize(shape[::-1], Image.Resampling.BOX), np.float64) / 255


def _around(cells: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """For every place of a window of `rows` x `columns` cells: the mean of what it and the cells around it hold."""
    sums = np.pad(np.pad(cells, 1).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    high, wide = rows + 2, columns + 2
    inside: np.ndarray = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    return inside / (rows * columns)


def _distance(cells: np.ndarray) -> np.ndarray:
    """From each cell to the nearest true one of bool (rows, columns), by steps to the four sides."""
    away: np.ndarray = np.where(cells, 0.0, np.inf)
    for axis, length in enumerate(cells.shape):
        steps = np.arange(length).reshape((-1, 1) if axis == 0 else (1, -1))
        before = np.minimum.accumulate(away - steps, axis) + steps
        after = np.flip(np.minimum.accumulate(np.flip(away + steps, axis), axis), axis) - steps
        away = np.minimum(before, after)
    return np.asarray(away)
