"""One mask for "both cars" -> a mask for each car. Functions of tensors: nothing here is learned, or has a picture.

Things that do not touch are parts of the mask that do not touch. Where some do, their keypoints tell them apart. The
two constants were chosen on validation scenes of the built-in world; MODEL_CARD.md has what came of it on others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# A part of the mask is a thing if it has a keypoint, or at least this share of the largest part's area: others are
# specks, or what something in front cuts off, and go to the nearest thing.
SMALLEST_SHARE = 0.2
# Two keypoints are on one thing if the logits between them stay above this share of the lower of their own...
SMALLEST_DIP = 0.5
# ... or, where each keypoint was decoded alone, if their masks have this IoU.
SAME_MASK = 0.5
_REACH = 2  # cells: so far beyond its cells, what is interpolated from them can be in a mask
_STEPS = 33  # between two keypoints: no thing is missed, of 8 along the side of a picture


def separate(logits: Tensor, points: Tensor, *, level: float = 0.0, point_logits: Tensor | None = None) -> Tensor:
    """Which thing each cell of a mask belongs to.

    Args:
        logits: (h, w), of the united mask, at the decoder's own resolution.
        points: (K, 2), the prompt's keypoints, x then y, in fractions of that map; those beside the mask do not count.
        level: the mask is where logits are above this.
        point_logits: (K, h, w), masks of the keypoints decoded one by one, if there are any. They, not the places of
            the keypoints, then say what is one thing, and where it ends.

    Returns:
        long (h, w), on the CPU: 0 outside of the mask, 1 on the largest thing, 2 on the next, ...
    """
    depth = logits.float().cpu() - level
    mask = depth > 0
    components = _components(mask)
    numbers, sizes = components[mask].unique(return_counts=True)
    if not len(numbers):
        return components
    side = torch.tensor(depth.shape)
    cells = (points.cpu().flip(-1) * side).long().clamp(min=0).minimum(side - 1)  # (K, 2), row and column
    under = components[cells[:, 0], cells[:, 1]]  # (K,)
    things = numbers[(sizes >= SMALLEST_SHARE * sizes.max()) | torch.isin(numbers, under)]
    components = _grown(components.where(torch.isin(components, things), 0), mask)

    labels, count = torch.zeros_like(components), 0
    for thing in things:
        inside, own = components == thing, (under == thing).nonzero()[:, 0]  # (h, w); (k,)
        labels[inside] = count + 1
        if len(own) > 1:
            if point_logits is None:
                same, nearness = _without_dip(depth, cells[own]), -_distances(cells[own], mask.shape)
            else:
                nearness = point_logits[own].float().cpu()  # (k, h, w)
                same = _alike(((nearness > level) & inside).flatten(1))
            labels[inside] = (count + 1 + _groups(same)[nearness.argmax(0)])[inside]
        count = int(labels.max())
    return _largest_first(labels)


def of_things(things: Tensor, *, level: float = 0.0) -> Tensor:
    """As `separate`, of the mask that unites things which were decoded apart.

    Args:
        things: (K, h, w), logits of each.
        level: the mask is where one of them is above this.

    Returns:
        long (h, w), on the CPU: a cell belongs to the thing whose logit is highest there.
    """
    if not len(things):
        return torch.zeros(things.shape[1:], dtype=torch.long)
    highest, which = things.float().cpu().max(0)
    return _largest_first((which + 1) * (highest > level))


def at_full_size(labels: Tensor, mask: Tensor, masks_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The things of one prompt's mask at its image's own resolution.

    Args:
        labels: long (h, w), from `separate`.
        mask: bool (H, W), on the CPU: the prompt's mask, from the same logits.
        masks_of: logits (1, h, w) -> bool (1, H, W), on the CPU: as `mask` was made, but cut at 0.

    Returns:
        bool (K, H, W): disjoint, together `mask`. One thing alone shares the memory of `mask`.
    """
    if labels.max() <= 1 or not mask.any():
        return mask[None][: int(mask.any())]
    around = labels
    for _ in range(_REACH):
        around = around.where(around > 0, _highest_around(around))
    rest, parts = mask.clone(), []
    for k in range(2, int(labels.max()) + 1):
        part = masks_of((around == k).float()[None] - 0.5)[0] & rest
        rest ^= part
        parts.append(_compact(part))
    parts.insert(0, _compact(rest))  # so nothing is left over where three meet
    shown = [(box, part) for box, part in parts if part.numel()]  # what lies in the padding has no pixel
    masks = torch.from_numpy(np.zeros((len(shown), *mask.shape), dtype=bool))  # not touched before it is written to
    for one, (box, part) in zip(masks, shown, strict=True):
        one[box] = part
    return masks


