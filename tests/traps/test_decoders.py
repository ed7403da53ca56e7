"""Traps that lie in a decoder's attention: soft caps, sinks, sliding windows, experts, sparse attention.

The table in tests/traps/test_traps.py says where all traps are tested.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter.vlm.anatomy import Anatomy, attention_kernels, find_anatomy
from lens_adapter.vlm.hooks import capture, prefill
from lens_adapter.vlm.mirror import MirrorLayers
from lens_adapter.vlm.rebuilding import build_layers
from tests.tiny.adapters import GREEDY, hooks_in
from tests.tiny.decoders import CAPPED_OR_SUNK, DECODERS, SLIDING, SPARSE, TOP_KEYS, WINDOW, sparse_inputs, sparse_model
from tests.tiny.models import IMPLEMENTATIONS, NUM_HEADS, NUM_LAYERS, tiny_inputs, tiny_model

LAYERS = range(NUM_LAYERS)
kinds = pytest.mark.parametrize(
    ("decoder", "attention"),
    [
        (name, kernel)
        for name in DECODERS
        for kernel in IMPLEMENTATIONS
        if not (name in CAPPED_OR_SUNK and kernel == "sdpa")
    ],
)


def given_rows(model, inputs):
    """What the model itself says its attention is, for every layer: (B, heads, T, T)."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


def difference(rows, truth, inputs):
    """The largest one in the rows of attended tokens."""
    return (rows - truth).abs().amax(dim=(1, 3))[inputs["attention_mask"].bool()].max()


@kinds
def test_nothing_changes_and_rows_are_the_bases_own(decoder, attention):
    model, inputs = tiny_model("llava", attention=attention, **DECODERS[decoder]), tiny_inputs("llava")
    anatomy = find_anatomy(model)
    with torch.no_grad():
        logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
        with capture(anatomy, tap_layer=2, layers=LAYERS, query="all") as signals:
            assert torch.equal(model(**inputs).logits, logits)
        with capture(anatomy, tap_layer=2, layers=LAYERS):
            assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    early = prefill(anatomy, inputs, tap_layer=2, layers=[2], query="all")
    assert torch.equal(early.hidden, signals.hidden) and torch.equal(early.attention[2], signals.attention[2])
    assert not hooks_in(model)
    for layer, truth in enumerate(given_rows(model, inputs)):
        assert difference(signals.attention[layer], truth, inputs) < 1e-5


@kinds
def test_a_warm_mirror_repeats_its_layer(decoder, attention):
    model, inputs = tiny_model("llava", attention=attention, **DECODERS[decoder]), tiny_inputs("llava")
    signals = prefill(find_anatomy(model), inputs, tap_layer=2, layers=[2])
    mirror = MirrorLayers(build_layers(model.config.to_dict(), [2]))
    mirror.warm_start(find_anatomy(model), 2)
    rows, _ = mirror(signals, signals.queries)
    torch.testing.assert_close(rows, signals.attention[2], atol=1e-5, rtol=0)


def first_rows(**text):
    """Rows of layer 0, which sees the same input whatever the settings of its attention."""
    model = tiny_model("llava", **text)
    return prefill(find_anatomy(model), tiny_inputs("llava"), tap_layer=0, layers=[0]).attention[0]


def test_the_soft_cap_takes_part():
    capped = first_rows(**DECODERS["gemma2"])
    plain = first_rows(**{**DECODERS["gemma2"], "attn_logit_softcapping": None})
    assert (capped - plain).abs().max() > 0.1


def test_a_sink_takes_its_share():
    model, inputs = tiny_model("llava", **DECODERS["gpt_oss"]), tiny_inputs("llava")
    anatomy = find_anatomy(model)
    with torch.no_grad():
        anatomy.attentions[0].sinks.fill_(2)
        with_sinks = prefill(anatomy, inputs, tap_layer=0, layers=[0]).attention[0]
        anatomy.attentions[0].sinks.fill_(-1e4)  # as good as none
        without = prefill(anatomy, inputs, tap_layer=0, layers=[0]).attention[0]
    assert torch.allclose(without.sum(-1), torch.ones(2, NUM_HEADS, 1), atol=1e-5)
    assert with_sinks.sum(-1).max() < 0.9
    torch.testing.assert_close(with_sinks / with_sinks.sum(-1, keepdim=True), without)


