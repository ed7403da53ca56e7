"""Tiles: which of them make an image, and what is refused."""

from __future__ import annotations

import pytest
import torch

from lens_adapter.errors import InputError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.layout.tokens import token_layouts
from tests.zoo import stitched
from tests.zoo.checks import noise_image

LARGE, SMALL = (100, 150), (66, 100)  # (H, W): six tiles and a thumbnail; one tile


@pytest.fixture(scope="module")
def tiled():
    """A model whose inputs do not say which tiles make an image."""
    return stitched.SPECIMENS["lfm2_vl"].build()


def ask(processor, *sizes):
    images = [noise_image(size) for size in sizes]
    return stitched.SPECIMENS["lfm2_vl"].ask(processor, images)


def test_several_images_of_one_prompt(tiled):
    model, processor = tiled
    images = [noise_image(SMALL), noise_image(LARGE)]
    inputs = processor(images=[images], text=["<image> and <image>"], return_tensors="pt")
    small, large = token_layouts(find_anatomy(model), processor, inputs, [SMALL, LARGE])
    (alone,) = token_layouts(find_anatomy(model), processor, ask(processor, LARGE), [LARGE])
    assert small.grid == (3, 4) and small.positions.max() < large.positions.min()
    assert torch.equal(large.boxes, alone.boxes)


def test_without_sizes_each_tile_is_a_picture(tiled):
    model, processor = tiled
    layouts = token_layouts(find_anatomy(model), processor, ask(processor, LARGE, SMALL))
    assert [layout.grid for layout in layouts] == [(2, 2)] * 6 + [(3, 4)] * 2


def test_sizes_of_images_with_other_tiles(tiled):
    model, processor = tiled
    inputs = ask(processor, LARGE, SMALL)
    with pytest.raises(InputError, match=r"each of 8 images or tiles, got .* such images make \[7, 7\] of them"):
        token_layouts(find_anatomy(model), processor, inputs, [LARGE, LARGE])
    with pytest.raises(InputError, match=r"\(66, 100\) has token grids \[\(3, 4\)\] .* the inputs have \[\(2, 2\)\]"):
        token_layouts(find_anatomy(model), processor, inputs, [SMALL, LARGE])


def test_images_that_are_not_tiled_together_are_refused():
    model, processor = stitched.SPECIMENS["llava_onevision"].build()
    images = [noise_image((70, 120))] * 2
    inputs = processor(images=[images], text=["<image> and <image>"], return_tensors="pt")
    with pytest.raises(InputError, match="one image per prompt"):
        token_layouts(find_anatomy(model), processor, inputs, [(70, 120)] * 2)
