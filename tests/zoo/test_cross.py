"""Decoders that attend to image states apart from their text: what is read has one sequence, states first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from lens_adapter import LensConfig
from lens_adapter.errors import LensError, UnsupportedModelError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.architectures import ARCHITECTURES
from lens_adapter.vlm.hooks import capture, prefill
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout.tokens import token_layouts
from lens_adapter.vlm.rebuilding import build_layers
from tests.zoo.checks import noise_image
from tests.zoo.elsewhere import SPECIMENS

CROSS_ATTENTIONS = [name for name, architecture in ARCHITECTURES.items() if architecture.cross]
STATES = {"mllama": 2 * 17, "pix2struct": 30}  # (1 + 4 x 4) tokens of 2 tiles; at most 30 patches
PROMPTS = ["cat", "the dog on the left"]


def built(architecture: str) -> tuple[PreTrainedModel, Any]:
    if int(transformers.__version__.partition(".")[0]) < SPECIMENS[architecture].since:
        pytest.skip("its attention cannot be read in this version of transformers")
    return SPECIMENS[architecture].build()


def ready(architecture: str, *prompts: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    model, processor = built(architecture)
    images = [noise_image((64, 64), seed=len(prompt)) for prompt in prompts]  # of mllama's tiles, one of two is used
    return model, build_inputs(processor, images, prompts, "{prompt}")


@pytest.mark.parametrize("architecture", CROSS_ATTENTIONS)
def test_rows_in_a_batch_are_those_of_each_alone(architecture):
    tap = {"tap_layer": 3, "layers": [1, 3]}
    model, inputs = ready(architecture, *PROMPTS)
    anatomy, count = find_anatomy(model), STATES[architecture]
    both = prefill(anatomy, inputs, **tap)
    length = both.hidden.shape[1]
    assert both.attention_mask.shape == both.input_ids.shape == (2, length)
    assert (both.input_ids[:, :count] == -1).all() and (both.input_ids[:, count:] >= 0).all()
    for index, prompt in enumerate(PROMPTS):
        alone = prefill(anatomy, ready(architecture, prompt)[1], **tap)
        mask = both.attention_mask[index]
        text = count + mask[count:].nonzero().flatten()  # on whichever side the padding is
        torch.testing.assert_close(both.hidden[index, text], alone.hidden[0, count:], atol=1e-5, rtol=1e-4)
        assert both.queries[index].tolist() == [text.max()]
        for layer in (1, 3):
            rows = both.attention[layer][index]
            torch.testing.assert_close(rows[..., :count], alone.attention[layer][0, ..., :count])
            torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
            assert not rows[..., count:].any() and not rows[..., :count][..., mask[:count] == 0].any()


@pytest.mark.parametrize(("architecture", "seen"), [("mllama", 17), ("pix2struct", 25)])
def test_states_that_show_no_image_are_masked(architecture, seen):
    model, inputs = ready(architecture, "cat")
    signals = prefill(find_anatomy(model), inputs, tap_layer=1)
    assert signals.attention_mask[0, : STATES[architecture]].tolist() == [1] * seen + [0] * (
        STATES[architecture] - seen
    )


@pytest.mark.parametrize(("architecture", "grid", "first"), [("mllama", (4, 4), 1), ("pix2struct", (5, 5), 0)])
def test_layout_counts_states(architecture, grid, first):
    model, inputs = ready(architecture, *PROMPTS)
    for layout in token_layouts(find_anatomy(model), None, inputs):
        assert layout.grid == grid
        assert layout.positions.tolist() == list(range(first, first + grid[0] * grid[1]))


@pytest.mark.parametrize("architecture", CROSS_ATTENTIONS)
def test_steps_of_generate(architecture):
    model, inputs = ready(architecture, "cat")
    count = STATES[architecture]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "use_cache": True}
    before = model.generate(**inputs, **options)
    with capture(find_anatomy(model), tap_layer=1, layers=[1, 3]) as signals:
        during = model.generate(**inputs, **options)
    assert torch.equal(before, during) and len(signals.steps) == 2
    length = signals.hidden.shape[1]
    for index, step in enumerate(signals.steps, start=1):
        assert step.queries.tolist() == [[length - 1 + index]] and step.hidden.shape[:2] == (1, 1)
        rows = step.attention[3]
        assert rows.shape[-1] == length + index and not rows[..., count:].any()
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))


@pytest.mark.parametrize("architecture", CROSS_ATTENTIONS)
def test_they_are_not_mirrored(architecture):
    model, _ = built(architecture)
    with pytest.raises(UnsupportedModelError, match=f"'{architecture}' cannot be mirrored: .*text alone.*lite"):
        LensConfig.from_model(model)
    with pytest.raises(UnsupportedModelError, match="cannot be mirrored"):
        build_layers(model.config.to_dict(), [1])


def test_only_layers_that_attend_to_the_image_are_read():
    model, _ = built("mllama")
    assert find_anatomy(model).readable == [1, 3]
    assert all(
        type(attention).__name__ == "MllamaTextCrossAttention"
        for attention in find_anatomy(model).attentions
        if attention
    )
    config = LensConfig.from_model(model, fusion="lite")
    assert (config.tap_layer, config.attention_layers) == (1, [1])


def test_a_forward_without_an_image_is_an_error():
    model, inputs = ready("mllama", "cat")
    with pytest.raises(LensError, match="no image to attend to"):
        prefill(find_anatomy(model), {"input_ids": inputs["input_ids"]}, tap_layer=1)
