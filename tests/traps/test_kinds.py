"""Decoders whose layers are of several kinds: linear attention and sliding windows beside full attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter import LensConfig
from lens_adapter.errors import LensConfigError, UnsupportedModelError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import capture, prefill
from lens_adapter.vlm.mirror import MirrorLayers
from lens_adapter.vlm.rebuilding import build_layers
from tests.tiny.models import tiny_model

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
_QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 16}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_5": {  # full attention in layers 3 and 7
        "text_config": {
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "full_attention_interval": 4,
            **_TEXT,
        },
        "vision_config": _QWEN_VISION,
        "image_token_id": 5,
    },
    "gemma3": {  # the others see the last 4 tokens
        "text_config": {"sliding_window": 4, "sliding_window_pattern": 4, **_TEXT},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
    },
}


def hybrid(architecture: str, **text: Any) -> PreTrainedModel:
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    facts = copy.deepcopy(HYBRIDS[architecture])
    facts["text_config"] |= text
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(architecture, **facts)).eval()


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_defaults_move_to_layers_that_can_be_read_and_see_everything(architecture):
    model = hybrid(architecture)
    assert find_anatomy(model).readable == [3, 7]
    lite = LensConfig.from_model(model, fusion="lite")
    assert (lite.tap_layer, lite.attention_layers) == (3, [3])  # 4 is the middle
    deep = LensConfig.from_model(model, fusion="lite", tap_layer=6)
    assert (deep.tap_layer, deep.attention_layers) == (6, [3, 7])
    mirror = LensConfig.from_model(model)
    assert (mirror.tap_layer, mirror.fusion_layers, mirror.attention_layers) == (3, 1, [])
    assert LensConfig.from_dict(mirror.to_dict()).tap_layer == 3


def test_what_cannot_be_read_is_refused_by_name():
    model = hybrid("qwen3_5")
    with pytest.raises(LensConfigError, match=r"tap_layer.*\[4\] of 'qwen3_5'.*from \[3, 7\]"):
        LensConfig.from_model(model, tap_layer=4)
    with pytest.raises(LensConfigError, match=r"attention_layers.*\[2\].*from \[3, 7\]"):
        LensConfig.from_model(model, fusion="lite", attention_layers=[2, 3])
    with (
        pytest.raises(UnsupportedModelError, match=r"layers \[4\].*\[3, 7\]"),
        capture(find_anatomy(model), tap_layer=4, layers=[4]),
    ):
        pass


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_a_mirror_ends_before_a_layer_of_another_kind(architecture):
    model = hybrid(architecture)
    with pytest.raises(LensConfigError, match="at most 1 for this base and tap_layer 3"):
        LensConfig.from_model(model, fusion_layers=2)


def test_a_sliding_layer_can_be_chosen():
    model = hybrid("gemma3")
    assert LensConfig.from_model(model, tap_layer=4).fusion_layers == 2
    assert LensConfig.from_model(model, fusion="lite", attention_layers=[1]).attention_layers == [1]


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_rows_and_mirror_of_the_moved_layer(architecture):
    """The default mirror, started from the base, sees what the base sees: the whole sequence."""
    model = hybrid(architecture)
    anatomy, config = find_anatomy(model), LensConfig.from_model(model)
    ids = torch.arange(10, 22)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    signals = prefill(anatomy, inputs, tap_layer=config.tap_layer, layers=[config.tap_layer])
    assert (signals.attention[3] > 0).all()
    mirror = MirrorLayers(build_layers(config.require_base_config(), [3]))
    mirror.warm_start(anatomy, 3)
    rows, _ = mirror(signals, signals.queries)
    torch.testing.assert_close(rows, signals.attention[3])


def test_a_window_of_every_layer_is_none():
    """Where no layer sees everything there is nothing to prefer."""
    assert find_anatomy(hybrid("gemma3", layer_types=["sliding_attention"] * 8)).readable == list(range(8))


def test_modules_are_asked_where_the_config_is_silent():
    model = tiny_model("llava")
    assert find_anatomy(model).kinds == ["full_attention"] * 4
    model.model.language_model.layers[2].self_attn.sliding_window = 8
    assert find_anatomy(model).readable == [0, 1, 3]
    assert LensConfig.from_model(model).tap_layer == 1
