"""Decoders that carry several residual streams: a capture holds one hidden state per token."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter import LensConfig
from lens_adapter.errors import UnsupportedModelError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.architectures import ARCHITECTURES
from lens_adapter.vlm.hooks import prefill
from lens_adapter.vlm.rebuilding import build_layers
from tests.zoo.elsewhere import SPECIMENS

STREAMS = [name for name, architecture in ARCHITECTURES.items() if architecture.streams]
WHERE = {  # the streams of a layer's input (1, 5, 32) -> (streams, 1, 5, 32)
    "gemma3n": lambda hidden: hidden,
    "glm5_next": lambda hidden: hidden.movedim(2, 0),
    "qwen4_exp": lambda hidden: torch.stack(hidden.split(32, dim=-1)),
}


def built(architecture: str) -> nn.Module:
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    return SPECIMENS[architecture].build()[0]


@pytest.mark.parametrize("architecture", STREAMS)
def test_one_stream_is_captured(architecture):
    model = built(architecture)
    ids = torch.arange(10, 15)[None]
    seen = []
    with (
        find_anatomy(model)
        .layers[2]
        .register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    ):
        signals = prefill(find_anatomy(model), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tap_layer=2)
    streams = WHERE[architecture](seen[0])
    assert signals.hidden.shape == (1, 5, 32) and len(streams) > 1 and not torch.equal(streams[0], streams[1])
    expected = streams[0] if architecture == "gemma3n" else streams.mean(0)
    torch.testing.assert_close(signals.hidden, expected)


@pytest.mark.parametrize("architecture", STREAMS)
def test_streams_are_not_mirrored(architecture):
    model = built(architecture)
    with pytest.raises(UnsupportedModelError, match=f"'{architecture}' cannot be mirrored.*streams.*lite"):
        LensConfig.from_model(model)
    with pytest.raises(UnsupportedModelError, match="streams"):
        build_layers(model.config.to_dict(), [1])
    assert LensConfig.from_model(model, fusion="lite").fusion == "lite"
