"""Every architecture of AutoModelForImageTextToText: it works, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter.vlm.anatomy import REFUSED
from lens_adapter.vlm.layout import token_layouts
from tests.zoo import stitched, tiles, uneven
from tests.zoo.checks import examine, noise_image
from tests.zoo.specimens import ZOO, architectures

SEVERAL_TILES = {**stitched.SPECIMENS, **tiles.SPECIMENS}


def specimen_of(architecture):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    for module in ZOO[architecture].requires:
        pytest.importorskip(module)
    return ZOO[architecture]


@pytest.mark.parametrize("architecture", sorted(ZOO))
def test_architecture_works(architecture):
    examine(specimen_of(architecture))


@pytest.mark.parametrize("architecture", sorted(SEVERAL_TILES))
def test_images_of_a_batch_are_told_apart(architecture):
    specimen = specimen_of(architecture)
    model, processor = specimen.build()
    height, width = specimen.image
    sizes = [(height, width), (height * 2 // 3, width * 2 // 3)]  # of which the second makes fewer tiles, if it can
    images = [noise_image(size) for size in sizes]
    layouts = token_layouts(model, processor, specimen.ask(processor, images), sizes)
    for image, size, layout in zip(images, sizes, layouts, strict=True):
        (alone,) = token_layouts(model, processor, specimen.ask(processor, [image]), [size])
        assert torch.equal(layout.boxes, alone.boxes)
        assert len((layout.positions - alone.positions).unique()) == 1  # the padding


@pytest.mark.parametrize("architecture", sorted(tiles.SPECIMENS))
def test_images_of_one_prompt_are_told_apart(architecture):
    specimen = specimen_of(architecture)
    model, processor = specimen.build()
    height, width = specimen.image
    sizes = [(height, width), (height // 2, width)]
    if architecture == "perception_lm":  # its processor wants as many tiles of each image
        sizes = [(height, width)] * 2
    images = [noise_image(size) for size in sizes]
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]}
    inputs = processor(images=[images], text=[processor.apply_chat_template([turn])], return_tensors="pt")
    first, second = token_layouts(model, processor, inputs, sizes)
    assert first.positions.max() < second.positions.min()
    for image, size, layout in zip(images, sizes, (first, second), strict=True):
        (alone,) = token_layouts(model, processor, specimen.ask(processor, [image]), [size])
        assert torch.equal(layout.boxes, alone.boxes)
        assert torch.equal(layout.positions.diff(), alone.positions.diff())


def test_llava_over_a_tower_with_a_grid_for_every_image():
    examine(uneven.LLAVA_OVER_PIXTRAL)


@pytest.mark.parametrize("architecture", sorted(uneven.SPECIMENS))
def test_images_of_several_sizes_keep_their_places(architecture):
    specimen = specimen_of(architecture)
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
    assert architectures() <= set(ZOO) | set(REFUSED)
    assert not set(ZOO) & set(REFUSED)
