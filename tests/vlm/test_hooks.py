from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from contextlib import ExitStack

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lens_adapter.errors import InputError, LensConfigError, LensError, UnsupportedModelError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import capture, prefill
from tests.tiny.models import (
    ARCHITECTURES,
    FIRST_WORD,
    HIDDEN_SIZE,
    IMPLEMENTATIONS,
    NUM_HEADS,
    NUM_LAYERS,
    tiny_inputs,
    tiny_model,
)

everywhere = pytest.mark.parametrize(
    ("architecture", "attention"), [(name, kernel) for name in ARCHITECTURES for kernel in IMPLEMENTATIONS]
)
GREEDY = {"max_new_tokens": 3, "do_sample": False}


def traces(model: nn.Module) -> list[tuple]:
    """Everything a tap touches: hooks (but those that transformers itself installs), configs and kernels, modes."""

    def hooks(module):
        every = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        return [id(hook) for hook in every if not str(getattr(hook, "__module__", "")).startswith("transformers.")]

    return [
        (
            hooks(module),
            id(getattr(module, "config", None)),
            type(getattr(getattr(module, "config", None), "_attn_implementation", None)),
            module.training,
            "forward" in vars(module),
        )
        for module in model.modules()
    ]


def same(one, two) -> bool:
    """Bit-identical records."""
    return (
        torch.equal(one.hidden, two.hidden)
        and torch.equal(one.queries, two.queries)
        and one.attention.keys() == two.attention.keys()
        and all(torch.equal(one.attention[layer], two.attention[layer]) for layer in one.attention)
    )


def eager_rows(architecture, inputs, **text):
    """What the base itself says its attention is: one (B, heads, T, T) per layer."""
    with torch.no_grad():
        return tiny_model(architecture, attention="eager", **text)(**inputs, output_attentions=True).attentions


@everywhere
def test_outputs_are_bit_identical_and_weights_untouched(architecture, attention):
    model, inputs = tiny_model(architecture, attention=attention), tiny_inputs(architecture)
    anatomy, before = find_anatomy(model), traces(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
        with capture(anatomy, tap_layer=2, layers=range(NUM_LAYERS)) as signals:
            assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        prefill(anatomy, inputs, tap_layer=2, layers=[2])
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    assert len(signals.steps) == 3 and traces(model) == before
    after = model.state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)


@everywhere
@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_rows_are_the_attention_of_the_base(architecture, attention, padding):
    model, inputs = tiny_model(architecture, attention=attention), tiny_inputs(architecture, padding=padding)
    batch, length = inputs["input_ids"].shape
    truth = eager_rows(architecture, inputs)
    with torch.no_grad(), capture(find_anatomy(model), tap_layer=1, layers=range(NUM_LAYERS), query="all") as signals:
        model(**inputs)
    if attention == "sdpa" and padding == "none":
        assert signals.layer_kwargs["attention_mask"] is None  # so the causal rows are of our own making
    assert torch.equal(signals.queries, torch.arange(length).expand(batch, length))
    attended = inputs["attention_mask"].bool()
    for layer in range(NUM_LAYERS):
        rows = signals.attention[layer]
        assert rows.shape == (batch, NUM_HEADS, length, length) and rows.dtype == torch.float32
        difference = (rows - truth[layer]).abs().amax(dim=(1, 3))  # (B, T)
        assert difference[attended].max() < 1e-5
        # Not just uniform rows, which would agree by chance.
        assert truth[layer].amax(-1).transpose(1, 2)[attended].mean() > 0.15


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("query", ["last", [-1], [-3, -1]])
def test_queries_count_attended_tokens(padding, query):
    inputs = tiny_inputs("qwen2_5_vl", padding=padding)
    anatomy = find_anatomy(tiny_model("qwen2_5_vl"))
    every = prefill(anatomy, inputs, tap_layer=1, layers=[2], query="all").attention[2]
    signals = prefill(anatomy, inputs, tap_layer=1, layers=[2], query=query)
    wanted = [-1] if query == "last" else query
    for sample, mask in enumerate(inputs["attention_mask"]):
        expected = mask.nonzero().flatten()[wanted]
        assert torch.equal(signals.queries[sample], expected)
        torch.testing.assert_close(signals.attention[2][sample], every[sample][:, expected], atol=1e-6, rtol=0)