def _components(mask: Tensor) -> Tensor:
    """bool (h, w) -> long (h, w): 0 outside, and a number for each part that hangs together by its cells' sides."""
    labels = torch.arange(1, mask.numel() + 1).view_as(mask) * mask
    while True:
        # The highest number spreads; and whoever has a cell's number takes that cell's newest: far steps, few rounds.
        spread = _highest_around(labels) * mask
        spread = torch.cat([spread.new_zeros(1), spread.flatten()])[spread]
        if torch.equal(spread, labels):
            return labels
        labels = spread


def _grown(labels: Tensor, mask: Tensor) -> Tensor:
    """What of the mask has no label gets the nearest one, by steps of a cell through or outside of the mask."""
    spread = labels
    while (mask & (spread == 0)).any():
        spread = spread.where(spread > 0, _highest_around(spread))
    return spread * mask


def _highest_around(labels: Tensor) -> Tensor:
    """(h, w), of each cell and the four beside it."""
    wide = F.pad(labels, (1, 1, 1, 1))
    beside = (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:])
    return torch.stack([labels, *beside]).amax(0)


def _without_dip(depth: Tensor, cells: Tensor) -> Tensor:
    """bool (k, k): do the logits on the straight line between two cells (k, 2) stay high?"""
    along = torch.linspace(0, 1, _STEPS)[:, None]  # (steps, 1)
    line = torch.lerp(cells[:, None, None].float(), cells[None, :, None].float(), along).round().long()
    own = depth[cells[:, 0], cells[:, 1]]
    return depth[line[..., 0], line[..., 1]].amin(-1) >= SMALLEST_DIP * torch.minimum(own[:, None], own)


def _alike(masks: Tensor) -> Tensor:
    """bool (k, cells) -> bool (k, k): do two masks show the same?"""
    flat = masks.float()
    both, area = flat @ flat.T, flat.sum(1)
    return both >= SAME_MASK * (area[:, None] + area - both)


def _groups(same: Tensor) -> Tensor:
    """bool (k, k), symmetric -> long (k,): what is the same as the same is the same; numbered from 0."""
    linked = same | torch.eye(len(same), dtype=torch.bool)
    for _ in range(len(same).bit_length()):
        linked = (linked.float() @ linked.float()) > 0
    _, numbered = torch.unique(linked.int().argmax(1), return_inverse=True)
    return torch.as_tensor(numbered)


def _distances(cells: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(k, h, w), squared, from each of the cells (k, 2)."""
    rows, columns = (torch.arange(length) for length in shape)
    return (rows[:, None] - cells[:, 0, None, None]) ** 2 + (columns - cells[:, 1, None, None]) ** 2


def _largest_first(labels: Tensor) -> Tensor:
    """Labels 1, 2, ... by falling area; 0 stays 0, and what has no cell has no label."""
    sizes = labels.flatten().bincount(minlength=2)[1:]
    order = sizes.argsort(descending=True, stable=True)
    ranks = torch.zeros(len(sizes) + 1, dtype=torch.long)
    ranks[order + 1] = torch.arange(1, len(sizes) + 1)
    return ranks[labels]


def _compact(mask: Tensor) -> tuple[tuple[slice, slice], Tensor]:
    """bool (H, W) -> the box around what is set, and what of the mask is in it."""
    pixels = mask.numpy()  # whose `any` is ten times as fast
    rows, columns = (_span(np.asarray(pixels.any(axis))) for axis in (1, 0))
    return (rows, columns), mask[rows, columns].clone()


def _span(flags: np.ndarray) -> slice:
    """From the first that is set to the last; empty where none is."""
    places = np.flatnonzero(flags)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
