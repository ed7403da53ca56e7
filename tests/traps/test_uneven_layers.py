"""Decoders whose layers differ in heads or in their width: no number is read for all of them.

The table in tests/traps/test_traps.py says where all traps are tested.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter import LensAdapter, LensConfig
from lens_adapter.data.examples import Example
from lens_adapter.errors import CheckpointMismatchError, LensConfigError, UnsupportedModelError
from lens_adapter.training.cache.read import CachedFeatures, collate_features
from lens_adapter.training.cache.write import cache_features
from lens_adapter.vlm import anatomy as room
from lens_adapter.vlm.anatomy import auto_class, find_anatomy
from lens_adapter.vlm.hooks import prefill
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.mirror import MirrorLayers
from lens_adapter.vlm.rebuilding import build_layers
from tests.tiny.adapters import same_output, tiny_adapter
from tests.tiny.models import tiny_model
from tests.tiny.sam import noise_image
from tests.zoo.specimens import ZOO

HEADS = {"dots3_note": [4, 4, 2, 4], "inkling_mm_model": [2, 4, 2, 4], "step3p7": [4, 8, 4, 8], "gemma4": [4] * 4}
PROMPTS = ["cat", "the dog on the left"]


def specimen(architecture: str) -> tuple[PreTrainedModel, Any]:
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    return ZOO[architecture].build()


def rebuilt(model: PreTrainedModel, **text: Any) -> PreTrainedModel:
    """A random model of the same config but for some settings of each layer of a kind."""
    facts = copy.deepcopy(model.config.to_dict())
    for layer in facts["text_config"]["per_layer_config"].values():
        layer |= {key: value for key, value in text.items() if key in layer}
    return auto_class(model.config).from_config(type(model.config).from_dict(facts)).eval()


@pytest.mark.parametrize("architecture", HEADS)
def test_a_head_is_rebuilt_from_its_config_alone(architecture, tmp_path):
    model, processor = specimen(architecture)
    adapter = tiny_adapter(model, processor, attention_layers=[1, 2])
    heads = HEADS[architecture]
    assert adapter.config.num_attention_heads == (heads if len(set(heads)) > 1 else heads[0])
    assert adapter.head.fusion.attention.in_features == heads[1] + heads[2]
    image = noise_image(*ZOO[architecture].image)
    out = adapter.segment(image, PROMPTS, return_logits=True)
    adapter.save_pretrained(tmp_path)
    loaded = LensAdapter.from_pretrained(tmp_path).attach(model, processor)
    assert same_output(loaded.segment(image, PROMPTS, return_logits=True), out)


@pytest.mark.parametrize("architecture", HEADS)
def test_a_mirror_starts_from_a_layer_that_differs(architecture):
    model, processor = specimen(architecture)
    anatomy, inputs = find_anatomy(model), ZOO[architecture].ask(processor, [noise_image(*ZOO[architecture].image)])
    for layer in (1, 2):
        signals = prefill(anatomy, inputs, tap_layer=layer, layers=[layer])
        mirror = MirrorLayers(build_layers(model.config.to_dict(), [layer]))
        mirror.warm_start(anatomy, layer)
        rows, _ = mirror(signals, signals.queries)
        assert rows.shape[1] == HEADS[architecture][layer]
        torch.testing.assert_close(rows, signals.attention[layer])


@pytest.mark.parametrize(
    ("architecture", "text", "message"),
    [
        (
            "dots3_note",
            {"num_attention_heads": 4, "num_key_value_heads": 4},
            r"num_attention_heads of layer 2: 2 \(got 4",
        ),
        ("gemma4", {"head_dim": 8}, r"text head_dim of layer 1: 16 \(got 8\)"),
    ],
)
def test_a_base_that_differs_in_some_layers_is_refused(architecture, text, message):
    model, _ = specimen(architecture)
    adapter = tiny_adapter(model)
    with pytest.raises(CheckpointMismatchError, match=message):
        adapter.attach(rebuilt(model, **text))
    adapter.attach(rebuilt(model))


def test_cached_features_of_layers_that_differ(tmp_path):
    model, processor = specimen("dots3_note")
    adapter = tiny_adapter(model, processor, attention_layers=[1, 2])
    image = noise_image(*ZOO["dots3_note"].image)
    mask = torch.ones(image.height, image.width, dtype=torch.bool).numpy()
    cache_features(adapter, [Example(image, "cat", mask)], tmp_path / "features")
    signals = collate_features([CachedFeatures(tmp_path / "features")[0]])["batch"].signals
    live = adapter.prefill(build_inputs(processor, [image], ["cat"], adapter.config.prompt_template))
    assert {layer: rows.shape[1] for layer, rows in signals.attention.items()} == {1: 4, 2: 2}
    for layer, rows in signals.attention.items():
        torch.testing.assert_close(rows, live.attention[layer], atol=1e-3, rtol=0)


def test_heads_of_each_layer_are_checked():
    config = LensConfig(num_hidden_layers=3, num_attention_heads=[4, 0, 2], fusion="lite")
    assert [config.heads_of(layer) for layer in range(3)] == [4, 0, 2]
    for wrong in ([4, 2], [0, 0, 0], [4, 2, -1], [4, 2.0, 2], []):
        with pytest.raises(LensConfigError, match=r"LensConfig\.num_attention_heads must be .* one for each layer"):
            LensConfig(num_hidden_layers=3, num_attention_heads=wrong, fusion="lite")


def test_copies_too_large_to_train_are_refused_before_they_are_made(monkeypatch):
    model = tiny_model("llava")
    config = LensConfig.from_model(model)
    monkeypatch.setattr(room, "MAX_MIRROR_GB", 1e-5)  # of which a tiny layer takes about three times as much
    for ask in (lambda: LensConfig.from_model(model), lambda: LensAdapter(config)):
        with pytest.raises(
            UnsupportedModelError, match=r"'llava' .* layers \[2, 3\] take 0 GB, .* Use fusion=\"lite\""
        ):
            ask()
    assert LensConfig.from_model(model, fusion="lite").fusion == "lite"
