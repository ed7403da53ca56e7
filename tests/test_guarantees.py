"""The four guarantees: weights untouched, outputs bit-identical, nothing left behind, any attention implementation."""

from __future__ import annotations

import copy
import gc
import sys
import weakref

import pytest
import torch

from lens_adapter.errors import InputError
from tests.tiny.adapters import (
    GREEDY,
    GRID,
    PAIRED,
    hooks_in,
    learn,
    marks_on,
    ready_inputs,
    tiny_adapter,
    tiny_trio,
    weights_of,
)
from tests.tiny.models import ARCHITECTURES, IMPLEMENTATIONS
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

IMAGE = noise_image(50, 70)
everywhere = pytest.mark.parametrize(("architecture", "fusion"), GRID)
paired = pytest.mark.parametrize(("architecture", "fusion"), PAIRED)


@everywhere
def test_weights_of_the_base_are_never_written(architecture, fusion):
    model, processor = tiny_pair(architecture)
    before, marks = weights_of(model), marks_on(model)
    adapter = tiny_adapter(model, processor, fusion)
    adapter.segment(IMAGE, ["the cat", "a dog"])
    with adapter.capture(query="all"):
        model(**ready_inputs(processor))
    trained = copy.deepcopy(adapter.head.state_dict())
    learn(adapter, processor)
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in adapter.head.state_dict().items())
    assert weights_of(model) == before
    adapter.detach()
    assert weights_of(model) == before and not hooks_in(model)
    # Not even a gradient. (Some bases remember positions of a forward that the user ran: those are the user's.)
    assert [mark[-1] for mark in marks_on(model)] == [mark[-1] for mark in marks]


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@paired
def test_outputs_of_the_base_are_bit_identical(architecture, fusion, attention):
    model, processor = tiny_pair(architecture, attention=attention)
    inputs = ready_inputs(processor)

    @torch.no_grad()
    def speak() -> tuple[torch.Tensor, torch.Tensor]:
        return model(**inputs).logits, model.generate(**inputs, **GREEDY)

    said = [speak()]
    adapter = tiny_adapter(model, processor, fusion)
    said.append(speak())
    with adapter.capture(query="all", layers=range(4)) as signals:
        said.append(speak())
    assert len(signals.steps) == GREEDY["max_new_tokens"]  # so capture was at work
    adapter.segment(IMAGE, "the cat")
    said.append(speak())
    learn(adapter, processor)
    said.append(speak())
    adapter.detach()
    said.append(speak())
    logits, tokens = said[0]
    assert len(tokens.unique()) > 1 and logits.std() > 0
    for other_logits, other_tokens in said[1:]:
        assert torch.equal(other_logits, logits) and torch.equal(other_tokens, tokens)


@everywhere
def test_nothing_is_left_after_use(architecture, fusion):
    model, processor = tiny_pair(architecture)
    model(**ready_inputs(processor))  # what a base remembers of a forward must survive too
    content, marks = model.config.to_json_string(), marks_on(model)
    with tiny_adapter(model, processor, fusion) as adapter:
        adapter.segment(IMAGE, ["the cat", "a dog"])
        assert not hooks_in(model) and marks_on(model) == marks  # not only after detach
    assert not hooks_in(model) and marks_on(model) == marks
    assert model.config.to_json_string() == content


class Boom(RuntimeError):
    pass


def explode(*_):
    raise Boom


def layers_of(model):
    return model.model.language_model.layers


@paired
@pytest.mark.parametrize("place", ["layer", "attention", "vision", "head", "decoder", "image", "prompt"])
def test_nothing_is_left_after_an_exception_in_segment(architecture, fusion, place):
    adapter, model, processor = tiny_trio(architecture, fusion, tap_layer=1)
    model(**ready_inputs(processor))
    marks, content = marks_on(model), model.config.to_json_string()
    vision = getattr(model.model, "vision_tower", None) or model.model.visual
    images, prompts, error = [IMAGE, IMAGE], ["the cat", "a dog"], Boom
    culprit = {
        "layer": layers_of(model)[0],
        "attention": layers_of(model)[0].self_attn.o_proj,
        "vision": vision,
        "head": adapter.head.descriptors,
        "decoder": adapter.decoder.mask_decoder,
    }.get(place)
    if culprit is not None:
        handle = culprit.register_forward_pre_hook(explode)
    elif place == "image":
        images, error = [IMAGE, "no such file"], InputError
    else:
        prompts, error = ["the cat", ""], InputError
    with pytest.raises(error):
        adapter.train().segment(images, prompts)
    if culprit is not None:
        handle.remove()
    assert adapter.training and not hooks_in(model) and marks_on(model) == marks
    assert model.config.to_json_string() == content
    adapter.segment(IMAGE, "the cat")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("place", [0, 2, 3, "body"])
def test_nothing_is_left_after_an_exception_in_capture(architecture, place):
    adapter, model, processor = tiny_trio(architecture)
    inputs = ready_inputs(processor)
    with torch.no_grad():
        logits = model(**inputs).logits  # now Qwen remembers its positions
        configs = [mark[:4] for mark in marks_on(model)]
        culprit = layers_of(model)[0 if place == "body" else place].self_attn.o_proj
        handle = culprit.register_forward_pre_hook(explode)
        with pytest.raises(Boom), adapter.capture(query="all", layers=range(4)):
            if place == "body":
                raise Boom
            model(**inputs)
        handle.remove()
        assert not hooks_in(model) and [mark[:4] for mark in marks_on(model)] == configs
        assert torch.equal(model(**inputs).logits, logits)


@paired
def test_no_reference_to_the_base_is_left(architecture, fusion):
    adapter, model, processor = tiny_trio(architecture, fusion)
    adapter.segment(IMAGE, "the cat")
    inputs = ready_inputs(processor)
    with adapter.capture() as signals:
        model(**inputs)
    with pytest.raises(Boom), adapter.capture():
        raise Boom
    learn(adapter, processor)
    handle = layers_of(model)[0].register_forward_pre_hook(explode)
    with pytest.raises(Boom):
        adapter.segment(IMAGE, "the cat")
    handle.remove()
    sys.last_value = sys.last_exc = None  # a debugger's, not ours
    adapter.detach()
    watches = [weakref.ref(module) for module in model.modules()]
    del model, handle
    gc.collect()
    assert not [watch for watch in watches if watch() is not None]
    assert signals.hidden is not None
