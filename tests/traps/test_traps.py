"""The traps that a frozen base can set, beyond its architecture: each has a test that fails where one falls into it.

| trap                                                   | tested in                                              |
|--------------------------------------------------------|--------------------------------------------------------|
| sparse attention that asks for its implementation      | traps/test_decoders.py                                 |
| soft caps, sinks, sliding windows, experts             | traps/test_decoders.py                                 |
| a sliding cache, dynamic or static, drops keys         | traps/test_decoders.py                                 |
| layers of several kinds, some of which cannot be read  | traps/test_kinds.py                                    |
| layers with heads, or a width of heads, of their own   | traps/test_uneven_layers.py, zoo/test_released.py      |
| copies of layers that no machine holds                 | traps/test_uneven_layers.py, zoo/test_released.py      |
| torch.compile before or after attach, flex attention   | traps/test_compiling.py                                |
| gradient checkpointing                                 | traps/test_compiling.py, vlm/test_hooks.py             |
| several images per prompt                              | here; where their tokens are: vlm/test_layout.py       |
| accelerate: offloaded to CPU or disk, dispatched       | here                                                   |
| other threads: generate, forwards, captures, compiled  | traps/test_threads.py                                  |
| modes, hooks and a `forward` that users change         | traps/test_threads.py                                  |
| a fork while another thread reads                      | traps/test_threads.py                                  |
| a prompt that runs in chunks                           | traps/test_threads.py                                  |
| float16                                                | here; bfloat16: vlm/test_hooks.py, test_adapter.py     |
| quantised linears, 8 and 4 bits                        | here                                                   |
| padding on the left and on the right                   | vlm/test_hooks.py, vlm/test_mirror.py, test_adapter.py |
| generation with a cache, dynamic or static             | vlm/test_hooks.py, test_adapter.py                     |
| LoRA                                                   | vlm/test_hooks.py, test_adapter.py                     |
| a tap that does not fire                               | vlm/test_hooks.py                                      |
| centre crop, padding to a square, a class token        | vlm/test_layout.py                                     |
| the kernels of other devices: flash                    | vlm/test_attention.py                                  |
| several residual streams                               | zoo/test_streams.py                                    |
| an image apart from the text                           | zoo/test_cross.py                                      |
| what is an architecture's own (tiles, thumbnails, ...) | zoo/test_zoo.py, by its specimens                      |
"""

from __future__ import annotations

from dataclasses import replace

import accelerate
import pytest
import torch
from torch import Tensor

from lens_adapter.errors import LensError
from lens_adapter.signals import Reading
from tests.tiny.adapters import FUSIONS, GREEDY, hooks_in, marks_on, ready_inputs, same_output, tiny_adapter, tiny_trio
from tests.tiny.models import ARCHITECTURES, IMPLEMENTATIONS
from tests.tiny.pairs import tiny_pair
from tests.tiny.processors import IMAGE_PAD, IMAGE_TOKEN
from tests.tiny.sam import noise_image

IMAGE, PROMPTS = noise_image(50, 70), ["the cat", "a dog"]


# -- several images per prompt: the heat is on the one whose layout is given


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("asked", [0, 1])
@torch.no_grad()
def test_of_several_images_the_one_asked_for(architecture, fusion, asked):
    model, processor = tiny_pair(architecture, "squash")
    adapter = tiny_adapter(model, processor, fusion)
    images = [noise_image(56, 56), noise_image(84, 140, seed=1)]
    sizes = [(image.height, image.width) for image in images]
    token = IMAGE_TOKEN if architecture == "llava" else IMAGE_PAD
    inputs = dict(processor(images=images, text=[f"{token} before, {token} after: the cat?"], return_tensors="pt"))
    tap = adapter.config.tap_layer
    with adapter.capture(layers=[*adapter.config.attention_layers, tap]) as signals:
        model(**inputs)
    layouts = adapter.layout(inputs, sizes)
    embeddings = adapter.decoder.encode_images([images[asked]])

    def heat(image: int, record=signals) -> Tensor:
        found = adapter(Reading(record, [layouts[image]], [sizes[image]]), embeddings, torch.tensor([0]))
        assert tuple(found.prompts.size[0]) == layouts[image].grid
        return found.prompts.heatmap[0]

    mine, other = layouts[asked].positions, layouts[1 - asked].positions
    assert not set(mine.tolist()) & set(other.tolist())
    assert heat(asked).std() > 0
    if fusion == "mirror":  # untrained, its heat is the attention of the base to this very image
        row = signals.attention[tap][0, :, 0].mean(dim=0)  # (T,)
        expected, wrong = (row[positions] / row[positions].max() for positions in (mine, other))
        # Boxes are measured to a twentieth of a pixel, which blurs the heat a little.
        torch.testing.assert_close(heat(asked).flatten(), expected, atol=0.02, rtol=0)
        assert len(wrong) != len(expected) or (wrong - expected).abs().max() > 0.2
    else:  # of the base's attention it reads what went to this very image
        assert torch.equal(heat(asked, without_attention(signals, other)), heat(asked))
        assert not torch.allclose(heat(asked, without_attention(signals, mine)), heat(asked), atol=1e-4)


