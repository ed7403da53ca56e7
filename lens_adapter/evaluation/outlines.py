"""How well outlines agree: the boundary F-measure of DAVIS (Perazzi et al., CVPR 2016)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def boundary_f(mask: np.ndarray, truth: np.ndarray, tolerance: float = 2.0) -> float:
    """Harmonic mean of the share of the mask's outline that lies near the truth's, and the reverse.

    Args:
        mask, truth: bool (H, W).
        tolerance: pixels, from the middle of a pixel to that of another.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where one of them is.
    """
    found, wanted = (_outline(torch.from_numpy(one)) for one in (mask, truth))
    if not found.any() or not wanted.any():
        return float(not found.any() and not wanted.any())
    precision = float((found & _widened(wanted, tolerance)).sum() / found.sum())
    recall = float((wanted & _widened(found, tolerance)).sum() / wanted.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: Tensor) -> Tensor:
    """The pixels of a mask (H, W) that have one of four neighbors outside it; what is beyond the picture is outside."""
    wide = F.pad(mask, (1, 1, 1, 1))
    return mask & ~(wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:])


def _widened(outline: Tensor, tolerance: float) -> Tensor:
    """All pixels at most so far from one of these."""
    reach = int(tolerance)
    step = torch.arange(-reach, reach + 1)
    disk = (step[:, None] ** 2 + step**2 <= tolerance**2).float()
    return F.conv2d(outline.float()[None, None], disk[None, None], padding=reach)[0, 0] > 0
