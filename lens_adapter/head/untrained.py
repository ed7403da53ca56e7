"""A head that was never trained is told by its weights: they are still those that it began with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

_SMALL = 4096  # numbers; what is larger is not held twice


def small_weights(head: nn.Module) -> dict[str, Tensor]:
    """Copies of the small weights of a new head, to be compared later."""
    weights = head.named_parameters()
    return {name: weight.detach().clone() for name, weight in weights if weight.numel() <= _SMALL}


def warn_if_untrained(head: nn.Module, began: Mapping[str, Tensor], fusion: str) -> None:
    """Say so of a head whose small weights are all what they were.

    Args:
        head: as it is now.
        began: what `small_weights` returned when it was new.
        fusion: what kind of head it is, as in `LensConfig.fusion`.
    """
    weights = dict(head.named_parameters())
    if all(torch.equal(weights[name], weight.to(weights[name])) for name, weight in began.items()):
        logger.warning(
            f"This {fusion!r} head was never trained: from_model made it, and its masks mean nothing "
            "yet. Train it (LensTrainer, or lens-adapter train), load a trained one "
            '(LensAdapter.from_pretrained), or fit a readout in seconds: from_model(..., fusion="readout").fit().'
        )