def test_record_of_a_forward():
    inputs = tiny_inputs("llava")
    model = tiny_model("llava")
    truth = model(**inputs, output_hidden_states=True).hidden_states
    with capture(find_anatomy(model), tap_layer=2, layers=[0]) as signals:  # grad is enabled here
        model(**inputs)
    assert torch.equal(signals.hidden, truth[2]) and not signals.hidden.requires_grad
    assert not signals.attention[0].requires_grad
    assert signals.hidden.shape == (*inputs["input_ids"].shape, HIDDEN_SIZE)
    assert torch.equal(signals.input_ids, inputs["input_ids"])
    assert torch.equal(signals.attention_mask, inputs["attention_mask"])
    assert signals.layer_kwargs["past_key_values"] is None and "hidden_states" not in signals.layer_kwargs
    assert not signals.layer_kwargs.get("use_cache") and signals.steps == []
    assert not any(tensor.requires_grad for tensor in signals.layer_kwargs["position_embeddings"])


@everywhere
def test_generate_records_every_step_over_the_grown_key_axis(architecture, attention):
    inputs = tiny_inputs(architecture)
    model = tiny_model(architecture, attention=attention)
    with capture(find_anatomy(model), tap_layer=2, layers=[1, 3]) as signals:
        tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert signals.attention[1].shape == (2, NUM_HEADS, 1, length) and len(signals.steps) == 3
    # Teacher-forced: the whole sequence at once gives the rows of every step.
    whole = {**inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    whole["attention_mask"][:, :length] = inputs["attention_mask"]
    if "mm_token_type_ids" in inputs:
        whole["mm_token_type_ids"] = nn.functional.pad(inputs["mm_token_type_ids"], (0, tokens.shape[1] - length))
    truth = prefill(find_anatomy(model), whole, tap_layer=2, layers=[1, 3], query="all")
    for place, step in enumerate(signals.steps, start=length):
        assert step.hidden.shape == (2, 1, HIDDEN_SIZE) and step.queries.tolist() == [[place]] * 2
        assert torch.equal(step.input_ids, tokens[:, place : place + 1])
        torch.testing.assert_close(step.hidden, truth.hidden[:, place : place + 1], atol=1e-4, rtol=1e-4)
        for layer in (1, 3):
            expected = truth.attention[layer][:, :, place : place + 1, : place + 1]
            torch.testing.assert_close(step.attention[layer], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("query", "rows"), [("all", 1), ([-2, -1], 1), ([-2], 0)])
def test_a_step_records_the_queries_that_it_computes(query, rows):
    model = tiny_model("llava", attention="sdpa")
    with capture(find_anatomy(model), tap_layer=1, layers=[1], query=query) as signals:
        model.generate(**tiny_inputs("llava"), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert signals.steps[0].attention[1].shape[2] == signals.steps[0].queries.shape[1] == rows


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_a_static_cache_adds_no_columns(attention):
    inputs, model = tiny_inputs("llava"), tiny_model("llava", attention=attention)
    anatomy = find_anatomy(model)
    options = {**GREEDY, "min_new_tokens": 3}
    with capture(anatomy, tap_layer=1, layers=[1]) as dynamic:
        tokens = model.generate(**inputs, **options)
    with capture(anatomy, tap_layer=1, layers=[1]) as static:
        assert torch.equal(model.generate(**inputs, **options, cache_implementation="static"), tokens)
    for one, two in zip([dynamic, *dynamic.steps], [static, *static.steps], strict=True):
        torch.testing.assert_close(one.attention[1], two.attention[1], atol=1e-5, rtol=0)


@everywhere
@pytest.mark.parametrize(("tap_layer", "layers", "last"), [(2, (), 1), (2, (1, 2), 2), (2, (0,), 1), (0, (0,), 0)])
def test_prefill_stops_early_and_records_the_same(architecture, attention, tap_layer, layers, last):
    model, inputs = tiny_model(architecture, attention=attention), tiny_inputs(architecture)
    anatomy, called, returned = find_anatomy(model), [], []
    with torch.no_grad(), capture(anatomy, tap_layer=tap_layer, layers=layers) as whole:
        model(**inputs, use_cache=False)
    for index, layer in enumerate(anatomy.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: called.append(index))
        layer.self_attn.register_forward_pre_hook(lambda *_, index=index: called.append(index))
        layer.self_attn.register_forward_hook(lambda *_, index=index: returned.append(index))
    before = traces(model)
    signals = prefill(anatomy, inputs, tap_layer=tap_layer, layers=layers)
    assert same(signals, whole) and torch.equal(signals.input_ids, whole.input_ids)
    assert max(called) == last  # the attention of the last layer needed, and nothing after it
    assert returned == list(range(tap_layer))  # where its rows alone are wanted, its kernel does not run
    assert traces(model) == before


def test_prefill_in_training_mode_is_without_dropout_and_restores_every_module():
    inputs = tiny_inputs("llava")
    model = tiny_model("llava", attention_dropout=0.5)
    anatomy = find_anatomy(model)
    expected = prefill(anatomy, inputs, tap_layer=2, layers=[1])
    model.train()
    model.model.vision_tower.eval()
    before = traces(model)
    assert same(prefill(anatomy, inputs, tap_layer=2, layers=[1]), expected)
    assert traces(model) == before and model.training and not model.model.vision_tower.training


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_capture_of_a_training_step_changes_no_random_number_and_no_gradient(attention):
    inputs = tiny_inputs("llava")
    model = tiny_model("llava", attention=attention, attention_dropout=0.5).train()

    def step():
        torch.manual_seed(3)
        model.zero_grad()
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None), torch.rand(1)]

    expected = step()
    with capture(find_anatomy(model), tap_layer=2, layers=[0, 2]) as signals:
        got = step()
    assert all(torch.equal(one, two) for one, two in zip(expected, got, strict=True))
    assert torch.allclose(signals.attention[2].sum(-1), torch.ones(2, NUM_HEADS, 1), atol=1e-5)


