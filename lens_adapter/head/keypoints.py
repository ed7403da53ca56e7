"""Heatmap -> keypoints: greedy non-maximum suppression and sub-pixel refinement. No gradient, nothing learned."""

from __future__ import annotations

import torch
from torch import Tensor

from lens_adapter.signals import Keypoints


@torch.no_grad()
def find_keypoints(heat: Tensor, size: Tensor, *, count: int, radius: float, threshold: float) -> Keypoints:
    """The hottest cells of each map, no two of them within `radius`, refined below the cell.

    Each point starts at the centre of its cell, moves to the maximum of the quadratic through its 3x3 neighborhood
    (by at most one cell along each axis, and only where that quadratic has a maximum), and ends as a fraction of the
    original image. Ties go to the first cell in row-major order. Method: LENS, arXiv 2510.16785.

    Args:
        heat: (B, H, W), not negative; cells beyond `size` are ignored.
        size: long (B, 2), rows and columns (h, w) of each sample's own map.
        count: K, how many keypoints a map has at most.
        radius: in cells; cells this close to a keypoint (Euclidean) cannot become another.
        threshold: in [0, 1); a keypoint's heat is above this fraction of the map's peak. An all-zero map has none.

    Returns:
        Keypoints of B maps; what is not valid has the point (0.5, 0.5) and the score 0.
    """
    heat = heat.float()
    height, width = heat.shape[1:]
    row = torch.arange(height, device=heat.device)[:, None]  # (H, 1)
    column = torch.arange(width, device=heat.device)  # (W,)
    rows, columns = (length[:, None, None] for length in size.unbind(-1))  # (B, 1, 1) each
    remaining = heat.masked_fill((row >= rows) | (column >= columns), -torch.inf).flatten(1)  # (B, H * W)

    # Every step of the loop is a kernel of an accelerator, which takes longer to start than to run: so what lies near
    # what is looked up. `near` is over the distances of two cells, (2H - 1, 2W - 1), and `place` where a cell is in it.
    down, right = (torch.arange(1 - length, length, device=heat.device) for length in (height, width))
    near = (down[:, None] ** 2 + right**2 <= radius**2).flatten()
    place = (row * (2 * width - 1) + column).flatten()  # (H * W,)
    away = place + place[-1]

    scores, cells = [], []
    for _ in range(count):
        score, cell = remaining.max(dim=1)  # the first of equals
        scores.append(score)
        cells.append(cell)
        remaining = remaining.masked_fill(near[away - place[cell][:, None]], -torch.inf)
    score, cell = torch.stack(scores, dim=1), torch.stack(cells, dim=1)  # (B, K)
    valid = score > threshold * score[:, :1]  # the first score is the peak

    y, x = cell // width, cell % width
    dy, dx = _offset(heat, size, y, x)
    h, w = size[:, None].unbind(-1)  # (B, 1) each
    points = torch.stack([(x + dx + 0.5) / w, (y + dy + 0.5) / h], dim=-1)  # (B, K, 2)
    return Keypoints(
        points=torch.where(valid[..., None], points, 0.5),
        scores=torch.where(valid, score, 0.0),
        valid=valid,
    )


def _offset(heat: Tensor, size: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """From cells (B, K) to the maximum of their 3x3 quadratic, in cells: dy and dx, (B, K) each, in [-1, 1].

    Beyond the border the map is its own mirror image, so a peak on the border stays on it.
    """
    batch = torch.arange(len(heat), device=heat.device)[:, None, None, None]
    step = torch.arange(-1, 2, device=heat.device)
    last_y, last_x = (size - 1)[:, None, None].unbind(-1)  # (B, 1, 1) each
    down, right = _reflect(y[..., None] + step, last_y), _reflect(x[..., None] + step, last_x)  # (B, K, 3) each
    around = heat[batch, down[..., :, None], right[..., None, :]]  # (B, K, 3, 3)
    (north_west, north, north_east), (west, center, east), (south_west, south, south_east) = (
        line.unbind(-1) for line in around.unbind(-2)
    )

    gradient_y = (south - north) / 2
    gradient_x = (east - west) / 2
    curve_yy = south - 2 * center + north
    curve_xx = east - 2 * center + west
    curve_xy = (south_east - south_west - north_east + north_west) / 4

    determinant = curve_yy * curve_xx - curve_xy**2
    has_maximum = (determinant > 0) & (curve_xx < 0)  # the Hessian is negative definite
    safe = torch.where(has_maximum, determinant, 1.0)
    dy = (curve_xy * gradient_x - curve_xx * gradient_y) / safe  # minus the inverse Hessian times the gradient
    dx = (curve_xy * gradient_y - curve_yy * gradient_x) / safe
    dy, dx = (torch.where(has_maximum, step.clamp(-1.0, 1.0), 0.0) for step in (dy, dx))
    return dy, dx


def _reflect(index: Tensor, last: Tensor) -> Tensor:
    """-1 -> 1 and last + 1 -> last - 1; a single cell is its own neighbor."""
    index = index.abs()
    return torch.where(index > last, 2 * last - index, index).clamp(min=0)
