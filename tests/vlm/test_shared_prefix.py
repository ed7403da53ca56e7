"""Prompts that share an image's tokens get what each would get alone, or the model says once why it cannot."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter.errors import InputError
from lens_adapter.vlm import shared_prefix
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import prefill
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.shared_prefix import SharedInputs, can_share, prefill_shared, share_inputs
from tests.tiny.adapters import (
    FUSIONS,
    GRID,
    hooks_in,
    same_output,
    tiny_adapter,
    tiny_trio,
)
from tests.tiny.models import ARCHITECTURES, IMPLEMENTATIONS
from tests.tiny.pairs import tiny_pair
from tests.tiny.processors import LLAVA_TEMPLATE
from tests.tiny.sam import noise_image
from tests.zoo.specimens import ZOO

IMAGE = noise_image(50, 70)
PROMPTS = ["cat", "the large red car on the left", "a dog", "cat"]  # of unequal length; one twice
TEMPLATE = "Where is {prompt}?"
SYSTEM = "{{ 'Answer with masks. ' }}" + LLAVA_TEMPLATE  # a system prompt: text before the image, the same for all
BEHIND = (
    "{% for part in messages[0].content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<image>"
)


def shared_inputs(model, processor, prompts=PROMPTS) -> SharedInputs | None:
    first = build_inputs(processor, [IMAGE], prompts[:1], TEMPLATE)
    positions = (first["input_ids"][0] == model.config.image_token_id).nonzero()
    return share_inputs(processor, first, int(positions.max()), prompts, TEMPLATE)


@contextmanager
def forwards(adapter):
    """(rows, tokens) of every forward that reaches the decoder meanwhile."""
    seen = []
    layer = adapter.base.anatomy.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    yield seen
    handle.remove()


def each_as_alone(adapter, out):
    for row, prompt in enumerate(PROMPTS):
        alone = adapter.segment(IMAGE, prompt, return_logits=True)
        torch.testing.assert_close(out.logits[row], alone.logits[0], atol=2e-4, rtol=0)
        torch.testing.assert_close(out.heatmaps[row], alone.heatmaps[0], atol=2e-4, rtol=0)
        torch.testing.assert_close(out.keypoints[row], alone.keypoints[0], atol=2e-2, rtol=0)
        assert (out.masks[row] != alone.masks[0]).float().mean() < 1e-3
    assert (out.logits[0] - out.logits[1]).abs().max() > 0.1  # so it matters which prompt it is


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_signals_are_those_of_each_prompt_alone(architecture, attention):
    model, processor = tiny_pair(architecture, attention=attention)
    anatomy, inputs = find_anatomy(model), shared_inputs(model, processor)
    reads = {"tap_layer": 2, "layers": (0, 2)}
    signals = prefill_shared(anatomy, inputs, **reads)
    assert inputs.length > (inputs.first["input_ids"] == model.config.image_token_id).sum()
    for row, prompt in enumerate(PROMPTS):
        alone = prefill(anatomy, build_inputs(processor, [IMAGE], [prompt], TEMPLATE), **reads)
        count = alone.hidden.shape[1]
        assert torch.equal(signals.input_ids[row, :count], alone.input_ids[0])
        assert signals.attention_mask[row].tolist() == [1] * count + [0] * (signals.hidden.shape[1] - count)
        assert signals.queries[row].tolist() == alone.queries[0].tolist() == [count - 1]
        torch.testing.assert_close(signals.hidden[row, :count], alone.hidden[0], atol=1e-5, rtol=1e-5)
        for layer in (0, 2):
            rows = signals.attention[layer][row]  # (heads, 1, T)
            torch.testing.assert_close(rows[..., :count], alone.attention[layer][0], atol=1e-5, rtol=0)
            assert not rows[..., count:].any()
    assert not hooks_in(model)


@pytest.mark.parametrize(("architecture", "fusion"), GRID)
def test_the_image_runs_once_and_masks_are_those_of_each_prompt_alone(architecture, fusion):
    adapter, model, processor = tiny_trio(architecture, fusion, attention="sdpa")
    adapter.segment(IMAGE, "cat")  # now the layout of such images is known
    pictures, preprocess = [], type(processor.image_processor).preprocess
    with pytest.MonkeyPatch.context() as patch:
        counting = lambda *args, **options: pictures.append(1) or preprocess(*args, **options)  # noqa: E731
        patch.setattr(type(processor.image_processor), "preprocess", counting)
        with forwards(adapter) as ran:
            out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    (one, whole), (rows, text) = ran
    assert len(pictures) == 1 and one == 1 and rows == len(PROMPTS)
    text_of_the_first = text - len("the large red car on the left") + len("cat")  # one token a byte
    (layout,) = adapter.layout(build_inputs(processor, [IMAGE], ["cat"], TEMPLATE))
    assert whole - text_of_the_first > len(layout.positions)
    each_as_alone(adapter, out)
    assert not hooks_in(model)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_system_prompt_is_shared_too(fusion):
    adapter, _, processor = tiny_trio("llava", fusion)
    processor.chat_template = SYSTEM
    with forwards(adapter) as ran:
        out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    assert [rows for rows, _ in ran] == [1, len(PROMPTS)]
    each_as_alone(adapter, out)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("architecture", ["gemma3", "idefics3", "internvl", "smolvlm"])
def test_other_architectures(architecture, fusion):  # Gemma 3: sliding windows, and images that see all of themselves
    model, processor = ZOO[architecture].build()
    adapter = tiny_adapter(model, processor, fusion)
    with forwards(adapter) as ran:
        out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    assert [rows for rows, _ in ran] == [1, len(PROMPTS)]
    each_as_alone(adapter, out)


def test_only_prompts_of_one_image_share():
    adapter, _, _ = tiny_trio()
    images, prompts = [IMAGE, noise_image(40, 40, seed=1), noise_image(30, 60, seed=2)], ["cat", PROMPTS, ["a dog"]]
    with forwards(adapter) as ran:
        outs = adapter.segment(images, prompts, batch_size=10, return_logits=True)
    assert [rows for rows, _ in ran] == [1, 4, 2]  # the second image, its prompts, the others together
    for image, texts, out in zip(images, prompts, outs, strict=True):
        alone = adapter.segment(image, texts, return_logits=True)
        torch.testing.assert_close(out.logits, alone.logits, atol=2e-4, rtol=0)


# -- what cannot share


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("florence2", "an encoder reads the prompt"),
        ("mllama", "image states that are not in their own sequence"),
        ("minimax_m3_vl", "keeps more than keys and values"),
        ("qwen3_5", "a state of another kind"),
        ("paligemma", "its tokenizer reads that alone"),  # its processor writes a new line behind the prompt
    ],
)
def test_a_model_that_cannot_says_so_once(architecture, reason, caplog):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    logging.Logger.warning_once.cache_clear()
    model, processor = ZOO[architecture].build()
    adapter = tiny_adapter(model, processor)
    for _ in range(2):
        outs = [adapter.segment(noise_image(*ZOO[architecture].image), ["cat", "dog"])]
    said = [record.getMessage() for record in caplog.records if "runs anew for every prompt" in record.getMessage()]
    assert len(said) == 1 and reason in said[0]
    assert outs[0].heatmaps.std() > 0


def test_text_before_the_image_is_not_shared(caplog):
    logging.Logger.warning_once.cache_clear()
    adapter, _, processor = tiny_trio("llava")
    processor.chat_template = BEHIND
    with forwards(adapter) as ran:
        out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    assert [rows for rows, _ in ran] == [len(PROMPTS)] and "do not begin with the image" in caplog.text
    each_as_alone(adapter, out)


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_image_tokens_that_look_at_the_text_are_noticed(attention, caplog):
    model, processor = ZOO["paligemma"].build()
    model.set_attn_implementation(attention)
    first = build_inputs(processor, [IMAGE], ["cat"], TEMPLATE)
    tails = first["input_ids"][:, -3:].expand(2, -1)
    inputs = SharedInputs(first, first["input_ids"].shape[1] - 3, tails, torch.ones_like(tails))
    anatomy = find_anatomy(model)
    assert can_share(anatomy, tap_layer=1)  # nothing speaks against it before it runs
    assert prefill_shared(anatomy, inputs, tap_layer=1) is None
    assert "its image tokens may look at the text behind them" in caplog.text
    assert not can_share(anatomy, tap_layer=1) and not hooks_in(model)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_does_not_agree_with_the_whole_prompt_is_not_used(fusion, monkeypatch, caplog):
    adapter, _, _ = tiny_trio("qwen2_vl", fusion)
    right = shared_prefix._positions_on
    monkeypatch.setattr(shared_prefix, "_positions_on", lambda *given: right(*given) + 1)
    with forwards(adapter) as ran:
        out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
        assert same_output(adapter.segment(IMAGE, PROMPTS, return_logits=True), out)
    count = len(PROMPTS)
    assert [rows for rows, _ in ran] == [1, count, count, count]  # tried once
    assert len([record for record in caplog.records if "differ by" in record.getMessage()]) == 1
    each_as_alone(adapter, out)


def test_a_model_that_ignores_its_cache_is_noticed(monkeypatch, caplog):
    adapter, model, _ = tiny_trio("llava")
    attention = type(model.model.language_model.layers[1].self_attn)
    forward = attention.forward

    def forgetful(self, *args, **kwargs):
        return forward(self, *args, **{**kwargs, "past_key_values": None} if self.layer_idx == 1 else kwargs)

    monkeypatch.setattr(attention, "forward", forgetful)
    each_as_alone(adapter, adapter.segment(IMAGE, PROMPTS, return_logits=True))
    assert "do not keep what they need" in caplog.text


def test_an_error_in_the_text_of_any_prompt_is_raised():
    adapter, model, _ = tiny_trio("llava")
    for bad, message in (("", "must say what to find"), ("<image>", "special tokens"), ("x" * 400, "starts with 'xxx")):
        with pytest.raises(InputError, match=message):
            adapter.segment(IMAGE, ["cat", bad])
        assert not hooks_in(model)