def test_gradient_checkpointing():
    inputs, model = tiny_inputs("llava"), tiny_model("llava")
    anatomy = find_anatomy(model)
    expected = prefill(anatomy, inputs, tap_layer=2, layers=[1])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with capture(anatomy, tap_layer=2, layers=[1]) as signals:
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert same(signals, expected) and signals.steps == []


def test_prefill_leaves_a_generate_that_is_under_way_alone():
    model = tiny_model("qwen2_vl")
    anatomy, inputs = find_anatomy(model), tiny_inputs("qwen2_vl")
    with torch.no_grad():
        model(**inputs)
    remembered = model.model.rope_deltas
    other = {name: tensor[:1] for name, tensor in tiny_inputs("qwen2_vl", padding="none", seed=4).items()}
    other["pixel_values"] = torch.randn(48, inputs["pixel_values"].shape[1])
    prefill(anatomy, other, tap_layer=1)
    assert model.model.rope_deltas is remembered and remembered is not None


class Broken(RuntimeError):
    pass


@everywhere
@pytest.mark.parametrize("place", ["layers.3", "layers.1.self_attn.o_proj", "layers.1.self_attn.q_proj", "norm"])
def test_an_error_inside_the_base_leaves_nothing_behind(architecture, attention, place):
    model, inputs = tiny_model(architecture, attention=attention), tiny_inputs(architecture)
    anatomy, fail = find_anatomy(model), [True]

    def breaks(*_):
        if fail[0]:
            raise Broken

    anatomy.decoder.get_submodule(place).register_forward_pre_hook(breaks)
    before = traces(model)
    with pytest.raises(Broken), capture(anatomy, tap_layer=2, layers=[1, 3]):
        model(**inputs)
    assert traces(model) == before
    # A failed forward is no record, and does not stand in the way of the next.
    with capture(anatomy, tap_layer=2, layers=[1, 3]) as signals:
        with pytest.raises(Broken):
            model(**inputs)
        assert signals.hidden is None and signals.attention == {}
        fail[0] = False
        model(**inputs)
    assert signals.hidden is not None and signals.steps == []
    fail[0] = place != "norm"
    if fail[0]:
        model.train()
        before = traces(model)
        with pytest.raises(Broken):
            prefill(anatomy, inputs, tap_layer=3, layers=[1, 3])
        assert traces(model) == before


