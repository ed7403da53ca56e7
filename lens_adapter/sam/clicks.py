"""Masks from clicks by an untouched SAM: one for every point, united where they are not the same thing.

Several clicks in one call mean one object to SAM; so each point is a call of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.signals import SparsePrompts

SAME_THING = 0.3  # a mask that lies in those before it by more than this share is of one of their things

NOTHING = -100.0  # logits of a mask without a click


def masks_of_clicks(
    decoder: SamDecoder,
    prompts: SparsePrompts,
    image_embeddings: Tensor,
    image_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Decode every shown point of N prompts by itself.

    Args:
        decoder: SAM as published.
        prompts: without vectors.
        image_embeddings, image_index: as for `SamDecoder.forward`.
        image_sizes: N times (H, W).

    Returns:
        logits: float32 (N, 4g, 4g), of the things together.
        quality: float32 (N,), SAM's own estimate for the mask of the hottest point.
        things: N times float32 (K_i, 4g, 4g), the logits of each different thing, the hottest point's first.
    """
    rows, points = prompts.shown.nonzero(as_tuple=True)  # (M,) each, prompts in order, the hottest point first
    places = prompts.keypoints.points[rows, points][:, None]  # (M, 1, 2)
    sparse = decoder.clicks(places, [image_sizes[row] for row in rows.tolist()])
    decoded, quality = decoder(image_embeddings, image_index[rows], sparse)
    logits, best, things = [], [], []
    for row in range(len(prompts.shown)):
        own = (rows == row).nonzero()[:, 0]
        kept = _different(decoded[own])
        if len(kept):
            things.append(kept)
            logits.append(kept.amax(0))
            best.append(quality[own[0]])
        else:  # no heat at all: nothing to click on
            things.append(decoded.new_zeros(0, *decoded.shape[1:]))
            logits.append(decoded.new_full(decoded.shape[1:], NOTHING))
            best.append(quality.new_zeros(()))
    return torch.stack(logits), torch.stack(best), things


def _different(logits: Tensor) -> Tensor:
    """Of logits (K, s, s), the hottest point's first, those that are not of a thing before them."""
    kept: list[Tensor] = []
    covered = torch.zeros_like(logits[0], dtype=torch.bool) if len(logits) else logits
    for one in logits:
        mask = one > 0
        if kept and (mask & covered).sum() > SAME_THING * mask.sum():
            continue
        kept.append(one)
        covered = covered | mask
    return torch.stack(kept) if kept else logits
