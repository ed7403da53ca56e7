"""The table of published SAMs says what can be counted, and the docs show that table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

from lens_adapter import LensConfig
from lens_adapter.config import SAM_VARIANTS
from lens_adapter.errors import LensConfigError
from lens_adapter.sam.build import build_decoder
from lens_adapter.sam.families import FAMILIES
from lens_adapter.sam.published import PUBLISHED, SEGMENT_ANYTHING, published_table

ROOT = Path(__file__).parents[2]
INSTALLED = [name for name, one in PUBLISHED.items() if one.family in {SEGMENT_ANYTHING, *CONFIG_MAPPING}]


@pytest.mark.parametrize("name", INSTALLED)
def test_costs_are_what_is_counted(name):
    one = PUBLISHED[name]
    if one.config is None and one.family != SEGMENT_ANYTHING:  # its own config is on the Hub: its class's defaults
        sam = LensConfig(sam={"family": one.family, "config": {}}).sam
    else:
        sam = LensConfig(sam=name).sam
        assert sam["weights"] == one.weights and sam["variant"] == name
    with torch.device("meta"):
        decoder = build_decoder({**sam, "include_image_encoder": True}).eval()
    encoder, learned = (
        sum(parameter.numel() for parameter in part.parameters()) / 1e6
        for part in (decoder.image_encoder, decoder.mask_decoder)
    )
    assert (round(encoder, 1), round(learned, 2)) == (one.encoder, one.decoder)
    if one.operations > 400 and name != "sam2.1-base-plus":  # counting takes seconds; of each kind one is enough
        return
    pixels = torch.empty(1, 3, sam["image_size"], sam["image_size"], device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedding = decoder._encode(pixels)
    assert embedding.numel() * 4 / 2**20 == one.embedding
    assert round(counter.get_total_flops() / 1e9, 1) == one.operations


def test_every_name_of_segment_anything_is_in_the_table():
    ours = {name: one for name, one in PUBLISHED.items() if one.family == SEGMENT_ANYTHING}
    assert ours.keys() == SAM_VARIANTS.keys()
    assert {name: one.weights for name, one in ours.items()} == {k: v["weights"] for k, v in SAM_VARIANTS.items()}
    assert {one.family for one in PUBLISHED.values()} == {SEGMENT_ANYTHING, *FAMILIES} - {"sam"}


def test_what_the_installed_transformers_lacks_is_named():
    lacking = [name for name in FAMILIES if name not in CONFIG_MAPPING]
    assert set(lacking) <= {"sam3_tracker"}
    for family in lacking:
        for sam in ("sam3", {"family": family, "config": {}}):
            with pytest.raises(LensConfigError, match=rf"{FAMILIES[family].title}.*came with transformers 5"):
                LensConfig(sam=sam)


def test_the_page_shows_the_table():
    assert published_table() in (ROOT / "docs" / "sam.md").read_text(encoding="utf-8")