def test_an_interrupt_inside_the_attention_leaves_nothing_behind():
    model = tiny_model("llava")
    anatomy = find_anatomy(model)

    def interrupt(*_):
        raise KeyboardInterrupt

    anatomy.attentions[1].q_proj.register_forward_pre_hook(interrupt)
    before = traces(model)
    with pytest.raises(KeyboardInterrupt), capture(anatomy, tap_layer=2, layers=[1]):
        model(**tiny_inputs("llava"))
    assert traces(model) == before


def test_an_error_of_the_user_is_not_masked():
    with pytest.raises(Broken), capture(find_anatomy(tiny_model("llava")), tap_layer=2):
        raise Broken


def test_no_forward_is_an_error():
    model = tiny_model("llava")
    before = traces(model)
    no_forward = pytest.raises(LensError, match="No forward of LlavaForConditionalGeneration")
    with no_forward, capture(find_anatomy(model), tap_layer=2):
        pass
    assert traces(model) == before


@pytest.mark.parametrize("silent", ["attention", "layer"])
def test_a_tap_that_does_not_fire_is_an_error(silent):
    model = tiny_model("llava")
    anatomy = find_anatomy(model)
    # Stand-ins that the base never calls: what hooks on compiled code amount to.
    if silent == "attention":
        anatomy = dataclasses.replace(anatomy, attentions=copy.deepcopy(anatomy.attentions))
    else:
        anatomy = dataclasses.replace(anatomy, layers=copy.deepcopy(anatomy.layers))
    before = traces(model)
    wanted = "attention of layer 1" if silent == "attention" else "input of layer 2"
    not_fired = pytest.raises(LensError, match=f"did not pass.*{wanted}.*torch.compile")
    with not_fired, capture(anatomy, tap_layer=2, layers=[1]):
        model(**tiny_inputs("llava"))
    with pytest.raises(LensError, match=wanted):
        prefill(anatomy, tiny_inputs("llava"), tap_layer=2, layers=[1])
    assert traces(model) == before


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_two_captures_at_once_record_both(attention):
    inputs, model = tiny_inputs("qwen2_vl"), tiny_model("qwen2_vl", attention=attention)
    anatomy, before = find_anatomy(model), traces(model)
    first = {"tap_layer": 2, "layers": [1, 2]}
    second = {"tap_layer": 1, "layers": [2, 3], "query": [-2]}
    with torch.no_grad():
        logits = model(**inputs).logits
        with capture(anatomy, **first) as one, capture(find_anatomy(model), **second) as two:
            assert torch.equal(model(**inputs).logits, logits)
    assert same(one, prefill(anatomy, inputs, **first)) and same(two, prefill(anatomy, inputs, **second))
    assert traces(model) == before


def test_captures_that_overlap_without_nesting():
    inputs, model = tiny_inputs("llava"), tiny_model("llava")
    anatomy, before = find_anatomy(model), traces(model)
    one, two = ExitStack(), ExitStack()
    first = one.enter_context(capture(anatomy, tap_layer=1, layers=[1]))
    second = two.enter_context(capture(anatomy, tap_layer=1, layers=[1]))
    model(**inputs)
    one.close()
    model(**inputs)
    two.close()
    assert first.steps == [] and len(second.steps) == 1
    assert same(first, second) and same(second.steps[0], first) and traces(model) == before


