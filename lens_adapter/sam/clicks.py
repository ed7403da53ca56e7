"""Masks from clicks by an untouched SAM: one for every point, united where they are not the same thing.

Several clicks in one call mean one object to SAM. So each point of a head is a call of its own; of a person's clicks,
those on one thing are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.signals import SparsePrompts

SAME_THING = 0.3  # a mask that lies in those before it by more than this share is of one of their things

NOTHING = -100.0  # logits of a mask without a click


def masks_of_clicks(
    decoder: MaskDecoder,
    prompts: SparsePrompts,
    image_embeddings: Tensor,
    image_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Decode every shown point of N prompts by itself.

    Args:
        decoder: SAM as published.
        prompts: without vectors.
        image_embeddings, image_index: as for `MaskDecoder.forward`.
        image_sizes: N times (H, W).

    Returns:
        logits: float32 (N, 4g, 4g), of the things together.
        quality: float32 (N,), SAM's own score (`Decoded.score`) of the mask of the hottest point.
        things: N times float32 (K_i, 4g, 4g), the logits of each different thing, the hottest point's first.
    """
    rows, points = prompts.shown.nonzero(as_tuple=True)  # (M,) each, prompts in order, the hottest point first
    places = prompts.keypoints.points[rows, points][:, None]  # (M, 1, 2)
    sparse = decoder.clicks(places, [image_sizes[row] for row in rows.tolist()])
    found = decoder(image_embeddings, image_index[rows], sparse)
    decoded, quality = found.logits, found.score
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


@torch.no_grad()
def clicked_mask(
    decoder: MaskDecoder, image_embedding: Tensor, points: Tensor, foreground: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """What a person's clicks on foreground and background of one picture mean.

    Foreground clicks on one thing are one call, so that each refines its mask; different things are a call each, and
    their masks are united. The background clicks are part of every call. Where SAM does not follow one of these, what a
    click there alone would draw is taken away, unless a foreground click is in it.

    Args:
        decoder: SAM as published.
        image_embedding: (E, g, g), from `MaskDecoder.encode_images`.
        points: float (K, 2), x then y, in fractions of the picture.
        foreground: bool (K,).
        image_size: (H, W) of the picture.

    Returns:
        float32 (4g, 4g), logits for `MaskDecoder.masks`; without a foreground click, -inf.
    """
    first = torch.zeros(1, dtype=torch.long, device=decoder.device)

    def decode(which: list[int], labels: Tensor) -> Tensor:
        sparse = decoder.clicks(points[which][None], [image_size], labels[which][None])
        return decoder(image_embedding[None], first, sparse).logits[0]

    def holds(logits: Tensor, k: int) -> bool:
        x, y = (decoder.places(points[k].cpu(), image_size) * len(logits)).long().clamp(0, len(logits) - 1)
        return bool(logits[y, x] > 0)

    alone = [decode([k], torch.ones_like(foreground)) for k in range(len(points))]
    added, removed = (flags.nonzero()[:, 0].tolist() for flags in (foreground, ~foreground))
    things: list[list[int]] = []  # the clicks on each
    for k in added:
        same = [thing for thing in things if any(_overlap(alone[k], alone[other]) for other in thing)]
        things = [thing for thing in things if thing not in same] + [[k, *(j for thing in same for j in thing)]]
    if not things:
        return torch.full((4 * image_embedding.shape[-1],) * 2, -torch.inf)
    logits = torch.stack([decode([*thing, *removed], foreground) for thing in things]).amax(0)
    for k in removed:
        if holds(logits, k) and not any(holds(alone[k], other) for other in added):
            logits = torch.minimum(logits, -alone[k])
    return logits


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two masks, given as logits, are of one thing."""
    mask, second = one > 0, other > 0
    return bool((mask & second).sum() > SAME_THING * torch.minimum(mask.sum(), second.sum()))
