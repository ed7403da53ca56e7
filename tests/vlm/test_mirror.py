from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lens_adapter.errors import LensConfigError, LensError, UnsupportedModelError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import capture, prefill
from lens_adapter.vlm.mirror import MirrorLayers
from lens_adapter.vlm.rebuilding import build_layers
from tests.tiny.models import ARCHITECTURES, IMPLEMENTATIONS, NUM_HEADS, tiny_inputs, tiny_model

everywhere = pytest.mark.parametrize(
    ("architecture", "attention"), [(name, kernel) for name in ARCHITECTURES for kernel in IMPLEMENTATIONS]
)
TAP = 2  # behind the layers after which qwen3_vl adds visual features


def warm_mirror(anatomy, first=TAP, count=2):
    mirror = MirrorLayers(build_layers(anatomy.config.to_dict(), range(first, first + count)))
    mirror.warm_start(anatomy, first)
    return mirror


def outputs_of_layers(anatomy, inputs):
    """What each decoder layer itself puts out, before anything else touches it."""
    outputs = []

    def keep(_, __, output):
        outputs.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [layer.register_forward_hook(keep) for layer in anatomy.layers]
    with torch.no_grad():
        anatomy.model(**inputs)
    for handle in handles:
        handle.remove()
    return outputs


@everywhere
@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_a_warm_mirror_repeats_the_base(architecture, attention, padding):
    anatomy = find_anatomy(tiny_model(architecture, attention=attention))
    inputs = tiny_inputs(architecture, padding=padding)
    signals = prefill(anatomy, inputs, tap_layer=TAP, layers=[TAP], query=[-2, -1])
    rows, hidden = warm_mirror(anatomy)(signals, signals.queries)
    truth = outputs_of_layers(anatomy, inputs)[TAP + 1]
    attended = inputs["attention_mask"].bool()
    torch.testing.assert_close(hidden[attended], truth[attended], atol=1e-5, rtol=1e-5)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, signals.attention[TAP], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_a_mirror_repeats_a_record_of_generate(attention):
    anatomy = find_anatomy(tiny_model("qwen2_vl", attention=attention))
    inputs = tiny_inputs("qwen2_vl")
    with capture(anatomy, tap_layer=TAP, layers=[TAP]) as signals:
        anatomy.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    mirror = warm_mirror(anatomy)
    rows, once = mirror(signals, signals.queries)
    _, twice = mirror(signals, signals.queries)
    torch.testing.assert_close(rows, signals.attention[TAP], atol=1e-5, rtol=0)
    assert torch.equal(once, twice)  # no cache is kept between calls


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_visual_features_that_a_base_adds_between_layers(attention):
    anatomy, inputs = find_anatomy(tiny_model("qwen3_vl", attention=attention)), tiny_inputs("qwen3_vl")
    raw = outputs_of_layers(anatomy, inputs)
    image = inputs["input_ids"] == anatomy.image_token_id
    # The tap reads the input of its layer: what was added after the layer before is in it, at the image tokens alone.
    signals = prefill(anatomy, inputs, tap_layer=1, layers=[1])
    assert torch.equal(signals.hidden[~image], raw[0][~image])
    assert not torch.isclose(signals.hidden[image], raw[0][image]).all(dim=-1).any()
    # One mirrored layer repeats layer 1; what the base adds behind that one is not repeated.
    rows, hidden = warm_mirror(anatomy, first=1, count=1)(signals, signals.queries)
    attended = inputs["attention_mask"].bool()
    torch.testing.assert_close(hidden[attended], raw[1][attended], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows, signals.attention[1], atol=1e-5, rtol=0)


