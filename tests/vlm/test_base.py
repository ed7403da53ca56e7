"""`FrozenBase.read`: the one chain from pictures and prompts to what a head is given."""

from __future__ import annotations

import pickle

import pytest
import torch

from lens_adapter.errors import InputError, LensError
from lens_adapter.signals import Reading
from lens_adapter.vlm.base import FrozenBase
from tests.tiny.adapters import FUSIONS, hooks_in, marks_on, tiny_adapter, tiny_trio, weights_of
from tests.tiny.models import ARCHITECTURES, IMPLEMENTATIONS
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

IMAGE, OTHER = noise_image(50, 70), noise_image(64, 40, seed=1)
PROMPTS = ["the cat", "a dog on the left"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_reading_is_its_steps(architecture):
    adapter, model, _ = tiny_trio(architecture, attention="sdpa")
    base = adapter.base
    reading = base.read([IMAGE, OTHER], PROMPTS)
    inputs = base.build_inputs([IMAGE, OTHER], PROMPTS)
    signals, layouts = base.prefill(inputs), base.layout(inputs, [(50, 70), (64, 40)])
    assert torch.equal(reading.signals.hidden, signals.hidden) and reading.image_sizes == [(50, 70), (64, 40)]
    for layer, rows in signals.attention.items():
        assert torch.equal(reading.signals.attention[layer], rows)
    for mine, theirs in zip(reading.layouts, layouts, strict=True):
        assert torch.equal(mine.positions, theirs.positions) and torch.equal(mine.boxes, theirs.boxes)
    again = base.read([IMAGE, OTHER], PROMPTS, inputs=inputs)
    assert torch.equal(again.signals.hidden, signals.hidden)
    assert not hooks_in(model)


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_segment_equals_its_steps(fusion):
    adapter, _, _ = tiny_trio("llava", fusion, mask_threshold=0.5)
    out = adapter.segment([IMAGE, OTHER], PROMPTS, batch_size=2, return_logits=True, score_threshold=0)
    reading = adapter.base.read([IMAGE, OTHER], PROMPTS)
    prompts = adapter.head(reading)
    sparse, dense = adapter.decoder.sparse_prompts(prompts, reading.image_sizes), None
    if adapter.head.dense is not None:
        dense = adapter.decoder.no_mask + adapter.head.dense(adapter.decoder.heat(prompts, reading.image_sizes))
    embeddings = adapter.decoder.encode_images([IMAGE, OTHER])
    logits, quality, _ = adapter.decoder(embeddings, torch.arange(2), sparse, dense)
    for row, (found, size) in enumerate(zip(out, reading.image_sizes, strict=True)):
        assert torch.equal(found.logits, adapter.decoder.upsample(logits[row : row + 1], size))
        assert torch.equal(found.masks, found.logits > 0)
        assert torch.equal(found.scores, quality[row : row + 1].clamp(0, 1))
        kept = prompts.keypoints.valid[row]
        points = prompts.keypoints.points[row][kept] * torch.tensor([size[1], size[0]])
        assert torch.equal(found.keypoints[0], points)
        height, width = prompts.size[row].tolist()
        assert torch.equal(found.heatmaps[0], prompts.heatmap[row, :height, :width])


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_reading_changes_no_module_of_the_adapter(fusion, attention):
    """Not its weights, modes or settings: the kernel that the mirror has to run travels in the signals."""
    adapter, model, processor = tiny_trio("llava", fusion, attention=attention)
    adapter.train()
    inputs = processor(images=IMAGE, text="<image> the cat", return_tensors="pt")
    model(**inputs)  # the first forward leaves hooks of transformers' own
    before, settings, marks = weights_of(adapter), settings_of(adapter), marks_on(model)
    with adapter.capture() as captured:
        model(**inputs)
    signals = adapter.prefill(inputs)
    adapter.base.read([IMAGE], ["the cat"])
    assert captured.kernel == signals.kernel == attention
    assert weights_of(adapter) == before and settings_of(adapter) == settings and marks_on(model) == marks
    assert not hooks_in(adapter) and not hooks_in(model)


def settings_of(module):
    """Mode and attention implementation of every part."""
    return [(part.training, str(getattr(getattr(part, "config", None), "_attn_implementation", None)))
            for part in module.modules()]  # fmt: skip


def test_the_mirror_runs_the_kernel_that_the_signals_were_read_under():
    adapter, model, _ = tiny_trio("llava", "mirror", attention="sdpa")
    reading = adapter.base.read([IMAGE], ["the cat"])
    model.set_attn_implementation("eager")  # afterwards: the recorded masks are for sdpa all the same
    with torch.no_grad():
        late = adapter.head(reading)
        now = adapter.head(adapter.base.read([IMAGE], ["the cat"]))
    torch.testing.assert_close(late.heatmap, now.heatmap, atol=1e-5, rtol=0)
    torch.testing.assert_close(late.text_vector, now.text_vector, atol=1e-4, rtol=0)


def test_rows_that_are_read_together():
    adapter, _, _ = tiny_trio("llava")
    base, again = adapter.base, noise_image(50, 70)
    assert base.runs([IMAGE, IMAGE, OTHER, again]) == [[0, 1], [2, 3]]  # equal pictures are not one picture
    assert base.runs([IMAGE]) == [[0]]


def test_what_builds_inputs_can_be_sent_to_another_process():
    adapter, _, _ = tiny_trio("llava")
    build = adapter.base.build_inputs
    sent = pickle.loads(pickle.dumps(build))([IMAGE], ["the cat"])
    here = build([IMAGE], ["the cat"])
    assert all(torch.equal(sent[name], here[name]) for name in here)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_the_models_own(architecture):
    model, processor = tiny_pair(architecture)
    base = FrozenBase(model, processor)
    inputs = base.build_inputs([IMAGE, OTHER], ["what?", "where is it?"], template="{prompt}")
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    said = base.answers([IMAGE, OTHER], ["what?", "where is it?"], max_new_tokens=4)
    assert said == [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def test_without_a_processor_only_pictures_and_prompts_are_out_of_reach():
    model, processor = tiny_pair("llava")
    inputs = processor(images=IMAGE, text="<image> the cat", return_tensors="pt")
    with tiny_adapter(model, None) as adapter:
        assert adapter.prefill(inputs).hidden.shape[:2] == inputs["input_ids"].shape
        assert len(adapter.layout(inputs)) == 1
        for asked in (adapter.base.read, adapter.segment):
            with pytest.raises(InputError, match="needs the base's processor"):
                asked([IMAGE], ["the cat"])


def test_a_reading_has_a_layout_and_a_size_for_every_row():
    reading = tiny_trio("llava")[0].base.read([IMAGE, OTHER], PROMPTS)
    with pytest.raises(LensError, match="each of 2 rows"):
        Reading(reading.signals, reading.layouts[:1], reading.image_sizes)
    with pytest.raises(LensError, match="each of 2 rows"):
        Reading(reading.signals, reading.layouts, reading.image_sizes[:1])
