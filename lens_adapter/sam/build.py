"""The mask decoder that a config names."""

from __future__ import annotations

from typing import Any

from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.sam.families import family_of
from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.sam.transformers_family import FamilyDecoder


def build_decoder(sam: dict[str, Any]) -> MaskDecoder:
    """A mask decoder with random weights.

    Args:
        sam: the complete dict `LensConfig.sam`.
    """
    return SamDecoder(sam) if family_of(sam) is None else FamilyDecoder(sam)