@everywhere
def test_gradients(architecture, attention):
    anatomy = find_anatomy(tiny_model(architecture, attention=attention))
    signals = prefill(anatomy, tiny_inputs(architecture), tap_layer=TAP)
    mirror = warm_mirror(anatomy).train()
    rows, hidden = mirror(signals, signals.queries)
    rows.square().sum().backward(retain_graph=True)
    reached = {name for name, p in mirror.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert "layers.0.self_attn.q_proj.weight" in reached and not any(name.startswith("layers.1") for name in reached)
    mirror.zero_grad(set_to_none=True)
    hidden.square().sum().backward()
    # A key bias shifts all scores of a query alike, so softmax is blind to it, up to rounding.
    unreached = {name for name, p in mirror.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert unreached == set()
    assert all(p.grad is None for p in anatomy.model.parameters())


def test_the_base_stays_as_it_is_and_shares_nothing():
    anatomy = find_anatomy(tiny_model("llava", attention="sdpa"))
    weights = {name: tensor.clone() for name, tensor in anatomy.model.state_dict().items()}
    signals = prefill(anatomy, tiny_inputs("llava"), tap_layer=TAP, layers=[TAP])
    mirror = MirrorLayers(build_layers(anatomy.config.to_dict(), [TAP]))
    mirror.warm_start(anatomy, TAP)
    mirror(replace(signals, kernel="eager"), signals.queries)  # runs under another kernel than the base
    assert anatomy.attention_implementation(TAP) == "sdpa"
    with torch.no_grad():
        for parameter in mirror.parameters():
            parameter.add_(1)
    assert all(torch.equal(weights[name], tensor) for name, tensor in anatomy.model.state_dict().items())
    assert torch.equal(prefill(anatomy, tiny_inputs("llava"), tap_layer=TAP, layers=[TAP]).hidden, signals.hidden)


def test_configs_are_copied_once():
    layers = build_layers(find_anatomy(tiny_model("llava")).config.to_dict(), [0, 1])
    given = layers[0].self_attn.config
    MirrorLayers(layers)
    configs = {id(module.config) for module in layers.modules() if hasattr(module, "config")}
    assert len(configs) == 1 and id(given) not in configs


def test_a_bfloat16_base_and_a_float32_mirror():
    for attention in IMPLEMENTATIONS:
        anatomy = find_anatomy(tiny_model("qwen2_5_vl", attention=attention, dtype=torch.bfloat16))
        inputs = tiny_inputs("qwen2_5_vl", dtype=torch.bfloat16)
        signals = prefill(anatomy, inputs, tap_layer=TAP, layers=[TAP])
        rows, hidden = warm_mirror(anatomy)(signals, signals.queries)
        assert hidden.dtype == torch.float32
        torch.testing.assert_close(rows, signals.attention[TAP], atol=0.02, rtol=0.05)


def test_state_dict_round_trip():
    anatomy = find_anatomy(tiny_model("qwen2_vl"))
    signals = prefill(anatomy, tiny_inputs("qwen2_vl"), tap_layer=TAP)
    mirror = warm_mirror(anatomy)
    assert all(name.startswith(("layers.0.", "layers.1.")) for name in mirror.state_dict())
    again = MirrorLayers(build_layers(anatomy.config.to_dict(), [TAP, TAP + 1]))
    again.load_state_dict(mirror.state_dict())
    rows, hidden = mirror(signals, signals.queries)
    rows_again, hidden_again = again(signals, signals.queries)
    assert torch.equal(rows, rows_again) and torch.equal(hidden, hidden_again)
    assert rows.shape == (2, NUM_HEADS, 1, hidden.shape[1]) and hidden.shape == signals.hidden.shape


def test_forward_leaves_no_hook():
    anatomy = find_anatomy(tiny_model("llava"))
    signals = prefill(anatomy, tiny_inputs("llava"), tap_layer=TAP)
    mirror = warm_mirror(anatomy)
    mirror(signals, signals.queries)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in mirror.modules())
    assert len({id(module.config) for module in mirror.modules() if hasattr(module, "config")}) == 1


def test_warm_start_says_what_does_not_fit():
    model = tiny_model("llava")
    anatomy = find_anatomy(model)
    mirror = MirrorLayers(build_layers(anatomy.config.to_dict(), [2, 3]))
    with pytest.raises(LensConfigError, match="layer 3 of a base that has 4"):
        mirror.warm_start(anatomy, 3)
    with pytest.raises(LensError, match="differ"):
        mirror.warm_start(find_anatomy(tiny_model("llava", intermediate_size=40)), 2)
    peft_model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(LensError, match="Merge LoRA"):
        mirror.warm_start(find_anatomy(peft_model), 2)
    mirror.warm_start(find_anatomy(peft_model.merge_and_unload()), 2)
    offloaded = find_anatomy(tiny_model("llava").to("meta"))
    with pytest.raises(LensError, match="offloaded"):
        mirror.warm_start(offloaded, 2)


def test_layers_without_attention_are_refused():
    with pytest.raises(UnsupportedModelError, match="got Linear"):
        MirrorLayers(nn.ModuleList([nn.Linear(2, 2)]))
    with pytest.raises(UnsupportedModelError, match="got no layer"):
        MirrorLayers(nn.ModuleList())