@pytest.mark.parametrize("decoder", SLIDING)
def test_a_sliding_layer_gives_nothing_to_tokens_before_its_window(decoder):
    model, inputs = tiny_model("llava", **DECODERS[decoder]), tiny_inputs("llava", padding="none")
    signals = prefill(find_anatomy(model), inputs, tap_layer=0, layers=LAYERS)
    for layer in LAYERS:
        row = signals.attention[layer][:, :, 0]  # (B, heads, T), of the last token
        assert row[..., -WINDOW:].min() > 0
        assert (row[..., :-WINDOW].max() == 0) == (layer in SLIDING[decoder])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("decoder", SLIDING)
def test_a_sliding_cache_shifts_no_column(decoder, cache):
    """Such a cache drops the oldest keys, yet column k is token k at every step."""
    model, inputs = tiny_model("llava", **DECODERS[decoder]), tiny_inputs("llava")
    anatomy = find_anatomy(model)
    options = {**GREEDY, **({"cache_implementation": "static"} if cache == "static" else {})}
    with capture(anatomy, tap_layer=2, layers=LAYERS) as signals:
        tokens = model.generate(**inputs, **options)
    length = inputs["input_ids"].shape[1]
    mask = nn.functional.pad(inputs["attention_mask"], (0, tokens.shape[1] - length), value=1)
    whole = prefill(
        anatomy, {**inputs, "input_ids": tokens, "attention_mask": mask}, tap_layer=2, layers=LAYERS, query="all"
    )
    assert len(signals.steps) == 2
    for place, step in enumerate(signals.steps, start=length):
        for layer in LAYERS:
            expected = whole.attention[layer][:, :, place : place + 1, : place + 1]
            torch.testing.assert_close(step.attention[layer], expected, atol=1e-5, rtol=0)


def test_a_window_that_a_short_sequence_does_not_fill():
    """A static sliding cache is longer than such a sequence."""
    model = tiny_model("llava", **{**DECODERS["mistral"], "sliding_window": 30})
    anatomy, inputs = find_anatomy(model), tiny_inputs("llava")
    with capture(anatomy, tap_layer=1, layers=[1]) as dynamic:
        tokens = model.generate(**inputs, **GREEDY)
    with capture(anatomy, tap_layer=1, layers=[1]) as static:
        assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), tokens)
    for one, two in zip([dynamic, *dynamic.steps], [static, *static.steps], strict=True):
        torch.testing.assert_close(one.attention[1], two.attention[1], atol=1e-5, rtol=0)


# Sparse attention: the module asks which implementation it runs under, and masks the keys that its indexer did not
# choose only if it knows the answer.


def logits_under_a_plain_name(anatomy: Anatomy, inputs, monkeypatch: pytest.MonkeyPatch):
    """As a tap would run them whose name is just another name, over the very same kernel."""
    interface, eager = attention_kernels(type(anatomy.attentions[0]))
    kernel = interface.get_interface(anatomy.attention_implementation(0), eager)
    monkeypatch.setitem(AttentionInterface._global_mapping, "plain", kernel)
    with monkeypatch.context() as patch, torch.no_grad():
        for attention in anatomy.attentions:
            config = copy.copy(attention.config)
            config._attn_implementation_internal = "plain"
            patch.setattr(attention, "config", config)
        return anatomy.model(**inputs).logits


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize("architecture", SPARSE)
def test_sparse_attention_that_looks_at_its_own_implementation(architecture, attention, monkeypatch):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    model, inputs = sparse_model(architecture, attention), sparse_inputs()
    anatomy = find_anatomy(model)
    attended = inputs["attention_mask"].bool()
    with torch.no_grad():
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, **GREEDY)
        plain = logits_under_a_plain_name(anatomy, inputs, monkeypatch)
        with capture(anatomy, tap_layer=2, layers=LAYERS, query="all") as signals:
            ours = model(**inputs).logits
        with capture(anatomy, tap_layer=2, layers=LAYERS):
            assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    assert torch.equal(ours, logits)
    assert (plain - logits)[attended].abs().max() > 0.5  # so the trap is set
    for layer, truth in enumerate(given_rows(model, inputs)):
        assert difference(signals.attention[layer], truth, inputs) < 1e-5
        assert (signals.attention[layer] > 0).sum(-1).transpose(1, 2)[attended].max() == TOP_KEYS
