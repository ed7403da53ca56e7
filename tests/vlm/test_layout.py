from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import ceil

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter.errors import InputError, UnsupportedModelError
from lens_adapter.signals import TokenLayout
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.architectures import ARCHITECTURES, register
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout.frames import Frame
from lens_adapter.vlm.layout.tokens import token_layouts
from tests.tiny.frames import measured_frames
from tests.tiny.pairs import tiny_pair, tiny_processor
from tests.tiny.processors import IMAGE_PAD, IMAGE_TOKEN
from tests.zoo import variable
from tests.zoo.checks import noise_image, with_patch
from tests.zoo.specimens import ZOO

QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# One shallow vision layer: attention must not drown a token's own patch.
SHALLOW = {
    "llava": {"num_hidden_layers": 1, "initializer_factor": 0.2},
    "qwen2_vl": {"depth": 1, "initializer_range": 0.05},
    "qwen2_5_vl": {"depth": 1, "initializer_range": 0.05, "fullatt_block_indexes": [0]},
    "qwen3_vl": {"depth": 1, "initializer_range": 0.05, "deepstack_visual_indexes": [0]},
}
SHAPES = {"square": (84, 84), "wide": (70, 140), "tall": (168, 84), "odd": (61, 97)}  # H, W
SIZE_CASES = pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES.keys())
FAMILY_CASES = pytest.mark.parametrize(
    ("architecture", "framing"),
    [("llava", "crop"), ("llava", "squash"), ("llava", "pad"), *((name, "crop") for name in QWENS)],
)


