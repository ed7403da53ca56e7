from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from lens_adapter.errors import InputError
from lens_adapter.vlm.inputs import build_inputs, text_inputs
from tests.tiny.pairs import tiny_processor
from tests.tiny.processors import LLAVA_TEMPLATE, QWEN_TEMPLATE, TOKEN_IDS
from tests.tiny.sam import noise_image
from tests.zoo.square import chat, words

TEMPLATE = "Where is {prompt} in this image?"
QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ARCHITECTURES = ("llava", *QWENS)


def grey(size: tuple[int, int] = (60, 80)) -> Image.Image:
    return Image.new("RGB", size[::-1], "grey")


# build_inputs


def text_of(processor: ProcessorMixin, inputs: BatchFeature, row: int = 0) -> str:
    """The row as text, padding off and the run of image tokens as one."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
    image = processor.image_token_id
    ids = [token for place, token in enumerate(ids) if token != image or ids[place - 1] != image]
    return processor.tokenizer.decode(ids)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_chat_template_frames_the_question(architecture):
    processor = tiny_processor(architecture)
    inputs = build_inputs(processor, [grey()], ["the red cat"], TEMPLATE)
    question = "Where is the red cat in this image?"
    expected = {
        "llava": f"USER: <image>\n{question} ASSISTANT:",
        **dict.fromkeys(
            QWENS,
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        ),
    }[architecture]
    assert text_of(processor, inputs) == expected
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())


def test_without_a_chat_template_the_image_comes_first():
    processor = tiny_processor("llava", chat_template=None)
    assert text_of(processor, build_inputs(processor, [grey()], ["a cat"], TEMPLATE)) == (
        "<image>\nWhere is a cat in this image?"
    )


@pytest.mark.parametrize(
    "template",
    [
        LLAVA_TEMPLATE,  # knows images
        "{% for message in messages %}{{ 'USER: ' + message.content }}{% endfor %} ASSISTANT:",  # plain text alone
        "{% for message in messages %}USER: {{ message.content }}{% endfor %} ASSISTANT:",  # prints a list as it is
    ],
)
def test_a_chat_template_of_the_tokenizer(template):
    processor = tiny_processor("llava", chat_template=None)
    processor.tokenizer.chat_template = template
    assert text_of(processor, build_inputs(processor, [grey()], ["a cat"], TEMPLATE)) == (
        "USER: <image>\nWhere is a cat in this image? ASSISTANT:"
    )


def test_a_template_that_starts_the_sequence_is_not_started_twice():
    processor = tiny_processor("llava", chat_template="{{ bos_token }}" + LLAVA_TEMPLATE)
    processor.tokenizer.backend_tokenizer.post_processor = _starts_with_bos()
    inputs = build_inputs(processor, [grey()], ["a cat"], TEMPLATE)
    assert inputs["input_ids"][0].tolist().count(TOKEN_IDS["<s>"]) == 1
    processor.chat_template = LLAVA_TEMPLATE
    inputs = build_inputs(processor, [grey()], ["a cat"], TEMPLATE)
    assert inputs["input_ids"][0].tolist().count(TOKEN_IDS["<s>"]) == 1


def _starts_with_bos():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", TOKEN_IDS["<s>"])])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_the_left_and_the_tokenizer_keeps_its_side(architecture, side):
    processor = tiny_processor(architecture)
    processor.tokenizer.padding_side = side
    prompts = ["cat", "the large black dog on the right"]
    inputs = build_inputs(processor, [grey(), grey()], prompts, TEMPLATE)
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][1].all()
    assert processor.tokenizer.padding_side == side
    for row, prompt in enumerate(prompts):
        alone = build_inputs(processor, [grey()], [prompt], TEMPLATE)
        assert torch.equal(inputs["input_ids"][row][inputs["attention_mask"][row].bool()], alone["input_ids"][0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_row_has_its_own_image(architecture):
    processor = tiny_processor(architecture)
    noise = np.random.default_rng(0).integers(0, 255, (60, 120, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.fromarray(noise.transpose(1, 0, 2)), Image.fromarray(noise[:, ::-1].copy())]
    inputs = build_inputs(processor, images, ["cat"] * 3, TEMPLATE)
    alone = [build_inputs(processor, [image], ["cat"], TEMPLATE) for image in images]
    assert torch.equal(inputs["pixel_values"], torch.cat([each["pixel_values"] for each in alone]))


def test_braces_in_prompt_and_template_are_text():
    processor = tiny_processor("llava")
    inputs = build_inputs(processor, [grey()], ["{0} {prompt}"], 'Find {prompt} as {"json"}')
    assert 'Find {0} {prompt} as {"json"} ' in text_of(processor, inputs)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty text"),
        (" \n", "empty text"),
        (None, "got NoneType"),
        (["cat"], "got list"),
        ("a <image> b", "special tokens.*got <image>"),
        ("cat</s>", "got </s>"),
        ("<s>a <pad>", "got <pad>, <s>"),
    ],
)
def test_impossible_prompts(prompt, message):
    with pytest.raises(InputError, match=message):
        build_inputs(tiny_processor("llava"), [grey()], [prompt], TEMPLATE)


@pytest.mark.parametrize("architecture", QWENS)
@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_end|>"])
def test_special_tokens_in_qwen_prompts(architecture, token):
    with pytest.raises(InputError, match="special tokens"):
        build_inputs(tiny_processor(architecture), [grey()], [f"cat {token}"], TEMPLATE)


@pytest.mark.parametrize(
    "prompt", ["naïve café", "犬", "a < b > c", "image", "x" * 500, "line\nbreak", "100% 'it's' \"so\""]
)
def test_unusual_prompts_work(prompt):
    processor = tiny_processor("llava")
    assert prompt in text_of(processor, build_inputs(processor, [grey()], [prompt], TEMPLATE))


def test_the_prompt_template_must_not_hold_the_image_token():
    with pytest.raises(InputError, match="prompt template"):
        build_inputs(tiny_processor("llava"), [grey()], ["cat"], "<image> {prompt}")


def test_a_chat_template_without_image():
    processor = tiny_processor("llava", chat_template=QWEN_TEMPLATE)  # writes another model's image token
    with pytest.raises(InputError, match="'<image>' once"):
        build_inputs(processor, [grey()], ["cat"], TEMPLATE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_too_long_prompts_are_refused_and_never_cut(architecture):
    processor = tiny_processor(architecture)
    fits = build_inputs(processor, [grey()], ["x" * 400], TEMPLATE)["input_ids"].shape[1]
    prompts = ["cat", "y" * 401]
    with pytest.raises(InputError, match=f"make {fits + 1} tokens, and the model takes {fits}.*'yyy"):
        build_inputs(processor, [grey()] * 2, prompts, TEMPLATE, max_length=fits)
    processor.tokenizer.model_max_length = fits
    with pytest.raises(InputError, match=f"make {fits + 1} tokens, and the model takes {fits}"):
        build_inputs(processor, [grey()] * 2, prompts, TEMPLATE)
    assert build_inputs(processor, [grey()], ["x" * 400], TEMPLATE)["input_ids"].shape[1] == fits


def test_a_processor_that_asks_its_own_questions():
    processor = transformers.ShieldGemma2Processor(
        transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        words(image_token="<soft>", boi_token="<boi>", eoi_token="<eoi>"),
        chat_template=chat("<boi>"),
    )
    with pytest.raises(InputError, match="ShieldGemma2Processor makes 3 texts of 1"):
        build_inputs(processor, [grey()], ["cat"], TEMPLATE)


def test_a_processor_that_names_no_image_token_needs_a_template():
    processor = tiny_processor("llava", chat_template=None)
    processor.image_token = None
    with pytest.raises(InputError, match="names no image token"):
        build_inputs(processor, [grey()], ["cat"], TEMPLATE)


def test_counts_that_do_not_match():
    with pytest.raises(InputError, match="2 images, 1 prompts"):
        build_inputs(tiny_processor("llava"), [grey(), grey()], ["cat"], TEMPLATE)
    with pytest.raises(InputError, match="0 images, 0 prompts"):
        build_inputs(tiny_processor("llava"), [], [], TEMPLATE)


def test_what_is_no_processor():
    processor = tiny_processor("llava")
    for given in (None, processor.tokenizer, processor.image_processor):
        with pytest.raises(InputError, match=rf"got {type(given).__name__}.*AutoProcessor\.from_pretrained"):
            build_inputs(given, [grey()], ["cat"], TEMPLATE)


def test_a_tokenizer_that_cannot_pad():
    processor = tiny_processor("llava")
    processor.tokenizer.pad_token = None
    assert build_inputs(processor, [grey()], ["cat"], TEMPLATE)["input_ids"].shape[0] == 1
    with pytest.raises(InputError, match=r"refuses this batch.*padding token"):
        build_inputs(processor, [grey(), grey()], ["cat", "dogs"], TEMPLATE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (3, 2), (3, 3), (1, 3), (3, 200), (150, 1)])
def test_tiny_and_thin_images_work(architecture, size):
    processor = tiny_processor(architecture)
    # transformers 4 would take 1 or 3 rows for channels, and mix the colors up.
    small, large = (Image.new("RGB", shape, (200, 100, 50)) for shape in (size[::-1], (80, 80)))
    values = [build_inputs(processor, [image], ["cat"], TEMPLATE)["pixel_values"] for image in (small, large)]
    first, second = (each[0, :, :1, :1] if architecture == "llava" else each[:1] for each in values)
    assert torch.allclose(values[0], first.expand_as(values[0]))
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("architecture", QWENS)
@pytest.mark.parametrize("size", [(10, 20000), (20000, 10), (1, 201)])
def test_images_that_the_processor_refuses(architecture, size):
    images = [grey(), Image.new("RGB", size[::-1])]
    with pytest.raises(InputError, match=rf"image of {size[1]} x {size[0]} pixels: .*aspect ratio") as caught:
        build_inputs(tiny_processor(architecture), images, ["cat", "dog"], TEMPLATE)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("framing", ["crop", "squash"])
def test_a_very_long_image_works_where_the_processor_takes_it(framing):
    inputs = build_inputs(tiny_processor("llava", framing), [Image.new("RGB", (20000, 10))], ["cat"], TEMPLATE)
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)


# -- what other libraries would raise


PLAIN = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
WRITES_LISTS = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
RAISES = "{{ raise_exception('only for tools') }}"
MALFORMED = "{% for message in messages %}{{ message.content }"
NAMED = {"rag": LLAVA_TEMPLATE, "tool_use": LLAVA_TEMPLATE}
IGNORES = "{{ '<image>' }} What now?"


def with_template(template, owner):
    processor = tiny_processor("llava", chat_template=None)
    (processor if owner == "processor" else processor.tokenizer).chat_template = template
    return processor


@pytest.mark.parametrize("owner", ["processor", "tokenizer"])
@pytest.mark.parametrize("template", [PLAIN, WRITES_LISTS])
def test_a_template_that_wants_text_gets_text(template, owner):
    processor = with_template(template, owner)
    inputs = build_inputs(processor, [noise_image(40, 50)], ["the cat"], "Find {prompt}.")
    said = processor.tokenizer.decode(inputs["input_ids"][0]).replace("<image>", "")
    assert said.strip() == "user: \nFind the cat." and (inputs["input_ids"] == processor.image_token_id).sum() > 1
    text = text_inputs(processor, "the cat", "Find {prompt}.")["input_ids"][0]
    assert processor.tokenizer.decode(text).strip() == "user: Find the cat."


@pytest.mark.parametrize("owner", ["processor", "tokenizer"])
@pytest.mark.parametrize(
    "template, complaint",
    [
        (RAISES, "cannot be used. TemplateError: only for tools. Set its chat_template"),
        (MALFORMED, "cannot be used. TemplateSyntaxError"),
        (NAMED, r"It has \['rag', 'tool_use'\] and none called 'default'"),
        (IGNORES, "must put the question 'Find the cat.' into the text"),
        (7, "cannot be used"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(template, owner, complaint):
    processor = with_template(template, owner)
    with pytest.raises(InputError, match=complaint):
        build_inputs(processor, [noise_image(40, 50)], ["the cat"], "Find {prompt}.")
    with pytest.raises(InputError, match=complaint):
        text_inputs(processor, "the cat", "Find {prompt}.")


def test_a_named_template_called_default_is_taken():
    processor = with_template({"default": LLAVA_TEMPLATE, "rag": RAISES}, "processor")
    build_inputs(processor, [noise_image(40, 50)], ["the cat"], "{prompt}")
    text_inputs(processor, "the cat", "{prompt}")


@pytest.mark.parametrize(
    "prompt, template", [("a \ud83d dog", "{prompt}"), ("\udcff", "{prompt}"), ("a", "{prompt}\ud800")]
)
def test_half_letters_are_refused(prompt, template):
    processor = tiny_processor("llava")
    for ask in (
        lambda: build_inputs(processor, [noise_image(40, 50)], [prompt], template),
        lambda: text_inputs(processor, prompt, template),
    ):
        with pytest.raises(InputError, match=r"whole letters.*lone surrogate") as caught:
            ask()
        str(caught.value).encode()  # and the message can be printed


def test_a_processor_that_is_not_whole_is_named():
    processor = tiny_processor("llava")
    processor.patch_size = None
    with pytest.raises(InputError, match=r"LlavaProcessor refuses .*TypeError.* Its patch_size is None.*vision_config"):
        build_inputs(processor, [noise_image(40, 50)], ["the cat"], "{prompt}")


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, IndexError, ValueError, RuntimeError])
def test_whatever_a_processor_raises(error, monkeypatch):
    processor = tiny_processor("llava")

    def fail(self, *_, **__):
        raise error("of its own")

    monkeypatch.setattr(type(processor), "__call__", fail)
    with pytest.raises(InputError, match=f"LlavaProcessor refuses .*{error.__name__}: .*of its own"):
        build_inputs(processor, [noise_image(40, 50)], ["the cat"], "{prompt}")
