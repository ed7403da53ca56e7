"""What people get wrong: a clear error, or a right result, and never a base left half-read."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from lens_adapter import LensAdapter, LensConfig
from lens_adapter.errors import (
    CheckpointMismatchError,
    InputError,
    LensConfigError,
    LensError,
    NotAttachedError,
    UnsupportedModelError,
)
from tests.tiny.adapters import FUSIONS, hooks_in, ready_inputs, same_output, tiny_trio
from tests.tiny.models import ARCHITECTURES, tiny_language_model
from tests.tiny.pairs import tiny_pair
from tests.tiny.processors import tokenizer
from tests.tiny.sam import noise_image, tiny_sam

trio = cache(tiny_trio)
IMAGE = noise_image(50, 70)


# -- bases that cannot work


def on_meta(architecture: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(architecture))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tiny_language_model, "not a vision-language model"),
        (lambda: nn.Linear(3, 3), "Linear"),
        (lambda: "llava-hf/llava-1.5-7b-hf", "str"),
        (lambda: None, "NoneType"),
        (lambda: tiny_pair("llava")[1], "Processor"),
        (lambda: tiny_pair("llava")[0].model.language_model, "Pass the whole model"),
        (lambda: on_meta("blip-2"), "no place in the image"),
        (lambda: on_meta("instructblip"), "no place in the image"),
        (lambda: on_meta("idefics2"), "no place in the image"),
        (lambda: on_meta("git"), "cannot be read"),
    ],
)
def test_bases_that_cannot_work(make, reason):
    adapter, model, _ = tiny_trio()
    wrong = make()
    with pytest.raises(UnsupportedModelError, match=reason):
        adapter.attach(wrong)
    assert adapter.base.model is model  # the earlier attachment holds
    with pytest.raises(UnsupportedModelError, match=reason):
        LensAdapter.from_model(wrong, fusion="lite", sam=tiny_sam())


def test_a_base_for_which_the_head_has_too_many_layers():
    model, processor = tiny_pair("llava")
    with pytest.raises(LensConfigError, match="tap_layer"):
        LensAdapter.from_model(model, processor, tap_layer=4, sam=tiny_sam())
    with pytest.raises(LensConfigError, match="fusion_layers"):
        LensAdapter.from_model(model, processor, tap_layer=3, fusion_layers=2, sam=tiny_sam())
    assert not hooks_in(model)


def test_a_config_of_another_base():
    config = LensConfig(fusion="lite", hidden_size=64, num_hidden_layers=4, num_attention_heads=4, sam=tiny_sam())
    with pytest.raises(CheckpointMismatchError, match=r"hidden_size 64 \(got 32\)"):
        LensAdapter(config).attach(*tiny_pair("llava"))


# -- the processor


def test_no_processor():
    adapter, model, processor = tiny_trio()
    adapter.attach(model)
    with pytest.raises(InputError, match="AutoProcessor"):
        adapter.segment(IMAGE, "the cat")
    adapter.prefill(ready_inputs(processor))  # needs none


@pytest.mark.parametrize(
    "wrong", [tokenizer(), "llava-hf/llava-1.5-7b-hf", object()], ids=["tokenizer", "name", "object"]
)
def test_wrong_processor(wrong):
    adapter, model, _ = tiny_trio()
    with pytest.raises(InputError, match="processor"):
        adapter.attach(model, wrong).segment(IMAGE, "the cat")


def test_a_processor_of_another_model():
    adapter, model, _ = tiny_trio()
    with pytest.raises(LensError):
        adapter.attach(model, tiny_pair("qwen2_vl")[1]).segment(IMAGE, "the cat")
    assert not hooks_in(model)


# -- order of calls


@pytest.mark.parametrize(
    "call",
    [
        lambda adapter: adapter.segment(IMAGE, "the cat"),
        lambda adapter: adapter.capture(),
        lambda adapter: adapter.prefill({}),
        lambda adapter: adapter.layout({}),
        lambda adapter: adapter.base.processor,
    ],
    ids=["segment", "capture", "prefill", "layout", "processor"],
)
def test_before_attach_and_after_detach(call):
    adapter, _, _ = tiny_trio()
    adapter.detach()
    adapter.detach()
    with pytest.raises(NotAttachedError, match="attach"):
        call(adapter)
    fresh = LensAdapter(adapter.config)
    with pytest.raises(NotAttachedError, match="attach"):
        call(fresh)
    assert not adapter.is_attached and not fresh.is_attached


# -- images that cannot be read


def bad_files(folder):
    (folder / "text.png").write_text("no picture")
    (folder / "empty.jpg").write_bytes(b"")
    noise_image(40, 40).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:200])
    return {
        "text": folder / "text.png",
        "empty": folder / "empty.jpg",
        "cut": folder / "cut.png",
        "directory": folder,
        "missing": folder / "missing.png",
        "url": "https://example.org/a.png",
    }


@pytest.mark.parametrize("name", ["text", "empty", "cut", "directory", "missing", "url"])
def test_unreadable_files(tmp_path, name):
    adapter, model, _ = trio()
    for images, prompts in ((bad_files(tmp_path)[name], "the cat"), ([IMAGE, bad_files(tmp_path)[name]], ["a", "b"])):
        with pytest.raises(InputError):
            adapter.segment(images, prompts)
    assert not hooks_in(model)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        b"bytes",
        {"image": IMAGE},
        iter([IMAGE]),
        np.zeros((0, 5, 3), np.uint8),
        np.full((5, 5, 3), 255, np.float32),
        np.zeros((5, 5), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        torch.zeros(5, 5, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 5, 5, dtype=torch.uint8),
        torch.zeros(3, 5, 0, dtype=torch.uint8),
        torch.full((3, 5, 5), -1.0),
        Image.new("RGB", (0, 5)),
        [[IMAGE]],
    ],
    ids=lambda value: f"{type(value).__name__}{getattr(value, 'shape', '')}",
)
def test_what_is_no_image(wrong):
    adapter, model, _ = trio()
    with pytest.raises(InputError):
        adapter.segment(wrong, ["the cat"])
    assert not hooks_in(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 300), (2, 2), (10, 20000), (20000, 10)])
def test_odd_sizes_work_or_are_refused(architecture, size):
    adapter, model, _ = trio(architecture)
    image = noise_image(*size)
    try:
        out = adapter.segment(image, "the cat", return_logits=True)
    except InputError as error:
        assert str(size[0]) in str(error) and str(size[1]) in str(error)  # which image it was
        assert max(size) / min(size) > 50  # a sane shape is never refused
    else:
        assert out.masks.shape == (1, *size) and out.logits.isfinite().all() and out.heatmaps.isfinite().all()
        assert all(((points >= 0) & (points <= torch.tensor(image.size))).all() for points in out.keypoints)
    assert not hooks_in(model)


# -- images of every mode


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "CMYK", "LA", "YCbCr"])
def test_every_mode_is_seen_as_a_viewer_shows_it(mode, tmp_path):
    adapter, _, _ = trio()
    if mode == "I;16":
        levels = np.asarray(noise_image(50, 70).convert("L"))
        image = Image.fromarray(levels.astype(np.uint16) * 257)
        shown = Image.fromarray(levels).convert("RGB")
        image.save(tmp_path / "image.png")
        image = tmp_path / "image.png"
    elif mode == "RGBA":
        image = IMAGE.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        shown = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    else:
        image = (IMAGE.convert("L") if mode == "LA" else IMAGE).convert(mode)
        shown = image.convert("RGB")
    expected = adapter.segment(shown, "the cat", return_logits=True)
    out = adapter.segment(image, "the cat", return_logits=True)
    assert same_output(out, expected) and out.image.mode == "RGB"


@pytest.mark.parametrize("orientation", [3, 6, 8, 5])
def test_exif_orientation(orientation, tmp_path):
    adapter, _, _ = trio()
    turn = {
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_270,
        8: Image.Transpose.ROTATE_90,
        5: Image.Transpose.TRANSPOSE,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    IMAGE.save(tmp_path / "photo.png", exif=exif)
    upright = IMAGE.transpose(turn)
    out = adapter.segment(tmp_path / "photo.png", "the cat", return_logits=True)
    assert out.image_size == ((50, 70) if orientation == 3 else (70, 50)) == (upright.height, upright.width)
    assert same_output(out, adapter.segment(upright, "the cat", return_logits=True))


# -- prompts


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ([], "at least one"),
        ((), "at least one"),
        (None, "None"),
        (7, "7"),
        (b"cat", "cat"),
        ({"the cat"}, "the cat"),
        (["the cat", ""], "empty"),
        (["the cat", 3], "int"),
        ([["the cat"]], "list"),
        ("where is <image>?", "<image>"),
        (["the cat", "a <image>"], "<image>"),
        ("cat " * 5000, "too long"),
    ],
)
def test_impossible_prompts(prompts, message):
    adapter, model, _ = trio()
    with pytest.raises(InputError, match=message):
        adapter.segment(IMAGE, prompts)
    assert not hooks_in(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_may_be_just_as_long_as_the_base_has_positions(architecture):
    adapter, model, processor = trio(architecture)
    limit = model.config.get_text_config().max_position_embeddings
    assert processor.tokenizer.model_max_length > limit  # so nobody else would say anything
    used = ready_inputs(processor, "x", "x")["input_ids"].shape[1]
    letters = limit - 2 * used
    adapter.segment(IMAGE, "x" * letters)
    with pytest.raises(InputError, match=f"too long.*{limit}"):
        adapter.segment(IMAGE, "x" * limit)
    assert not hooks_in(model)


@pytest.mark.parametrize("prompt", ["猫", "the 🐈 on the left", "{prompt}", "%s {0}", "a\nb", "</td>"])
def test_unusual_prompts_work(prompt):
    adapter, _, _ = trio()
    assert adapter.segment(IMAGE, prompt).prompts == [prompt]


@pytest.mark.parametrize(
    ("images", "prompts"),
    [
        ([IMAGE, IMAGE], "the cat"),
        ([IMAGE, IMAGE], ["the cat"]),
        ([IMAGE], ["the cat", "a dog"]),
        ([], ["the cat"]),
        ([], "the cat"),
        ([IMAGE], []),
        ([IMAGE], [[]]),
        ([IMAGE], [None]),
        ([IMAGE], None),
        ([IMAGE], {"the cat": 1}),
        ((IMAGE, IMAGE), 2),
    ],
)
def test_as_many_prompts_as_images(images, prompts):
    adapter, model, _ = trio()
    with pytest.raises(InputError):
        adapter.segment(images, prompts)
    assert not hooks_in(model)


# -- options


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, float("nan"), float("inf"), "0.5", [0.5]])
def test_impossible_mask_threshold(threshold):
    with pytest.raises(InputError, match="mask_threshold"):
        trio()[0].segment(IMAGE, "the cat", mask_threshold=threshold)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "2", float("inf")])
def test_impossible_batch_size(batch_size):
    with pytest.raises(InputError, match="batch_size"):
        trio()[0].segment(IMAGE, "the cat", batch_size=batch_size)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"query": "first"}, InputError),
        ({"query": [0]}, InputError),
        ({"query": []}, InputError),
        ({"query": [-10_000]}, InputError),
        ({"layers": [99]}, LensConfigError),
        ({"layers": [-1]}, LensConfigError),
    ],
)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_impossible_queries_and_layers(arguments, error, fusion):
    adapter, model, processor = trio("qwen2_vl", fusion)
    inputs = ready_inputs(processor)
    with pytest.raises(error), adapter.capture(**arguments):
        model(**inputs)
    with pytest.raises(error):
        adapter.prefill(inputs, **arguments)
    assert not hooks_in(model)


@pytest.mark.parametrize("inputs", [None, "text", torch.zeros(1, 3), [1, 2]])
def test_impossible_inputs_of_prefill_and_layout(inputs):
    adapter, model, _ = trio()
    with pytest.raises(InputError):
        adapter.prefill(inputs)
    with pytest.raises(InputError):
        adapter.layout(inputs)
    assert not hooks_in(model)


def test_inputs_without_an_image():
    adapter, _, processor = trio()
    text = processor.tokenizer("no image", return_tensors="pt")
    assert adapter.prefill(text).hidden.shape[1] == text["input_ids"].shape[1]
    with pytest.raises(InputError, match="pixel_values"):
        adapter.layout(text)


def test_layout_of_sizes_that_do_not_fit():
    adapter, _, processor = trio()
    with pytest.raises(InputError):
        adapter.layout(ready_inputs(processor), [(50, 70)])
