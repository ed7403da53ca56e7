"""Traps of code that is not run as it was written: torch.compile, flex attention, gradient checkpointing.

The table in tests/traps/test_traps.py says where all traps are tested.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from transformers import CompileConfig

from lens_adapter.errors import LensError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import capture, prefill
from tests.tiny.adapters import FUSIONS, GREEDY, assert_close, hooks_in, tiny_adapter
from tests.tiny.models import FIRST_WORD, tiny_inputs, tiny_model
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

WANTED = {"tap_layer": 2, "layers": [1, 2]}
TEXT = {  # without an image, of which compiling takes most of the time
    "input_ids": torch.arange(FIRST_WORD, FIRST_WORD + 12)[None],
    "attention_mask": torch.ones(1, 12, dtype=torch.long),
    "use_cache": False,
}


class Counting:
    """A backend for torch.compile that compiles nothing and counts how often a graph of its own runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph, inputs, **options):
        def run(*args):
            self.runs += 1
            return graph(*args)

        return run

    def __deepcopy__(self, memo) -> Counting:
        return self  # transformers copies its settings, of which it is one


@pytest.fixture
def backend():
    torch.compiler.reset()
    yield Counting()
    torch.compiler.reset()


def short_model():
    """As few layers as will do: compiling takes time for each."""
    return tiny_model("llava", attention="sdpa", num_hidden_layers=3)


@cache
def uncompiled():
    """Logits and record of the plain model."""
    model = short_model()
    with torch.no_grad(), capture(find_anatomy(model), **WANTED) as signals:
        logits = model(**TEXT).logits
    return logits, signals


def same(one, two) -> bool:
    return torch.equal(one.hidden, two.hidden) and all(
        torch.equal(one.attention[layer], two.attention[layer]) for layer in two.attention
    )


def compile_model(model, backend):
    model.compile(backend=backend)
    return model


def compile_wrapper(model, backend):
    return torch.compile(model, backend=backend)


