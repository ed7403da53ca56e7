"""Tiles: which of them make an image, where each lies, and what cannot be said of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from lens_adapter.errors import InputError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.layout.frames import NOWHERE
from lens_adapter.vlm.layout.tiled import tiled
from lens_adapter.vlm.layout.tokens import token_layouts
from tests.tiny.frames import measured_frames
from tests.zoo.checks import noise_image
from tests.zoo.tiles import SPECIMENS, TILE, make


def layout_inputs(architecture: str, size: tuple[int, int] = (100, 150)):
    model, processor = SPECIMENS[architecture].build()
    return model, processor, dict(SPECIMENS[architecture].ask(processor, [noise_image(size)]))


# (57, 100): one row of pixels reaches into the lower tiles. (120, 60): tiles on the right hold 4 columns of it.
@pytest.mark.parametrize("size", [(100, 160), (57, 100), (120, 60), (60, 120), (56, 300)])
def test_padded_tiles_are_measured_or_left_out(size):
    processor = make("Llama4ImageProcessor", size={"height": TILE, "width": TILE}, max_patches=6)

    def show(image: Image.Image) -> list[Tensor]:
        return list(processor(images=[image], return_tensors="pt")["pixel_values"].float().mean(1))

    frames = measured_frames(show, size)
    rows, columns = processor(images=[noise_image(size)], return_tensors="pt")["aspect_ratios"][0].tolist()
    scale = min(1, rows * TILE / size[0], columns * TILE / size[1])
    height, width = int(size[0] * scale), int(size[1] * scale)  # of the image on the tiles' canvas
    assert rows * columns > 1
    assert len(frames) == rows * columns + 1
    places = [(row, column) for row in range(rows) for column in range(columns)]
    for (row, column), frame in zip(places, frames[:-1], strict=True):
        if NOWHERE in frame:
            assert min(height - row * TILE, width - column * TILE) < 3  # pixels that show any of the image
            continue
        for (scale, offset), start, length in zip(frame, (row * TILE, column * TILE), (height, width), strict=True):
            assert offset == pytest.approx(start / length, abs=0.02)
            end = min(scale + offset, 1)
            assert end == pytest.approx(min((start + TILE) / length, 1), abs=0.02)
    for line in frames[-1]:  # the whole image
        assert line == pytest.approx((1, 0), abs=0.02)


def test_a_picture_of_nothing_but_padding_is_nowhere():
    def show(image: Image.Image) -> list[Tensor]:
        seen = torch.tensor(np.array(image.convert("L"), dtype=np.float32))
        return [torch.zeros(8, 8), seen]

    nothing, whole = measured_frames(show, (60, 40))
    assert nothing == (NOWHERE, NOWHERE)
    for line in whole:
        assert line == pytest.approx((1, 0), abs=0.01)
    with pytest.raises(InputError, match="too thin"):
        measured_frames(lambda image: show(image)[:1], (60, 40))


def test_without_image_sizes_each_tile_is_a_picture_of_its_own():
    model, processor, inputs = layout_inputs("internvl")
    layouts = token_layouts(find_anatomy(model), processor, inputs)
    assert len(layouts) == 7
    assert all(layout.grid == (2, 2) and layout.boxes.amax() == 1 for layout in layouts)


def test_texts_that_were_cut_off_are_refused():
    _, _, inputs = layout_inputs("internvl")
    inputs["input_ids"] = inputs["input_ids"][:, :20]
    with pytest.raises(InputError, match="truncated"):
        tiled(inputs, image_token=267, patch=14)


def test_sizes_of_other_images_are_refused():
    model, processor, inputs = layout_inputs("internvl")
    with pytest.raises(InputError, match="tiles"):
        token_layouts(find_anatomy(model), processor, inputs, [(100, 100)])
    with pytest.raises(InputError, match="tiles"):
        token_layouts(find_anatomy(model), processor, inputs, [(100, 150), (100, 150)])


def test_an_image_too_thin_to_be_measured_as_it_was_tiled_is_refused():
    model, processor, inputs = layout_inputs("llama4", (5, 40))
    with pytest.raises(InputError, match="enlarge"):
        token_layouts(find_anatomy(model), processor, inputs, [(5, 40)])


@pytest.mark.skipif(not hasattr(transformers, "GraniteDoclingConfig"), reason="not in this version of transformers")
def test_a_finer_route_has_more_tokens_per_tile():
    model, processor = SPECIMENS["granite_docling"].build()
    processor.image_processor.fine_route = True
    inputs = SPECIMENS["granite_docling"].ask(processor, [noise_image((100, 150))])
    (layout,) = token_layouts(find_anatomy(model), processor, inputs, [(100, 150)])
    assert "tile_fine_mask" in inputs
    assert len(layout.positions) == 7 * 16
    assert torch.allclose(layout.boxes[0], torch.tensor([0, 0, 1 / 12, 1 / 8]), atol=0.005)
