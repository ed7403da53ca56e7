"""Sizes that were not seen before: told by a shortcut, to the last bit as they are measured, or measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lens_adapter.errors import InputError
from lens_adapter.signals import TokenLayout
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout import measured
from lens_adapter.vlm.layout.measured import ENOUGH, Sizes
from lens_adapter.vlm.layout.resized import Replica, Tiles
from lens_adapter.vlm.layout.shortcuts import CannotTellError, Picture, ThinSlices
from lens_adapter.vlm.layout.single import ImageTokens, fixed_grid
from lens_adapter.vlm.layout.tokens import token_layouts
from tests.tiny.pairs import tiny_pair
from tests.zoo.checks import noise_image
from tests.zoo.sizes import ODD, hold
from tests.zoo.specimens import ZOO, architectures

PHOTOGRAPHS = [(480 - step, 640 - 3 * step) for step in range(12)]  # sizes that are alike
SOME = ((333, 500), (500, 375), *ODD[3:], (767, 1022))
# One of each way to bring images to the model: {specimen: the shortcut that tells its sizes}.
WAYS = {
    "fast_vlm": Replica,  # the middle is cut out
    "gemma3": Replica,  # both sides are resized to the same
    "glm4v": ThinSlices,  # each side is resized to whole tokens
    "llava_next": Replica,  # tiles of a canvas, by the image's shape
    "llava_onevision": Replica,
    "mllama": Tiles,  # tiles of a canvas, some of which may be all padding
    "internvl": Tiles,  # tiles, and nothing in the inputs says of which image
    "idefics3": Tiles,  # resized twice; the last tile shows what the others make
    "smolvlm": Tiles,  # as well, and patches do not cover all of a tile
}


def known_processor(name: str) -> str:
    if name not in architectures():
        pytest.skip("not in this version of transformers")
    return name


@pytest.mark.parametrize("name", WAYS)
def test_told_sizes_are_to_the_last_bit_as_measured_ones(name):
    """tests/zoo/sizes.py does so for the whole zoo."""
    held = hold(known_processor(name), (*PHOTOGRAPHS, *SOME))
    assert held.wrong == [] and len(held.measured) + len(held.told) > 10
    assert held.told and WAYS[name] in held.by


def test_an_image_that_is_thinner_than_a_pixel_before_it_is_stretched():
    sizes = (*PHOTOGRAPHS, (24, 9000), (30, 5100), (9000, 24), (48, 5100), (48, 5200))
    assert hold(known_processor("idefics3"), sizes).wrong == []


def layouts(architecture: str, framing: str, sizes: list[tuple[int, int]]) -> list[TokenLayout]:
    """Of noise images, one after the other, by one processor."""
    model, processor = tiny_pair(architecture, framing)
    found = []
    for size in sizes:
        inputs = build_inputs(processor, [noise_image(size)], ["cat"], "{prompt}")
        found += token_layouts(find_anatomy(model), processor, inputs, [size])
    return found


@pytest.mark.parametrize(("architecture", "framing"), [("llava", "crop"), ("llava", "squash"), ("qwen2_5_vl", "crop")])
def test_layouts_do_not_depend_on_the_sizes_that_were_met_before(architecture, framing):
    together = layouts(architecture, framing, PHOTOGRAPHS)
    apart = [layouts(architecture, framing, [size])[0] for size in PHOTOGRAPHS]
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.positions, other.positions)


def test_a_told_size_shows_the_processor_no_picture_of_that_size():
    show, sizes, shown = fit_of(), Sizes(), []

    def watched(picture: Image.Image) -> list[ImageTokens]:
        shown.append(picture.size[::-1])
        return show(picture)

    for size in PHOTOGRAPHS:
        shown.clear()
        sizes.measured(watched, size, show(noise_image(size)))
    assert size not in shown


def fit_of(side: int = 224, zoom: int = 1, above: int = 700) -> Callable[[Image.Image], list[ImageTokens]]:
    """Square pictures with the image in their top left corner, none of its sides longer; `zoom` times, if one of its
    sides is longer than `above`."""

    def show(picture: Image.Image) -> list[ImageTokens]:
        longest = max(picture.size)
        by = zoom if longest > above else 1
        resized = picture.resize([by * int(side * n / longest) for n in picture.size], Image.Resampling.BICUBIC)
        square = Image.new("RGB", (side, side))
        square.paste(resized)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255  # (3, H, W)
        return fixed_grid({"pixel_values": values[None]}, patch=14)

    return show


def test_a_shortcut_that_is_wrong_once_is_not_asked_again():
    """A processor that shows less of what is larger than 700 pixels."""
    show = fit_of(zoom=2)
    sizes = Sizes()
    for size in PHOTOGRAPHS:
        sizes.measured(show, size, show(noise_image(size)))
    assert [type(shortcut) for shortcut in sizes.shortcuts] == [Replica, Tiles]
    assert sizes.measurements < len(PHOTOGRAPHS)
    large = (700, 900)  # of a class of its own: it is measured, and what is found is another thing
    found = sizes.measured(show, large, show(noise_image(large)))
    assert found.frames == Sizes().measured(show, large, None).frames
    assert sizes.shortcuts == []


def test_a_way_that_is_one_level_off_is_given_up():
    """At a single level, always by as much: what levels become is learned, but not just anything."""
    show = fit_of()

    def brighter(picture: Image.Image) -> list[ImageTokens]:
        (image,) = show(picture)
        (window,) = image.windows
        pixels = window.pixels.where((window.pixels * 255 - 127).abs() > 0.1, 128 / 255)
        return [replace(image, windows=(replace(window, pixels=pixels),))]

    sizes = Sizes()
    sizes.measured(brighter, PHOTOGRAPHS[0], show(noise_image(PHOTOGRAPHS[0])))
    assert not any(isinstance(shortcut, Replica) for shortcut in sizes.shortcuts)


def test_a_window_of_another_shape_is_measured():
    show, other = fit_of(), fit_of(side=56)
    sizes = Sizes()
    for size in PHOTOGRAPHS[:-1]:
        sizes.measured(show, size, show(noise_image(size)))
    before = sizes.measurements
    sizes.measured(show, PHOTOGRAPHS[-1], other(noise_image(PHOTOGRAPHS[-1])))
    assert sizes.measurements == before + 1


def test_padding_that_was_never_seen_is_measured():
    """Square images fill the picture; one that does not is of another class, but its class met a square one before."""
    show, sizes = fit_of(), Sizes()
    for side in range(300, 300 + 2 * ENOUGH):
        sizes.measured(show, (side, side), show(noise_image((side, side))))
    (replica,) = (shortcut for shortcut in sizes.shortcuts if isinstance(shortcut, Replica))
    (padded,) = show(noise_image((300, 299)))[0].windows
    assert replica.tell(lambda picture: [], (300, 299), [Picture(padded.pixels, None)]) is None
    assert replica.tell(lambda picture: [], (301, 301), [Picture(padded.pixels, None)]) is not None


@pytest.mark.parametrize("small", ["no window", "padding"])
def test_a_level_that_a_small_picture_does_not_show_is_not_guessed(small):
    show, sizes = fit_of(), Sizes()
    for size in PHOTOGRAPHS[: ENOUGH + 2]:
        sizes.measured(show, size, show(noise_image(size)))
    (replica,) = (shortcut for shortcut in sizes.shortcuts if isinstance(shortcut, Replica))
    ((window,),) = (image.windows for image in show(noise_image(PHOTOGRAPHS[-1])))
    for values in replica._copies[0]._ways.values():
        values[1:255] = np.nan  # as if few levels had been met
    shown = [] if small == "no window" else [torch.zeros(224, 224)]
    with pytest.raises(CannotTellError):
        replica.tell(lambda picture: shown, PHOTOGRAPHS[-1], [Picture(window.pixels, None)])


def test_an_image_of_another_size_is_still_refused():
    model, processor = tiny_pair("qwen2_vl")
    anatomy = find_anatomy(model)
    for size in [*PHOTOGRAPHS[:-1], (70, 140)]:
        inputs = build_inputs(processor, [noise_image(size)], ["cat"], "{prompt}")
        token_layouts(anatomy, processor, inputs, [size])
    with pytest.raises(InputError, match="token grids"):
        token_layouts(anatomy, processor, inputs, [(140, 70)])


def test_another_number_of_tiles_than_the_size_makes_is_still_refused():
    model, processor = ZOO["internvl"].build()
    anatomy = find_anatomy(model)
    for size in PHOTOGRAPHS:
        inputs = build_inputs(processor, [noise_image(size)], ["cat"], "{prompt}")
        token_layouts(anatomy, processor, inputs, [size])
    other = build_inputs(processor, [noise_image((200, 640))], ["cat"], "{prompt}")
    assert other["pixel_values"].shape != inputs["pixel_values"].shape
    with pytest.raises(InputError, match="image_sizes"):
        token_layouts(anatomy, processor, other, [(470, 612)])


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(measured, "MAX_CACHED", 3)
    show, sizes = fit_of(), Sizes()
    for size in PHOTOGRAPHS:
        sizes.measured(show, size, show(noise_image(size)))
        assert len(sizes.known) <= 3