def compile_forward(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def compile_layers(model, backend):
    for layer in find_anatomy(model).layers:
        layer.compile(backend=backend)
    return model


def compile_decoder(model, backend):
    model.model.language_model = torch.compile(model.model.language_model, backend=backend)
    return model


@pytest.mark.parametrize(
    ("compiled", "attach"),
    [
        (compile_model, "before compiling"),
        (compile_model, "after compiling"),
        (compile_model, "after running"),
        (compile_wrapper, "after running"),
        (compile_forward, "after compiling"),
        (compile_layers, "after running"),
        (compile_decoder, "after running"),
    ],
)
@torch.no_grad()
def test_a_compiled_model_is_read_as_it_was_written(compiled, attach, backend):
    plain, expected = uncompiled()
    model = short_model()
    if attach == "before compiling":
        anatomy = find_anatomy(model)
        prefill(anatomy, TEXT, **WANTED)
        model = compiled(model, backend)
    else:
        model = compiled(model, backend)
        anatomy = find_anatomy(model)
    if attach == "after running":
        model(**TEXT)
        assert backend.runs > 0  # so it was compiled
    runs = backend.runs
    with capture(anatomy, **WANTED) as signals:
        assert torch.equal(model(**TEXT).logits, plain)
    assert same(signals, expected) and same(prefill(anatomy, TEXT, **WANTED), expected)
    assert backend.runs == runs and not hooks_in(model)
    # Outside, it is a compiled model as before, with nothing of a tap in it.
    torch.testing.assert_close(model(**TEXT).logits, plain)
    assert backend.runs > runs
    assert signals.steps == []


@torch.no_grad()
def test_generate_that_compiles_by_itself(backend):
    """With a static cache, transformers compiles the model unasked (on accelerators; here by force)."""
    model = short_model()
    options = {**GREEDY, "cache_implementation": "static", "compile_config": CompileConfig(backend=backend)}
    options["compile_config"].fullgraph = False
    options["compile_config"]._compile_all_devices = True
    ids = {name: TEXT[name] for name in ("input_ids", "attention_mask")}
    with capture(find_anatomy(model), **WANTED) as signals:
        tokens = model.generate(**ids, **options)
    assert backend.runs == 0 and len(signals.steps) == 2
    assert torch.equal(model.generate(**ids, **options), tokens)
    assert backend.runs > 0 and len(signals.steps) == 2


@torch.no_grad()
def test_compiling_goes_on_when_the_last_capture_has_closed(backend):
    """In whatever order they close, and after an error."""
    model = tiny_model("llava")
    anatomy, function = find_anatomy(model), torch.compile(torch.sin, backend=backend)
    one, two = ExitStack(), ExitStack()
    one.enter_context(capture(anatomy, **WANTED))
    two.enter_context(capture(anatomy, **WANTED))
    model(**TEXT)
    one.close()
    function(torch.ones(3))
    assert backend.runs == 0
    two.close()
    function(torch.ones(3))
    assert backend.runs == 1
    with pytest.raises(ZeroDivisionError), capture(anatomy, **WANTED):
        raise ZeroDivisionError
    function(torch.ones(3))
    assert backend.runs == 2


def test_a_users_stance_is_his_own_again(backend):
    function = torch.compile(torch.sin, backend=backend)
    with torch.compiler.set_stance("force_eager"):
        prefill(find_anatomy(tiny_model("llava")), TEXT, **WANTED)
        function(torch.ones(3))
    assert backend.runs == 0


# Flex attention: its mask is no tensor, and its kernel is compiled code. Compiling takes most of a minute, so here it
# runs uncompiled.


@pytest.fixture
def flex_uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


def use_flex(model):
    model.set_attn_implementation({"text_config": "flex_attention"})
    return model


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention(flex_uncompiled):
    inputs, model = tiny_inputs("llava"), use_flex(tiny_model("llava"))
    anatomy = find_anatomy(model)
    assert anatomy.attention_implementation(2) == "flex_attention"
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with capture(anatomy, tap_layer=2, layers=range(4), query="all") as signals:
        assert torch.equal(model(**inputs).logits, logits)
    with capture(anatomy, tap_layer=2, layers=range(4)) as steps:
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    truth = tiny_model("llava", attention="eager")(**inputs, output_attentions=True).attentions
    attended = inputs["attention_mask"].bool()
    for layer in range(4):
        assert (signals.attention[layer] - truth[layer]).abs().amax((1, 3))[attended].max() < 1e-5
        assert steps.steps[-1].attention[layer].shape[-1] == tokens.shape[1] - 1
    early = prefill(anatomy, inputs, tap_layer=2, layers=[2], query="all")
    assert torch.equal(early.hidden, signals.hidden) and torch.equal(early.attention[2], signals.attention[2])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("fusion", FUSIONS)
def test_segment_under_flex_attention(flex_uncompiled, fusion):
    model, processor = tiny_pair("llava", attention="sdpa")
    adapter, image = tiny_adapter(model, processor, fusion), noise_image(50, 70)
    expected = adapter.segment(image, ["the cat", "a dog"], return_logits=True)
    use_flex(model)
    assert_close(adapter.segment(image, ["the cat", "a dog"], return_logits=True), expected)


@torch.no_grad()
def test_flex_attention_keeps_its_compiled_kernel(backend):
    """Run as it was written, it would be slow, and rounded otherwise."""
    model = use_flex(tiny_model("llava"))
    function = torch.compile(torch.sin, backend=backend)
    with pytest.raises(LensError, match="No forward"), capture(find_anatomy(model), **WANTED):
        function(torch.ones(3))
    assert backend.runs == 1


# Gradient checkpointing: the layers run a second time, in the backward pass, while the context is open or after it.


@pytest.mark.parametrize("backward", ["inside", "after"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, backward):
    inputs, model = tiny_inputs("llava"), tiny_model("llava")
    anatomy = find_anatomy(model)
    expected = prefill(anatomy, inputs, **WANTED)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    passes = []
    anatomy.layers[1].mlp.register_forward_pre_hook(lambda *_: passes.append(1))

    def loss():
        model.zero_grad()
        return model(**inputs, labels=inputs["input_ids"], use_cache=False).loss

    loss().backward()
    assert len(passes) == 2  # so it was at work
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with capture(anatomy, **WANTED) as signals:
        error = loss()
        if backward == "inside":
            error.backward()
    if backward == "after":
        error.backward()
    assert same(signals, expected) and signals.steps == []
    got = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(one, two) for one, two in zip(got, gradients, strict=True))