def without_attention(signals, positions):
    rows = {layer: rows.index_fill(-1, positions, 0.0) for layer, rows in signals.attention.items()}
    return replace(signals, attention=rows)


# -- accelerate


def offload_to_cpu(model, folder):
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def offload_to_disk(model, folder):
    accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def dispatch(model, folder):
    """The first two decoder layers stay in memory, the tapped one and the rest go to disk."""
    layers = [f"model.language_model.layers.{index}" for index in range(4)]
    rest = ["embed_tokens", "norm", "rotary_emb"]
    places = dict.fromkeys(("lm_head", "model.vision_tower", "model.multi_modal_projector"), "cpu")
    places |= {f"model.language_model.{name}": "cpu" for name in rest}
    places |= {name: "cpu" if index < 2 else "disk" for index, name in enumerate(layers)}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("place", [offload_to_cpu, offload_to_disk, dispatch])
@torch.no_grad()
def test_an_offloaded_base(place, attach, tmp_path):
    adapter, model, processor = tiny_trio(attention="sdpa")
    inputs = ready_inputs(processor)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with adapter.capture(layers=[1, 2]) as expected:
        model(**inputs)
    out = adapter.segment(IMAGE, PROMPTS, return_logits=True)

    if attach == "after":
        adapter.detach()
    place(model, tmp_path)
    adapter.attach(model, processor)
    assert next(model.model.language_model.layers[2].parameters()).is_meta
    marks = [mark[:4] for mark in marks_on(model)]
    with adapter.capture(layers=[1, 2]) as signals:
        assert torch.equal(model(**inputs).logits, logits)
    with adapter.capture():
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    assert torch.equal(signals.hidden, expected.hidden)
    assert all(torch.equal(signals.attention[layer], expected.attention[layer]) for layer in (1, 2))
    assert same_output(adapter.segment(IMAGE, PROMPTS, return_logits=True), out)
    assert not hooks_in(model) and [mark[:4] for mark in marks_on(model)] == marks
    assert next(model.model.language_model.layers[2].parameters()).is_meta  # an early exit unloads what it loaded


# -- precision


def reads_and_segments(model, processor, fusion="lite"):
    """Bit-identical outputs while capturing, finite rows that sum to one, and masks."""
    inputs = ready_inputs(processor)
    adapter = tiny_adapter(model, processor, fusion)
    with torch.no_grad():
        logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
        with adapter.capture(layers=range(4), query="all") as signals:
            assert torch.equal(model(**inputs).logits, logits)
        with adapter.capture():
            assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    attended = inputs["attention_mask"].bool()
    for rows in signals.attention.values():
        sums = rows.sum(-1).transpose(1, 2)[attended]
        assert torch.allclose(sums, torch.ones_like(sums), atol=0.01)
    out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    assert out.logits.isfinite().all() and out.heatmaps.std() > 0 and not hooks_in(model)
    return logits, signals, out


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float16(architecture, attention):
    model, processor = tiny_pair(architecture, attention=attention)
    exact, _, _ = reads_and_segments(model, processor)
    logits, signals, out = reads_and_segments(model.half(), processor)
    assert logits.dtype == signals.hidden.dtype == torch.float16
    assert signals.attention[2].dtype == out.logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize("bits", ["8", "8 of weights and activations", "4"])
@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_quantised_linears(bits, attention):
    quantization = pytest.importorskip("torchao.quantization")
    config = {
        "8": quantization.Int8WeightOnlyConfig,
        "8 of weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
        "4": lambda: quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4),
    }[bits]()
    model, processor = tiny_pair("llava", attention=attention)
    exact, _, _ = reads_and_segments(model, processor)
    weights = [layer.self_attn.q_proj.weight for layer in model.model.language_model.layers]
    quantization.quantize_(model, config)
    assert all(
        type(layer.self_attn.q_proj.weight) is not type(before)
        for layer, before in zip(model.model.language_model.layers, weights, strict=True)
    )
    logits, _, _ = reads_and_segments(model, processor)
    assert (logits - exact).abs().max() > 0.01


def test_a_mirror_does_not_start_from_quantised_layers():
    quantization = pytest.importorskip("torchao.quantization")
    model, processor = tiny_pair("llava")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(LensError, match="load the base unquantised"):
        tiny_adapter(model, processor, "mirror")
