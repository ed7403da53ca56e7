"""Image tokens -> a regular grid over the original image, whatever was resized, cropped, padded or tiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lens_adapter.devices import sent
from lens_adapter.errors import InputError
from lens_adapter.signals import TokenLayout

# An edge this close to a line of the grid, in cells, lies on it: an aligned grid of tokens is then copied exactly.
_SNAP = 1e-3


@dataclass(frozen=True)
class Raster:
    """How much each image token says about each cell of a regular grid, for a padded batch.

    A cell is as large as the median token of its sample and the cells of a sample cover its whole original image, so
    a cell that no token sees (a centre crop) exists and gets zero. Weights are areas of overlap, kept as two factors,
    divided by the area of the token: fine tiles outweigh a coarse thumbnail.

    Attributes:
        positions: long (B, n), indices of the image tokens in the sequence; the sample's first one where padded, so
            that nobody reads what a model left at its padding.
        token_mask: bool (B, n), False where a sample has fewer tokens than the batch has room for.
        boxes: float32 (B, n, 4), x0 y0 x1 y1 of each token in fractions of the original image; 0 where padded.
        size: long (B, 2), rows and columns (h, w) of each sample's own grid.
        rows: float32 (B, H, n), overlap of grid row and token; H is the largest h of the batch.
        columns: float32 (B, W, n), overlap of grid column and token, divided by the token's area.
        total: float32 (B, H, W), sum of a cell's weights; 1 where no token sees the cell.
    """

    positions: Tensor
    token_mask: Tensor
    boxes: Tensor
    size: Tensor
    rows: Tensor
    columns: Tensor
    total: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """Token values (B, n) -> weighted mean per cell (B, H, W), in full precision even under autocast."""
        with torch.autocast(values.device.type, enabled=False):
            rows, columns = self.rows.to(values.dtype), self.columns.to(values.dtype)
            grid = (rows * values[:, None]) @ columns.mT  # (B, H, n) @ (B, n, W)
            return grid / self.total.to(values.dtype)

    def weights(self, row: Tensor, column: Tensor) -> Tensor:
        """How much each token says about chosen cells: long (B, M) and (B, M) -> (B, M, n), of which each sums to 1.

        All cells at once would be cells times tokens: gigabytes for a large image.
        """
        tokens = self.rows.shape[2]
        rows, columns = (
            of.gather(1, index[..., None].expand(-1, -1, tokens))
            for of, index in ((self.rows, row), (self.columns, column))
        )
        total = self.total.flatten(1).gather(1, row * self.total.shape[2] + column)  # (B, M)
        return rows * columns / total[..., None]


def rasterize(layouts: Sequence[TokenLayout], device: torch.device | str = "cpu") -> Raster:
    """Lay a regular grid over every sample's original image; one layout per row of the batch.

    Rows that have the very same layout (prompts about one image) cost no more than one of them.

    Raises:
        InputError: a sample without image tokens, or a token whose box has no area.
    """
    for row, layout in enumerate(layouts):
        if len(layout.positions) == 0:
            raise InputError(
                f"Row {row} of the batch has no image token that looks at the image; the heatmap needs at least one. "
                "Give one image with every prompt and do not truncate the sequence."
            )
        if not bool((layout.boxes[:, 2:] > layout.boxes[:, :2]).all()):
            raise InputError(
                f"Row {row} of the batch has a token box without area; expected x0 < x1 and y0 < y1. "
                "Leave tokens that see only padding out of the layout."
            )
    own = list({id(layout): layout for layout in layouts}.values())
    if len(own) < len(layouts):
        places = {id(layout): place for place, layout in enumerate(own)}
        index = sent(torch.tensor([places[id(layout)] for layout in layouts]), device)
        alone = vars(rasterize(own, device)).items()
        return Raster(
            **{
                name: tensor.expand(len(index), *tensor.shape[1:]) if len(own) == 1 else tensor[index]
                for name, tensor in alone
            }
        )
    # On the CPU in double precision: a few thousand numbers, and some accelerators have no float64.
    boxes = pad_sequence([layout.boxes.to("cpu", torch.float64) for layout in layouts], True, torch.nan)  # (B, n, 4)
    positions = pad_sequence([layout.positions.to("cpu", torch.long) for layout in layouts], True)  # (B, n)
    token_mask = ~boxes[..., 0].isnan()  # (B, n)
    positions = torch.where(token_mask, positions, positions[:, :1])

    extent = (boxes[..., 2:] - boxes[..., :2]).nanmedian(dim=1).values  # (B, 2): width, height of the median token
    width, height = (1 / extent).round().clamp(min=1).unbind(-1)  # (B,) each
    boxes = boxes.nan_to_num(0.0)
    columns, wide = _overlap(boxes[..., 0], boxes[..., 2], width)  # (B, W, n), (B, n)
    rows, high = _overlap(boxes[..., 1], boxes[..., 3], height)  # (B, H, n), (B, n)
    area = torch.where(token_mask, wide * high, 1.0)  # a padded token has no overlap with anything
    columns = columns / area[:, None]
    total = rows @ columns.mT  # (B, H, W)

    return Raster(
        positions=sent(positions, device),
        token_mask=sent(token_mask, device),
        boxes=sent(boxes.float(), device),
        size=sent(torch.stack([height, width], dim=-1).long(), device),
        rows=sent(rows.float(), device),
        columns=sent(columns.float(), device),
        total=sent(torch.where(total > 0, total, 1.0).float(), device),
    )


def _overlap(start: Tensor, end: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Intervals (B, n) in fractions and cells per sample (B,) -> overlap (B, C, n) and length (B, n), in cells."""
    start, end = (_snap(edge * count[:, None]) for edge in (start, end))
    length = end - start
    low = torch.arange(int(count.max()), dtype=start.dtype)[None, :, None]  # (1, C, 1)
    # Padded cells lie beyond a sample's count; clamping the intervals to it leaves them without overlap.
    start, end = (edge.clamp(min=0).minimum(count[:, None])[:, None] for edge in (start, end))  # (B, 1, n)
    return (end.minimum(low + 1) - start.maximum(low)).clamp(min=0), length


def _snap(edge: Tensor) -> Tensor:
    line = edge.round()
    return torch.where((edge - line).abs() < _SNAP, line, edge)
