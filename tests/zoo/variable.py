"""Architectures with one grid per image, given in `image_grid_thw`."""

from __future__ import annotations

from tests.tiny.pairs import tiny_pair
from tests.zoo.specimen import Specimen

SPECIMENS: dict[str, Specimen] = {
    "qwen2_vl": Specimen(lambda: tiny_pair("qwen2_vl", attention="sdpa", depth=1, initializer_range=0.05)),
}
