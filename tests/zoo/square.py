"""Architectures whose image tokens are one square grid of fixed size."""

from __future__ import annotations

from tests.tiny.pairs import tiny_pair
from tests.zoo.specimen import Specimen

SPECIMENS: dict[str, Specimen] = {
    "llava": Specimen(
        lambda: tiny_pair("llava", attention="sdpa", num_hidden_layers=1, initializer_factor=0.2), image=(70, 140)
    ),
}
