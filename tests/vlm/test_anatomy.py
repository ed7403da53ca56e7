from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, ImageTextToTextPipeline
from transformers.models.llava import LlavaConfig, LlavaForConditionalGeneration

from lens_adapter.errors import LensConfigError, UnsupportedModelError
from lens_adapter.vlm import anatomy as room
from lens_adapter.vlm import architectures as table
from lens_adapter.vlm.anatomy import find_anatomy, unwrap
from lens_adapter.vlm.rebuilding import build_layers
from tests.tiny.models import (
    ARCHITECTURES,
    HIDDEN_SIZE,
    IMAGE,
    IMPLEMENTATIONS,
    NUM_HEADS,
    NUM_LAYERS,
    tiny_inputs,
    tiny_language_model,
    tiny_model,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_facts(architecture):
    model = tiny_model(architecture, attention="sdpa")
    anatomy = find_anatomy(model)
    assert anatomy.model is model and anatomy.config is model.config
    assert anatomy.architecture == architecture
    assert anatomy.layers is model.model.language_model.layers and len(anatomy.layers) == NUM_LAYERS
    assert anatomy.attentions == [layer.self_attn for layer in anatomy.layers]
    assert anatomy.path == [model, model.model, model.model.language_model]
    assert anatomy.decoder is model.model.language_model
    assert (anatomy.hidden_size, anatomy.num_heads, anatomy.image_token_id) == (
        HIDDEN_SIZE,
        [NUM_HEADS] * NUM_LAYERS,
        IMAGE,
    )
    assert anatomy.attention_implementation(1) == "sdpa"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_search_finds_the_decoder_and_not_the_vision_tower(architecture):
    model = tiny_model(architecture)
    assert room._search_layers(model) is find_anatomy(model).layers


def test_a_path_of_the_table_is_followed(monkeypatch):
    model = tiny_model("llava")
    path = "model.vision_tower.vision_model.encoder.layers"
    if not hasattr(model.model.vision_tower, "vision_model"):  # transformers 5 has one module less
        path = "model.vision_tower.encoder.layers"
    monkeypatch.setitem(table.ARCHITECTURES, "llava", table.Architecture(layers=path))
    assert len(find_anatomy(model).layers) == 2


def test_a_class_that_nobody_knows_works_by_the_generic_path():
    class HomeMadeConfig(LlavaConfig):
        model_type = "home_made"

    class HomeMade(LlavaForConditionalGeneration):
        pass

    known = tiny_model("llava").config
    model = HomeMade(HomeMadeConfig(**{k: v for k, v in known.to_dict().items() if k != "model_type"}))
    anatomy = find_anatomy(model)
    assert anatomy.architecture == "home_made" and len(anatomy.layers) == NUM_LAYERS


def test_unwraps_peft_and_pipeline_and_compiled():
    model = tiny_model("llava")
    pipeline = ImageTextToTextPipeline.__new__(ImageTextToTextPipeline)  # without the processor that it would ask for
    pipeline.model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert unwrap(model) is model
    assert unwrap(pipeline.model) is model
    assert unwrap(pipeline) is model
    assert find_anatomy(pipeline).model is model
    assert find_anatomy(torch.compile(pipeline.model)).model is model


def test_refuses_prompt_learning():
    peft_model = get_peft_model(tiny_model("llava"), PromptTuningConfig(TaskType.CAUSAL_LM, num_virtual_tokens=3))
    with pytest.raises(UnsupportedModelError, match="virtual tokens"):
        find_anatomy(peft_model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "Expected a vision-language model.*got Linear"),
        (lambda: "llava-hf/llava-1.5-7b-hf", "got str"),
        (tiny_language_model, "'llama'.*not a vision-language model.*Pass the whole model"),
        (lambda: tiny_model("llava").model.language_model, "not a vision-language model"),
        (lambda: tiny_model("llava").model.vision_tower, "not a vision-language model"),
    ],
    ids=["module", "name", "text only", "language model", "vision tower"],
)
def test_refuses_what_is_no_vision_language_model(make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        find_anatomy(make())


@pytest.mark.parametrize("architecture", ["blip", "blip-2", "git", "idefics2", "instructblip", "kosmos-2", "udop"])
def test_refuses_by_table_with_a_reason(architecture):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(architecture))
    with pytest.raises(UnsupportedModelError, match=f"'{architecture}'") as caught:
        find_anatomy(model)
    assert table.known(architecture).refused in str(caught.value)


@pytest.mark.parametrize("architecture", ["blip", "git"])
def test_attention_past_the_interface_is_noticed_without_the_table(architecture, monkeypatch):
    monkeypatch.delitem(table.ARCHITECTURES, architecture)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(architecture))
    with pytest.raises(UnsupportedModelError, match="attention interface"):
        find_anatomy(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_build_layers_from_a_config(architecture):
    base = find_anatomy(tiny_model(architecture, dtype=torch.bfloat16))
    layers = build_layers(base.config.to_dict(), [1, 3])
    for layer, source in zip(layers, (base.layers[1], base.layers[3]), strict=True):
        assert type(layer) is type(source)
        shapes = {name: tensor.shape for name, tensor in layer.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in source.state_dict().items()}
        layer.load_state_dict(source.state_dict())
    assert {parameter.dtype for parameter in layers.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in layers.parameters()} == {"cpu"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_built_layers_start_random_and_sane(architecture):
    facts = find_anatomy(tiny_model(architecture)).config.to_dict()
    torch.manual_seed(0)
    one, two = build_layers(facts, [2]), build_layers(facts, [2])
    for name, parameter in one.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 10, name
        if parameter.dim() > 1:
            assert not torch.equal(parameter, two.get_parameter(name)) and 0.01 < parameter.std() < 0.5, name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_build_layers_says_what_is_wrong():
    facts = tiny_model("llava").config.to_dict()
    with pytest.raises(LensConfigError, match="0 to 3"):
        build_layers(facts, [3, 4])
    with pytest.raises(LensConfigError, match="model_type"):
        build_layers({"hidden_size": 3}, [0])
    with pytest.raises(UnsupportedModelError, match="'llama' is not"):
        build_layers(tiny_language_model().config.to_dict(), [0])


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_finding_changes_nothing(attention):
    model, inputs = tiny_model("qwen2_vl", attention=attention), tiny_inputs("qwen2_vl")
    with torch.no_grad():
        before = model(**inputs).logits
        find_anatomy(model)
        assert torch.equal(model(**inputs).logits, before)
