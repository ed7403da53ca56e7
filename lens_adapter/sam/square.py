"""SAM's square: how an image lies in it, and how masks get from one to the other. Needs no weights.

Padded: the longest side of an image is brought to S = `image_size` pixels; zeros to the right and below make it a
square. Squashed (where `sam` says so, as SAM 2 and later have it): both sides are brought to S. The mask decoder puts
out (4g, 4g) logits of that square, g = S / `patch_size`. `sam` is the complete dict `LensConfig.sam`; image sizes are
(height, width) in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import gcd, lcm
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

# Pixels along the side of the tiles in which a CPU brings a mask to the image's size, at least: smaller ones follow an
# outline more closely, larger ones are fewer calls.
TILE = 128
_NOTHING, _PART, _ALL = range(3)  # what of a tile is above the threshold, as far as low-resolution logits tell


def size_in_square(image_size: Sequence[int] | Tensor, side: int) -> tuple[int, int]:
    """(height, width) of the image within the square; at least one pixel, however thin the image."""
    height, width = (int(length) for length in image_size)
    height, width = ResizeLongestSide.get_preprocess_shape(height, width, side)
    return max(height, 1), max(width, 1)


def size_in(sam: dict[str, Any], image_size: Sequence[int] | Tensor) -> tuple[int, int]:
    """(height, width) of the image within the square of `sam`, in its pixels."""
    side = sam["image_size"]
    return (side, side) if sam.get("squashed") else size_in_square(image_size, side)


def places_in_square(points: Tensor, image_size: tuple[int, int], sam: dict[str, Any]) -> Tensor:
    """Points of ONE image, (..., 2), x then y, in fractions of it -> in fractions of the square."""
    if sam.get("squashed"):
        return points
    height, width = size_in_square(image_size, sam["image_size"])
    return points * points.new_tensor([width, height]) / sam["image_size"]


def logit(mask_threshold: float) -> float:
    """A probability as the logit that masks are cut at: in float32, as they are."""
    return torch.logit(torch.tensor(float(mask_threshold))).item()


def upsample_logits(low_res_logits: Tensor, image_size: tuple[int, int], sam: dict[str, Any]) -> Tensor:
    """Logits (N, 4g, 4g) of ONE image's prompts at its own resolution: to the square, padding cut off, to the image.

    Out of a squashed square it is one step, without a cut.

    Returns:
        float32 (N, H, W)
    """
    side, _, (height, width) = _on_the_way(sam, image_size)
    logits = low_res_logits.new_empty((len(low_res_logits), *image_size), dtype=torch.float32)
    for i, low_res in enumerate(low_res_logits.float()):  # one by one: only the result is large
        logits[i] = _resize(_resize(low_res, (side, side))[:height, :width], image_size)
    return logits


def threshold_masks(
    low_res_logits: Tensor, image_size: tuple[int, int], threshold: float, sam: dict[str, Any]
) -> Tensor:
    """`upsample_logits(...) > threshold` but for rounding, in less time and memory.

    Only where an outline may be is a mask brought to the image's size, one prompt after the other: where all logits
    are above the threshold, or none is, so is what is interpolated between them. A CPU goes tile by tile; elsewhere,
    where every step has to be waited for, it is one box around the object.

    Returns:
        bool (N, H, W), on the CPU.
    """
    side, cell, inside = _on_the_way(sam, image_size)
    rows, columns = (_Axis(length, out, cell) for length, out in zip(inside, image_size, strict=True))
    # Memory that numpy gives is not touched before it is written to: most of most masks never is.
    masks = torch.from_numpy(np.zeros((len(low_res_logits), *image_size), dtype=bool))
    tiles = _tiles(low_res_logits, threshold, rows, columns)
    for mask, low_res, states in zip(masks, low_res_logits, tiles, strict=True):
        if not any(map(any, states)):
            continue
        square = _resize(low_res.float(), (side, side))
        for tile_rows, tile_columns, state in _runs(states) if low_res.device.type == "cpu" else _box(states):
            y, x = rows.part(tile_rows), columns.part(tile_columns)
            if state == _ALL:
                mask[y.target, x.target] = True
            else:
                piece = _resize(square[y.source, x.source], (y.size, x.size))
                mask[y.target, x.target] = (piece[y.inner, x.inner] > threshold).cpu()
    return masks


def downsample_masks(masks: Tensor, sam: dict[str, Any]) -> Tensor:
    """Masks of ONE image, as the decoder of `sam` is to put them out.

    Args:
        masks: bool (N, H, W).

    Returns:
        float32 (N, 4g, 4g), the covered fraction of each cell of the square; 0 in the padding.
    """
    if sam.get("squashed"):
        fine = 4 * _low_side(sam)  # cells do not fall on whole pixels: smaller ones do so more nearly
        return F.avg_pool2d(F.interpolate(masks[:, None].float(), (fine, fine), mode="area"), 4)[:, 0]
    side, cell = sam["image_size"], sam["patch_size"] // 4
    height, width = size_in_square(masks.shape[-2:], side)
    covered = F.interpolate(masks[:, None].float(), (height, width), mode="area")  # (N, 1, h, w)
    square = F.pad(covered, (0, side - width, 0, side - height))
    return F.avg_pool2d(square, cell)[:, 0]


def _low_side(sam: dict[str, Any]) -> int:
    """4g"""
    side: int = 4 * (sam["image_size"] // sam["patch_size"])
    return side


def _on_the_way(sam: dict[str, Any], image_size: Sequence[int]) -> tuple[int, int, tuple[int, int]]:
    """What logits are resized to before they are resized to the image: the side of that square, its pixels along the
    side of a cell, and (height, width) of the image in it. Out of a squashed square there is no way: it is the logits
    themselves."""
    if sam.get("squashed"):
        side = _low_side(sam)
        return side, 1, (side, side)
    return sam["image_size"], sam["patch_size"] // 4, size_in_square(image_size, sam["image_size"])


def heat_in_square(
    heat: Tensor, size: Tensor, image_sizes: Sequence[tuple[int, int]] | Tensor, sam: dict[str, Any]
) -> Tensor:
    """Heatmaps over their pictures -> over the square: bilinear, 0 beside the picture.

    Args:
        heat: (N, H, W), each (h, w) of `size` (N, 2) large.
        image_sizes: N times (H, W) of the pictures.

    Returns:
        (N, 1, g, g)
    """
    grid, side = sam["image_size"] // sam["patch_size"], sam["image_size"]
    inside = torch.tensor([size_in(sam, one) for one in image_sizes], device=heat.device) / side  # (N, 2), rows first
    centers = (torch.arange(grid, device=heat.device) + 0.5) / grid  # of cells, in fractions of the square
    places = centers / inside[..., None]  # (N, 2, g), in fractions of the picture
    cells = size[..., None].to(heat)
    # Not beyond the centers of the outermost cells: what is beside them in the padded map is of no meaning.
    read = (places * cells).clamp(min=0.5).minimum(cells - 0.5)
    whole = torch.tensor(heat.shape[1:], device=heat.device)[:, None]  # (2, 1)
    y, x = (2 * read / whole - 1).unbind(1)  # (N, g) each, as grid_sample counts
    where = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)  # (N, g, g, 2)
    sampled = F.grid_sample(heat[:, None].float(), where, mode="bilinear", align_corners=False)
    rows, columns = (places < 1).unbind(1)
    return sampled * (rows[:, :, None] & columns[:, None, :])[:, None]


@dataclass(frozen=True)
class _Part:
    """Some tiles along one axis: what of the image in the square to resize to `size` pixels, and what of that (`inner`)
    is the `target` in the original. There is more than that, since interpolation reaches beyond its border."""

    source: slice
    size: int
    inner: slice
    target: slice


@dataclass(frozen=True)
class _Axis:
    """One axis of an image, in tiles that begin and end between pixels of the square and of the original.

    So parts are resized as in the whole. Where the sizes have no such place in common, there is one tile.

    Attributes:
        length: pixels in the square.
        out: pixels of the original.
        cell: pixels of the square that one low-resolution logit covers.
    """

    length: int
    out: int
    cell: int

    @cached_property
    def step(self) -> int:
        return self.length // gcd(self.length, self.out)

    @cached_property
    def tile(self) -> int:
        """Pixels of the square; whole cells."""
        least = lcm(self.step, self.cell)
        return -(-TILE * self.length // (self.out * least)) * least

    @property
    def count(self) -> int:
        return -(-self.length // self.tile)

    def part(self, tiles: slice) -> _Part:
        start, stop = tiles.start * self.tile, min(tiles.stop * self.tile, self.length)
        low, high = max(start - self.step, 0), min(stop + self.step, self.length)
        first, begin, end, last = (at * self.out // self.length for at in (low, start, stop, high))
        return _Part(slice(low, high), last - first, slice(begin - first, end - first), slice(begin, end))


def _tiles(low_res_logits: Tensor, threshold: float, rows: _Axis, columns: _Axis) -> list[list[list[int]]]:
    """The state of every tile: N times rows times columns."""
    stride = (rows.tile // rows.cell, columns.tile // columns.cell)
    reach = 2  # cells: what is interpolated twice depends on so many beyond a tile
    window: dict[str, Any] = {"kernel_size": [size + 2 * reach for size in stride], "stride": stride, "padding": reach}
    logits = low_res_logits.float()[:, None]  # (N, 1, 4g, 4g)
    highest = F.max_pool2d(logits, ceil_mode=True, **window)
    lowest = -F.max_pool2d(-logits, ceil_mode=True, **window)
    states = (highest > threshold).int() + (lowest > threshold).int()
    return states[:, 0, : rows.count, : columns.count].tolist()


def _runs(states: list[list[int]]) -> Iterator[tuple[slice, slice, int]]:
    """Runs of tiles of the same state, in each row of tiles: rows, columns, state."""
    for row, line in enumerate(states):
        start = 0
        for state, run in groupby(line):
            stop = start + len(list(run))
            if state != _NOTHING:
                yield slice(row, row + 1), slice(start, stop), state
            start = stop


def _box(states: list[list[int]]) -> Iterator[tuple[slice, slice, int]]:
    """The box around all tiles that are not empty, if there is one."""
    rows, columns = ([k for k, line in enumerate(lines) if any(line)] for lines in (states, zip(*states, strict=True)))
    if rows:
        yield slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1), _PART


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, (h, w) -> `size`."""
    return F.interpolate(image[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]