def test_prefill_inside_a_capture_is_not_recorded_by_it():
    inputs, model = tiny_inputs("llava"), tiny_model("llava")
    anatomy = find_anatomy(model)
    with capture(anatomy, tap_layer=2, layers=[0]) as signals:
        inner = prefill(anatomy, inputs, tap_layer=2, layers=[0])
        assert signals.hidden is None
        model(**inputs)
    assert signals.steps == [] and same(signals, inner)


def test_the_model_is_free_afterwards():
    model, inputs = tiny_model("llava"), tiny_inputs("llava")
    with capture(find_anatomy(model), tap_layer=2, layers=[1]) as signals:
        model(**inputs)
    kept = prefill(find_anatomy(model), inputs, tap_layer=2, layers=[1])
    with pytest.raises(LensError), capture(find_anatomy(model), tap_layer=2):
        pass
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None and same(kept, signals)


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_lora(attention):
    model, inputs = tiny_model("llava", attention=attention), tiny_inputs("llava")
    plain = prefill(find_anatomy(model), inputs, tap_layer=2, layers=[1])
    torch.manual_seed(5)
    peft_model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    with torch.no_grad():
        logits = peft_model(**inputs).logits
        with capture(find_anatomy(peft_model), tap_layer=2, layers=[1]) as signals:
            assert torch.equal(peft_model(**inputs).logits, logits)
            peft_model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert torch.equal(signals.input_ids, inputs["input_ids"]) and len(signals.steps) == 2
    assert torch.equal(signals.attention_mask, inputs["attention_mask"])
    assert same(prefill(find_anatomy(peft_model), inputs, tap_layer=2, layers=[1]), signals)
    assert not torch.allclose(signals.hidden, plain.hidden)  # the adapter's own weights take part


@everywhere
def test_bfloat16(architecture, attention):
    model = tiny_model(architecture, attention=attention, dtype=torch.bfloat16)
    inputs = tiny_inputs(architecture, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(**inputs).logits
        with capture(find_anatomy(model), tap_layer=2, layers=[1]) as signals:
            assert torch.equal(model(**inputs).logits, logits)
    assert signals.hidden.dtype == torch.bfloat16 and signals.attention[1].dtype == torch.float32
    assert torch.allclose(signals.attention[1].sum(-1), torch.ones(2, NUM_HEADS, 1), atol=0.02)


def test_text_alone_and_embeddings():
    model = tiny_model("llava")
    anatomy = find_anatomy(model)
    ids = torch.arange(FIRST_WORD, FIRST_WORD + 6)[None]
    text = prefill(anatomy, {"input_ids": ids}, tap_layer=1, layers=[1])
    embedded = prefill(anatomy, {"inputs_embeds": model.get_input_embeddings()(ids)}, tap_layer=1, layers=[1])
    assert text.attention_mask is None and text.queries.tolist() == [[5]]
    assert embedded.input_ids is None and same(text, embedded)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tap_layer": NUM_LAYERS}, LensConfigError, "tap_layer.*0 to 3"),
        ({"tap_layer": 0, "layers": [1, -1]}, LensConfigError, "layers.*0 to 3"),
        ({"tap_layer": 0, "query": "first"}, InputError, "query"),
        ({"tap_layer": 0, "query": []}, InputError, "query"),
        ({"tap_layer": 0, "query": [3]}, InputError, "counted from the end"),
        ({"tap_layer": 0, "query": [-100]}, InputError, "too few"),
        ({"tap_layer": 0, "query": [-25]}, InputError, "too few"),  # the padded sample has not that many
    ],
)
def test_impossible_requests(options, error, message):
    model = tiny_model("llava")
    before = traces(model)
    with pytest.raises(error, match=message), capture(find_anatomy(model), **options):
        model(**tiny_inputs("llava"))
    assert traces(model) == before


def test_a_layer_without_attention_is_named():
    anatomy = find_anatomy(tiny_model("llava"))
    anatomy = dataclasses.replace(anatomy, attentions=[None, *anatomy.attentions[1:]])
    refused = pytest.raises(UnsupportedModelError, match=r"layers \[0\].*\[1, 2, 3\]")
    with refused, capture(anatomy, tap_layer=1, layers=[0]):
        pass
