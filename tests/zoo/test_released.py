"""Every architecture at the size that its config has by default, which is that of a released model, without memory.

Tiny models are of one piece where released ones are not: layers of several kinds, with heads of their own, or experts
that make a layer enormous. What is attached here lives on the meta device. (What is always refused: test_zoo.py.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from lens_adapter import LensAdapter, LensConfig
from lens_adapter.errors import UnsupportedModelError
from lens_adapter.vlm.anatomy import Anatomy, auto_class, find_anatomy
from lens_adapter.vlm.architectures import known
from tests.tiny.sam import tiny_sam
from tests.zoo.specimens import ZOO, architectures

MAJOR = int(transformers.__version__.partition(".")[0])
WHOLE = {"rope_type": "default", "rope_theta": 1e4}
# What a default config lacks, so that no model can be built of it.
LACKING: dict[str, dict[str, Any]] = {
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},  # 14 do not divide its width
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "cohere_compass": {"text_config": {"rope_parameters": {"sliding_attention": WHOLE, "full_attention": WHOLE}}},
    "diffusion_gemma": {"text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704}},
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "granite4_vision": {"deepstack_layer_map": [], "downsample_rate": "1/2"},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "perception_lm": {
        "vision_config": {"architecture": "vit_pe_core_large_patch14_336", "model_args": {"embed_dim": 1024}}
    },
    "qwen4_exp": {
        "text_config": {
            **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 2048},
            **{"indexer_compress_ratio": 4, "hc_lowrank": 64},
        }
    },
}
if MAJOR < 5:
    LACKING |= {
        "idefics3": {"text_config": {"model_type": "llama", "pad_token_id": 0}},  # 128002 is beyond the vocabulary
        "smolvlm": {"text_config": {"model_type": "llama", "pad_token_id": 0}},
        "mllama": {"text_config": {"rope_scaling": WHOLE}},
        "qwen3_vl": {"text_config": {"rope_scaling": {**WHOLE, "mrope_section": [24, 20, 20]}}},
        "qwen3_vl_moe": {"text_config": {"rope_scaling": {**WHOLE, "mrope_section": [24, 20, 20]}}},
    }
NOT_BUILT = {"pixtral": "transformers 4 lists the config of this vision tower as one of LLaVA"}
# Mixtures of experts, whose layers are too large to be copied.
ENORMOUS = ("dots3_note", "glm4v_moe", "inkling2", "inkling_mm_model", "kimi_k25", "minimax_m3_vl", "mistral_large4")
ENORMOUS += ("muse_spark", "step3p7")

LISTED = architectures() | set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
TRIED = sorted(name for name in LISTED if not known(name).refused and name not in NOT_BUILT)


@pytest.fixture(scope="module", params=TRIED)
def released(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel]:
    """Each architecture and a model of it, built once for all tests below."""
    architecture = request.param
    for module in ZOO[architecture].requires:
        pytest.importorskip(module)
    config = AutoConfig.for_model(architecture, **LACKING.get(architecture, {}))
    with torch.device("meta"):
        return architecture, auto_class(config).from_config(config).eval()


def attached(model: PreTrainedModel, config: LensConfig, folder: Path) -> LensAdapter:
    """An adapter that was built from a config.json alone."""
    config.save_pretrained(folder)
    with torch.device("meta"):
        adapter = LensAdapter(LensConfig.from_pretrained(folder))
    return adapter.attach(model)


def readable(architecture: str) -> bool:
    return ZOO[architecture].since <= MAJOR


def test_lite_attaches_to_the_released_shape(released, tmp_path):
    architecture, model = released
    if not readable(architecture):
        with pytest.raises(UnsupportedModelError, match="does not go through the attention interface"):
            find_anatomy(model)
        return
    assert known(architecture).layout
    config = LensConfig.from_model(model, fusion="lite", sam=tiny_sam())
    anatomy = attached(model, config, tmp_path).base.anatomy
    assert set(config.attention_layers) <= set(anatomy.readable)
    layers = [layer for layer, count in enumerate(anatomy.num_heads) if count]
    assert all(config.heads_of(layer) == anatomy.num_heads[layer] for layer in layers)
    everything = LensConfig.from_model(model, fusion="lite", sam=tiny_sam(), attention_layers=layers)
    read = attached(model, everything, tmp_path).head.fusion.attention
    assert read.in_features == sum(anatomy.num_heads)


def test_mirror_attaches_to_the_released_shape_or_says_why_not(released, tmp_path):
    architecture, model = released
    if not readable(architecture):
        return
    row = known(architecture)
    reason = "several residual streams" if row.streams else "refine the text alone" if row.cross else None
    reason = r"take \d+ GB, and more than 16 GB" if architecture in ENORMOUS else reason
    if reason:
        with pytest.raises(UnsupportedModelError, match=f"'{architecture}' cannot be mirrored: .*{reason}.*lite"):
            LensConfig.from_model(model, sam=tiny_sam())
        return
    adapter = attached(model, LensConfig.from_model(model, sam=tiny_sam()), tmp_path)
    layers = adapter.base.anatomy.layers[adapter.config.tap_layer :]
    for mine, theirs in zip(adapter.mirror.layers, layers, strict=False):
        shapes = ({name: tensor.shape for name, tensor in layer.state_dict().items()} for layer in (mine, theirs))
        assert next(shapes) == next(shapes)


def test_the_tiny_model_has_the_layers_of_the_released_one(released):
    """Kinds of layer, which of them can be read, and whether heads differ from one kind to another."""
    architecture, model = released
    if not readable(architecture):
        return
    big, tiny = find_anatomy(model), find_anatomy(ZOO[architecture].build()[0])
    assert {*_kinds(big)} <= {*_kinds(tiny)}
    assert len({*_shapes(big)}) <= len({*_shapes(tiny)})


def _kinds(anatomy: Anatomy) -> list[tuple[str, bool]]:
    return [(kind, count > 0) for kind, count in zip(anatomy.kinds, anatomy.num_heads, strict=True)]


def _shapes(anatomy: Anatomy) -> list[tuple[int, Any]]:
    """Heads and their width, of each layer that can be read."""
    return [
        (count, getattr(attention, "head_dim", None))
        for count, attention in zip(anatomy.num_heads, anatomy.attentions, strict=True)
        if attention is not None
    ]


@pytest.mark.parametrize("architecture", sorted(NOT_BUILT))
def test_what_is_not_built_here_cannot_be_built(architecture):
    if architecture not in LISTED:
        pytest.skip("not in this version of transformers")
    config = AutoConfig.for_model(architecture)
    with pytest.raises(AttributeError), torch.device("meta"):
        auto_class(config).from_config(config)
