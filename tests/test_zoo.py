"""Every architecture of AutoModelForImageTextToText: it works, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter.vlm.anatomy import REFUSED
from lens_adapter.vlm.layout import token_layouts
from tests.zoo import square, uneven, variable
from tests.zoo.checks import examine, noise_image

ZOO = {**square.SPECIMENS, **uneven.SPECIMENS, **variable.SPECIMENS}


@pytest.mark.parametrize("architecture", sorted(ZOO))
def test_architecture_works(architecture):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    examine(ZOO[architecture])


def test_llava_over_a_tower_with_a_grid_for_every_image():
    examine(uneven.LLAVA_OVER_PIXTRAL)


@pytest.mark.parametrize("architecture", sorted(uneven.SPECIMENS))
def test_images_of_several_sizes_keep_their_places(architecture):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    specimen = uneven.SPECIMENS[architecture]
    model, processor = specimen.build()
    height, width = specimen.image
    sizes = [(height, width), (width, height), (height, height)]
    images = [noise_image(size) for size in sizes]
    together = token_layouts(model, processor, specimen.ask(processor, images), sizes)
    for layout, image, size in zip(together, images, sizes, strict=True):
        (alone,) = token_layouts(model, processor, specimen.ask(processor, [image]), [size])
        assert layout.grid == alone.grid
        torch.testing.assert_close(layout.boxes, alone.boxes)
    assert len({layout.grid for layout in together}) == 3


@pytest.mark.xfail(reason="the zoo is being filled", strict=True)
def test_no_architecture_is_unexamined():
    assert set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) <= set(ZOO) | set(REFUSED)
    assert not set(ZOO) & set(REFUSED)