def first_embeddings(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Input of decoder layer 0, (B, T, D)."""
    seen = []

    def keep(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = find_anatomy(model).layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return seen[0]


def ask(processor: ProcessorMixin, images: list[Image.Image]) -> dict[str, Tensor]:
    return build_inputs(processor, images, ["cat"] * len(images), "Where is {prompt}?")


def probe(model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, layout: TokenLayout) -> float:
    """Paint the middle of every token's box, one at a time: how often is it this very token that changes most?"""
    painted = [with_patch(image, box)[0] for box in layout.boxes.tolist()]
    embeddings = first_embeddings(model, ask(processor, [image, *painted]))
    change = (embeddings[1:] - embeddings[:1]).norm(dim=-1)  # (tokens, T)
    return (change.argmax(-1) == layout.positions).float().mean().item()


def layout_of(model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image) -> TokenLayout:
    (layout,) = token_layouts(find_anatomy(model), processor, ask(processor, [image]), [(image.height, image.width)])
    return layout


@FAMILY_CASES
@SIZE_CASES
def test_probe_finds_every_token_where_its_box_is(architecture, framing, size):
    model, processor = tiny_pair(architecture, framing, **SHALLOW[architecture])
    image = noise_image(size)
    assert probe(model, processor, image, layout_of(model, processor, image)) == 1


@pytest.mark.parametrize("architecture", ["llava", *QWENS])
def test_probe_finds_a_transposed_layout_out(architecture):
    model, processor = tiny_pair(architecture, "squash", **SHALLOW[architecture])
    image = noise_image((84, 168))
    right = layout_of(model, processor, image)
    h, w = right.grid
    transposed = replace(right, positions=right.positions.reshape(h, w).T.flatten(), grid=None)
    columns_first = replace(right, boxes=right.boxes[torch.arange(h * w).reshape(h, w).T.flatten()], grid=None)
    assert probe(model, processor, image, right) == 1
    assert probe(model, processor, image, transposed) <= 0.5
    assert probe(model, processor, image, columns_first) <= 0.5


@pytest.mark.parametrize("framing", ["crop", "pad"])
def test_probe_finds_a_layout_without_the_frame_out(framing):
    model, processor = tiny_pair("llava", framing, **SHALLOW["llava"])
    image = noise_image((70, 140))
    (unframed,) = token_layouts(find_anatomy(model), None, ask(processor, [image]), [(70, 140)])
    assert probe(model, processor, image, layout_of(model, processor, image)) == 1
    assert probe(model, processor, image, unframed) <= 0.5


def test_what_the_crop_cuts_off_reaches_no_token():
    model, processor = tiny_pair("llava", "crop")
    image = noise_image((70, 140))
    boxes = layout_of(model, processor, image).boxes
    for box in ([0, 0, 0.2, 1], [0.8, 0, 1, 1]):
        before, after = first_embeddings(model, ask(processor, [image, with_patch(image, box, reach=1)[0]]))
        assert torch.equal(before, after)
        assert not ((boxes[:, 0] < box[2]) & (boxes[:, 2] > box[0])).any()


# Hand-worked boxes of the tiny LLaVA: 56 x 56 pixels, 4 x 4 tokens. Measured ones may be off by a twentieth of a pixel.


def edges(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """x and y edges of a layout's grid."""
    h, w = layout.grid
    boxes = layout.boxes.reshape(h, w, 4)
    assert torch.allclose(boxes[:, :, [0, 2]], boxes[:1, :, [0, 2]].expand(h, w, 2))
    assert torch.allclose(boxes[:, :, [1, 3]], boxes[:, :1, [1, 3]].expand(h, w, 2))
    assert torch.equal(boxes[:, 1:, 0], boxes[:, :-1, 2])
    assert torch.equal(boxes[1:, :, 1], boxes[:-1, :, 3])
    return torch.cat([boxes[0, :, 0], boxes[0, -1:, 2]]), torch.cat([boxes[:, 0, 1], boxes[-1:, 0, 3]])


@pytest.mark.parametrize(
    ("architecture", "framing", "size", "x", "y"),
    [
        ("llava", "squash", (70, 140), [0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1]),
        ("llava", "crop", (70, 140), [0.25, 0.375, 0.5, 0.625, 0.75], [0, 0.25, 0.5, 0.75, 1]),
        ("llava", "crop", (280, 70), [0, 0.25, 0.5, 0.75, 1], [0.375, 0.4375, 0.5, 0.5625, 0.625]),
        ("llava", "pad", (70, 140), [0, 0.25, 0.5, 0.75, 1], [0, 0.5, 1]),
        # 56 wide, of 84: the image is rows 9 1/3 to 46 2/3, so the first and last rows of tokens see a third of a cell
        ("llava", "pad", (56, 84), [0, 0.25, 0.5, 0.75, 1], [0, 0.125, 0.5, 0.875, 1]),
        ("qwen2_vl", "crop", (70, 120), [0, 0.25, 0.5, 0.75, 1], [0, 0.5, 1]),  # becomes 56 x 112: 2 x 4 tokens
        ("qwen2_5_vl", "crop", (70, 120), [0, 0.25, 0.5, 0.75, 1], [0, 0.5, 1]),
        ("qwen3_vl", "crop", (90, 70), [0, 0.5, 1], [0, 1 / 3, 2 / 3, 1]),  # becomes 96 x 64: 3 x 2 tokens
    ],
)
def test_boxes_worked_by_hand(architecture, framing, size, x, y):
    model, processor = tiny_pair(architecture, framing)
    layout = layout_of(model, processor, noise_image(size))
    measured_x, measured_y = edges(layout)
    assert layout.grid == (len(y) - 1, len(x) - 1)
    assert torch.allclose(measured_x, torch.tensor(x, dtype=torch.float32), atol=2e-3)
    assert torch.allclose(measured_y, torch.tensor(y, dtype=torch.float32), atol=2e-3)
    assert layout.boxes.dtype == torch.float32
    assert layout.boxes.min() >= 0
    assert layout.boxes.max() <= 1


def test_tokens_that_see_only_padding_are_not_listed():
    model, processor = tiny_pair("llava", "pad")
    image = noise_image((35, 140))  # 14 of 56 rows, across the middle: rows 21 to 35
    inputs = ask(processor, [image])
    first = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0].item()
    layout = layout_of(model, processor, image)
    assert layout.grid == (2, 4)
    assert torch.equal(layout.positions, first + torch.arange(4, 12))


# The frame, whatever the shape.


def true_frame(framing: str, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Per axis (y, x): where the preprocessed square starts and ends in the image, rounding to pixels apart."""
    reach = {"crop": min(size), "pad": max(size)}.get(framing)
    spans = [1.0 if reach is None else reach / side for side in size]
    return [(0.5 - span / 2, 0.5 + span / 2) for span in spans]


SIZES = ((1, 1), (1, 2), (2, 3), (1, 8), (8, 1), (5, 3), (30, 30), (7, 90), (600, 20), (480, 640), (1500, 1100))


def measured_frame(framing: str, size: tuple[int, int]) -> Frame:
    image_processor = tiny_processor("llava", framing).image_processor

    def show(picture: Image.Image) -> list[Tensor]:
        return [image_processor(images=[picture], return_tensors="pt")["pixel_values"][0].mean(0)]

    (frame,) = measured_frames(show, size)
    return frame


@pytest.mark.parametrize("framing", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_frames_of_any_shape(framing, size):
    if framing == "pad" and max(size) / min(size) > 28:  # less than two of the 56 pixels
        with pytest.raises(InputError, match=r"\(600, 20\) is too thin"):
            measured_frame(framing, size)
        return
    for (scale, offset), (start, end) in zip(measured_frame(framing, size), true_frame(framing, size), strict=True):
        pixel = scale / 56  # of the preprocessed square, in fractions of the image
        assert abs(offset - start) < 1.01 * pixel  # cropping rounds to whole pixels
        assert abs(scale + offset - end) < 1.01 * pixel
        assert scale == pytest.approx(end - start, rel=0.06)


@pytest.mark.parametrize("size", [(10, 3000), (3000, 10)])
def test_the_slice_that_a_crop_leaves_of_a_long_image(size):
    """A ramp of 256 levels says nothing about 10 of 3000 pixels; a second look does."""
    scale, offset = measured_frame("crop", size)[size.index(3000)]
    assert scale == pytest.approx(10 / 3000, rel=0.02)
    assert offset + scale / 2 == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("architecture", QWENS)
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (150, 1), (7, 200), (480, 640), (61, 97)])
def test_qwen_sees_the_whole_image_whatever_its_shape(architecture, size):
    model, processor = tiny_pair(architecture)
    layout = layout_of(model, processor, noise_image(size))
    h, w = layout.grid
    x, y = edges(layout)
    assert torch.allclose(x, torch.linspace(0, 1, w + 1), atol=4e-3)
    assert torch.allclose(y, torch.linspace(0, 1, h + 1), atol=4e-3)


@pytest.mark.parametrize("size", [(70, 140), (61, 97)])
@pytest.mark.parametrize(("architecture", "cell"), [("kimi_k25", 28), ("inkling2", 40)])
def test_cells_of_an_image_that_is_padded_to_whole_ones(architecture, cell, size):
    """Neither resizes a small image: a token is `cell` pixels of the original, fewer at the right and the bottom."""
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    model, processor = variable.SPECIMENS[architecture].build()
    layout = layout_of(model, processor, noise_image(size))
    assert layout.grid == (ceil(size[0] / cell), ceil(size[1] / cell))
    edges = [[min(k * cell / length, 1) for k in range(ceil(length / cell) + 1)] for length in size]
    expected = [[x0, y0, x1, y1] for y0, y1 in pairwise(edges[0]) for x0, x1 in pairwise(edges[1])]
    assert layout.boxes.sub(torch.tensor(expected)).abs().max() < 0.01


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_every_kind_of_image_processor_gives_the_same_frame(suffix):
    kind = getattr(transformers, f"CLIPImageProcessor{suffix}", transformers.CLIPImageProcessor)
    model, processor = tiny_pair("llava", "crop")
    processor.image_processor = kind(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    x, y = edges(layout_of(model, processor, noise_image((70, 140))))
    assert torch.allclose(x, torch.linspace(0.25, 0.75, 5), atol=2e-3)
    assert torch.allclose(y, torch.linspace(0, 1, 5), atol=2e-3)


def test_the_frame_follows_the_processor_when_its_settings_change():
    model, processor = tiny_pair("llava", "crop")
    image = noise_image((70, 140))
    assert layout_of(model, processor, image).boxes[0, 0] == pytest.approx(0.25, abs=2e-3)
    processor.image_processor = tiny_processor("llava", "squash").image_processor
    assert layout_of(model, processor, image).boxes[0, 0] == pytest.approx(0, abs=2e-3)
    processor.image_processor.do_normalize = False
    assert layout_of(model, processor, image).boxes[0, 0] == pytest.approx(0, abs=2e-3)


def test_an_image_processor_alone_will_do():
    model, processor = tiny_pair("llava", "crop")
    inputs = ask(processor, [noise_image((70, 140))])
    (whole,) = token_layouts(find_anatomy(model), processor, inputs, [(70, 140)])
    (alone,) = token_layouts(find_anatomy(model), processor.image_processor, inputs, [(70, 140)])
    assert torch.equal(whole.boxes, alone.boxes)


@pytest.mark.parametrize("architecture", ["llava", *QWENS])
def test_without_sizes_or_processor_the_frame_is_that_of_the_pixels(architecture):
    model, processor = tiny_pair(architecture)
    inputs = ask(processor, [noise_image((70, 140))])
    for layouts in (
        token_layouts(find_anatomy(model), processor, inputs),
        token_layouts(find_anatomy(model), None, inputs, [(70, 140)]),
    ):
        h, w = layouts[0].grid
        x, y = edges(layouts[0])
        assert torch.allclose(x, torch.linspace(0, 1, w + 1))
        assert torch.allclose(y, torch.linspace(0, 1, h + 1))


# Batches, and several images in one sequence.


@FAMILY_CASES
def test_a_batch_gives_each_image_its_own_layout(architecture, framing):
    model, processor = tiny_pair(architecture, framing)
    images = [noise_image(size) for size in ((84, 84), (70, 140), (168, 84))]
    inputs = build_inputs(processor, images, ["cat", "the cat on the left", "dog"], "Where is {prompt}?")
    layouts = token_layouts(find_anatomy(model), processor, inputs, [(image.height, image.width) for image in images])
    assert inputs["attention_mask"][0, 0] == 0  # the first row is padded on the left
    for row, (image, layout) in enumerate(zip(images, layouts, strict=True)):
        alone = layout_of(model, processor, image)
        ids = inputs["input_ids"][row]
        assert (ids[layout.positions] == model.config.image_token_id).all()
        assert torch.equal(layout.boxes, alone.boxes)
        assert layout.grid == alone.grid
        first = (ids == model.config.image_token_id).nonzero()[0]
        alone_ids = ask(processor, [image])["input_ids"][0]
        alone_first = (alone_ids == model.config.image_token_id).nonzero()[0]
        assert torch.equal(layout.positions - first, alone.positions - alone_first)


@pytest.mark.parametrize(("architecture", "token"), [("llava", IMAGE_TOKEN), *((name, IMAGE_PAD) for name in QWENS)])
def test_several_images_in_one_sequence(architecture, token):
    model, processor = tiny_pair(architecture, "pad", **SHALLOW[architecture])
    small, wide, tall = (noise_image(size) for size in ((84, 84), (70, 140), (140, 70)))
    texts = [f"a {token} b {token} c", f"d {token}"]
    sizes = [(84, 84), (70, 140), (140, 70)]

    def process(images: list[Image.Image]) -> dict[str, Tensor]:
        return processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")

    inputs = process([small, wide, tall])
    layouts = token_layouts(find_anatomy(model), processor, inputs, sizes)
    assert len(layouts) == 3
    assert layouts[0].positions.max() < layouts[1].positions.min()
    before = first_embeddings(model, inputs)
    for index, row in ((0, 0), (1, 0), (2, 1)):
        layout = layouts[index]
        images = [small, wide, tall]
        images[index] = with_patch(images[index], layout.boxes[-1].tolist())[0]
        change = (first_embeddings(model, process(images)) - before).norm(dim=-1)  # (B, T)
        assert change[1 - row].max() == 0
        assert change[row].argmax() == layout.positions[-1]


# What does not fit is refused.


@pytest.mark.parametrize("architecture", ["llava", *QWENS])
def test_image_tokens_cut_off(architecture):
    model, processor = tiny_pair(architecture)
    inputs = ask(processor, [noise_image((84, 84))])
    got = (inputs["input_ids"] == model.config.image_token_id).sum().item()
    inputs["input_ids"] = inputs["input_ids"][:, : layout_of(model, processor, noise_image((84, 84))).positions[-2] + 1]
    with pytest.raises(InputError, match=rf"expected {got} image tokens .* got \[{got - 1}\]"):
        token_layouts(find_anatomy(model), processor, inputs)


def test_an_image_split_over_two_sequences():
    model, processor = tiny_pair("llava")
    inputs = ask(processor, [noise_image((84, 84))] * 2)
    ids = inputs["input_ids"]
    image = model.config.image_token_id
    ids[0, (ids[0] == image).nonzero()[0]] = 0
    ids[1, -1] = image  # 15 and 17: the sum is right
    with pytest.raises(InputError, match=r"got \[15, 17\] per sequence"):
        token_layouts(find_anatomy(model), processor, inputs)


def test_image_sizes_of_other_images():
    model, processor = tiny_pair("qwen2_vl")
    inputs = ask(processor, [noise_image((84, 84))])
    with pytest.raises(InputError, match=r"one \(H, W\) for each of 1 images"):
        token_layouts(find_anatomy(model), processor, inputs, [(84, 84), (84, 84)])
    with pytest.raises(InputError, match=r"\(84, 168\) has token grids .* but the inputs have \[\(3, 3\)\]"):
        token_layouts(find_anatomy(model), processor, inputs, [(84, 168)])


def test_inputs_without_images():
    model, processor = tiny_pair("llava")
    with pytest.raises(InputError, match="'pixel_values'"):
        token_layouts(find_anatomy(model), processor, {"input_ids": torch.ones(1, 4, dtype=torch.long)})
    pixels = {"input_ids": torch.ones(1, 4, dtype=torch.long), "pixel_values": torch.zeros(1, 5, 3, 56, 56)}
    with pytest.raises(InputError, match=r"shape \(images, 3, H, W\), got \(1, 5, 3, 56, 56\)"):
        token_layouts(find_anatomy(model), processor, pixels)


def test_frames_of_a_video():
    model, processor = tiny_pair("qwen2_vl")
    inputs = ask(processor, [noise_image((84, 84))])
    inputs["image_grid_thw"] = torch.tensor([[2, 3, 6]])
    with pytest.raises(InputError, match=r"t = 1.*\(2, 3, 6\)"):
        token_layouts(find_anatomy(model), processor, inputs)


def test_an_unknown_layout_is_refused_and_can_be_taught(monkeypatch):
    model, processor = tiny_pair("llava")
    row = ARCHITECTURES["llava"]
    monkeypatch.delitem(ARCHITECTURES, "llava")
    image = noise_image((70, 140))
    with pytest.raises(UnsupportedModelError, match=r"llava: .* not known.*qwen2_vl.*register"):
        layout_of(model, processor, image)
    fields = {**row.layout.fields, "patch": "vision_config.no_such_field"}
    register("llava", replace(row, layout=replace(row.layout, fields=fields)))
    with pytest.raises(UnsupportedModelError, match=r"config\.vision_config\.no_such_field"):
        layout_of(model, processor, image)
    register("llava", row)
    assert layout_of(model, processor, image).grid == (4, 4)


def test_a_padded_picture_has_the_grid_of_its_own_size():
    model, processor = tiny_pair("llava")
    inputs = ask(processor, [noise_image((84, 84)), noise_image((84, 84))])
    inputs["image_sizes"] = torch.tensor([[56, 56], [28, 42]])
    ids = inputs["input_ids"][1]
    ids[ids == model.config.image_token_id] = 0
    ids[3:9] = model.config.image_token_id
    full, padded = token_layouts(find_anatomy(model), processor, inputs)
    assert full.grid == (4, 4) and padded.grid == (2, 3)
    assert padded.positions.tolist() == list(range(3, 9))


def test_a_class_token_that_is_kept_has_no_place():
    model, processor = tiny_pair("llava", "crop", **SHALLOW["llava"])
    model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = "full"
    image = noise_image((84, 84))
    inputs = ask(processor, [image])
    layout = layout_of(model, processor, image)
    run = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    assert len(run) == 17
    assert torch.equal(layout.positions, run[1:])
    assert probe(model, processor, image, layout) == 1


# -- settings of one call alone


@pytest.mark.parametrize(
    ("architecture", "framing", "settings", "message"),
    [
        ("llava", "crop", {"do_center_crop": False, "size": {"height": 56, "width": 84}}, "token grids"),
        ("llava", "pad", {"do_pad": False}, "has padding around it"),
        ("qwen2_vl", "crop", {"min_pixels": 28 * 28 * 40, "max_pixels": 28 * 28 * 60}, "token grids"),
    ],
)
def test_settings_of_a_call_are_noticed(architecture, framing, settings, message):
    model, processor = tiny_pair(architecture, framing)
    anatomy, image = find_anatomy(model), noise_image((84, 168))
    token = IMAGE_TOKEN if architecture == "llava" else IMAGE_PAD
    plain = processor(images=[image], text=[f"{token} cat"], return_tensors="pt")
    own = processor(images=[image], text=[f"{token} cat"], return_tensors="pt", **settings)
    token_layouts(anatomy, processor, plain, [(84, 168)])
    with pytest.raises(InputError, match=f"{message}.*settings that it was called with"):
        token_layouts(anatomy, processor, own, [(84, 168)])


def test_pixels_of_another_shape_are_noticed():
    """Gemma 3 has as many tokens for pixels of any shape."""
    size = ZOO["gemma3"].image
    model, processor = ZOO["gemma3"].build()
    inputs = build_inputs(processor, [noise_image(size)], ["cat"], "{prompt}")
    token_layouts(find_anatomy(model), processor, inputs, [size])
    inputs["pixel_values"] = torch.nn.functional.interpolate(inputs["pixel_values"], scale_factor=2)
    with pytest.raises(InputError, match=r"becomes .* settings that it was called with"):
        token_layouts(find_anatomy(model), processor, inputs, [size])


def test_padding_is_known_in_half_precision_too():
    model, processor = tiny_pair("llava", "pad")
    inputs = ask(processor, [noise_image((84, 168))])
    (exact,) = token_layouts(find_anatomy(model), processor, inputs, [(84, 168)])
    (half,) = token_layouts(find_anatomy(model), processor, inputs.to(torch.bfloat16), [(84, 168)])
    assert torch.equal(exact.boxes, half.boxes)
