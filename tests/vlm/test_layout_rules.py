"""Sizes that were not seen before: told by rules, where measurements bear these out, and measured where not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lens_adapter.errors import InputError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout import measured, tokens
from lens_adapter.vlm.layout.measured import LESSONS, Measured, Sizes, measure
from lens_adapter.vlm.layout.rules import apart
from lens_adapter.vlm.layout.single import ImageTokens, Window, fixed_grid
from lens_adapter.vlm.layout.tokens import token_layouts
from tests.tiny.pairs import tiny_pair
from tests.zoo.checks import noise_image
from tests.zoo.specimens import ZOO, architectures

# Sizes of photographs, none of them a lesson, and all of classes that have others beside.
SIZES = ((480, 640), (427, 640), (333, 500), (500, 375), (640, 481))
CLOSE = 0.08  # tokens that a rule's edges lie off measured ones, at most
# What each way of fitting an image into pictures is found in: {specimen: fits of its windows}.
FOUND = {
    "llava": ["cover"],
    "deepseek_vl": ["contain"],
    "paligemma": ["stretch"],
    "qwen2_5_vl": ["stretch"],
    "mistral3": ["stretch"],
    "kimi_k25": ["keep"],
    "llava_next": ["stretch", "contain"],
    "llava_onevision": ["stretch", "contain"],
}
TILED = ("internvl", "mllama", "molmo2")  # no rule is known for these


def shows(name: str) -> Callable[[Image.Image], list[ImageTokens]]:
    """What a specimen's processor makes of a picture."""
    if name not in architectures():
        pytest.skip("not in this version of transformers")
    model, processor = ZOO[name].build()
    anatomy = find_anatomy(model)
    layout = tokens._known_layout(anatomy)
    read = tokens._reader(layout, anatomy)
    return lambda picture: read(tokens._preprocess(processor, picture, layout.from_text))


@cache
def taught(name: str) -> tuple[Callable[[Image.Image], list[ImageTokens]], Sizes]:
    """A specimen, and what is known of it once every class of `SIZES` was met."""
    show, sizes = shows(name), Sizes()
    for size in SIZES:
        sizes.tell(show, size, show(noise_image(size))[0])
    return show, sizes


@pytest.mark.parametrize("name", FOUND)
def test_rules_that_are_found(name):
    _, sizes = taught(name)
    assert [{rule.fit for rule in one.rules} for one in sizes.told[len(FOUND[name])]] == [{fit} for fit in FOUND[name]]
    assert all(sizes.borne_out.values())


@pytest.mark.parametrize("name", FOUND)
def test_a_new_size_is_told_without_showing_the_processor_anything_and_as_it_is_measured(name):
    show, sizes = taught(name)
    for size in SIZES:
        (image,) = show(noise_image(size))
        told = sizes.tell(lambda picture: pytest.fail("the processor was shown a picture"), size, image)
        found = measure(show, size)
        assert told.grids == found.grids and told.shapes == found.shapes
        assert max(off for off, _ in apart(told.frames, found.frames, image.windows)) < CLOSE


@pytest.mark.parametrize("name", TILED)
def test_where_no_rule_is_known_every_size_is_measured(name):
    show, sizes = taught(name)
    assert sizes.told == {} and not sizes.borne_out
    assert sizes.tell(show, (480, 640), show(noise_image((480, 640)))[0]) is None


def fit_of(scale: Callable[[int, int], float]) -> Callable[[Image.Image], list[ImageTokens]]:
    """Pictures of 56 x 56 pixels with the image in their top left corner, resized by scale(H, W)."""

    def show(picture: Image.Image) -> list[ImageTokens]:
        by = scale(picture.height, picture.width)
        resized = picture.resize((round(picture.width * by), round(picture.height * by)), Image.Resampling.BILINEAR)
        square = Image.new("RGB", (56, 56))
        square.paste(resized)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255  # (3, H, W)
        return fixed_grid({"pixel_values": values[None]}, patch=14)

    return show


def test_a_rule_that_fails_in_a_class_of_sizes_is_not_used_there():
    """A processor that shows less of what is larger than 600 pixels, which no lesson is."""
    show = fit_of(lambda height, width: 56 / max(height, width) * (1.5 if max(height, width) > 600 else 1))
    sizes = Sizes()
    assert sizes.tell(show, (300, 400), show(noise_image((300, 400)))[0]) is not None
    assert sizes.tell(show, (700, 900), show(noise_image((700, 900)))[0]) is None
    assert sorted(sizes.borne_out.values()) == [False, True]


def test_what_is_told_does_not_depend_on_the_sizes_that_were_met_before():
    show, one, other = shows("llava"), Sizes(), Sizes()
    images = {size: show(noise_image(size))[0] for size in SIZES}
    first = {size: one.tell(show, size, images[size]).frames for size in SIZES}
    assert first == {size: other.tell(show, size, images[size]).frames for size in reversed(SIZES)}


def test_a_window_of_another_shape_is_not_what_the_rules_are_about():
    show, sizes = taught("llava")
    (image,) = show(noise_image((480, 640)))
    (window,) = image.windows
    other = replace(window, pixels=torch.zeros(28, 56), grid=(2, 4))
    assert sizes.tell(show, (480, 640), ImageTokens(8, (other,))) is None


def test_a_processor_that_refuses_the_lessons_is_measured_at_every_size():
    plain = fit_of(lambda height, width: 56 / max(height, width))

    def show(picture: Image.Image) -> list[ImageTokens]:
        if picture.size[::-1] in LESSONS:
            raise ZeroDivisionError
        return plain(picture)

    sizes = Sizes()
    assert sizes.tell(show, (300, 400), show(noise_image((300, 400)))[0]) is None and sizes.told == {}
    assert isinstance(sizes.measure(show, (300, 400)), Measured)


def test_a_whole_batch_of_new_sizes(monkeypatch):
    """Through the door that everyone uses: the sizes are told, the boxes those of a crop to the middle."""
    model, processor = tiny_pair("llava", "crop")
    images = [noise_image(size) for size in ((480, 640), (500, 375))]
    token_layouts(find_anatomy(model), processor, *asked(processor, images))
    monkeypatch.setattr(measured, "measure_frames", lambda *_: pytest.fail("a new size was measured"))
    wide, tall = noise_image((427, 641)), noise_image((481, 333))
    first, second = token_layouts(find_anatomy(model), processor, *asked(processor, [wide, tall]))
    left, top = (641 - 427) / 2 / 641, (481 - 333) / 2 / 481
    assert first.boxes[:, 0].min() == pytest.approx(left, abs=1 / 56) and first.boxes[:, 1].min() == 0
    assert second.boxes[:, 1].min() == pytest.approx(top, abs=1 / 56) and second.boxes[:, 0].min() == 0
    with pytest.raises(InputError, match="expected one"):
        token_layouts(find_anatomy(model), processor, asked(processor, [wide, tall])[0], [])


def asked(processor, images: list[Image.Image]) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    inputs = build_inputs(processor, images, ["cat"] * len(images), "{prompt}")
    return inputs, [(image.height, image.width) for image in images]


def test_windows_know_their_shape():
    assert Window(0, (3, 4), torch.zeros(6, 8)).shape == (6, 8) and Window(0, (3, 4), None).shape == (3, 4)
