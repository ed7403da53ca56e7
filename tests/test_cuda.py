"""On a GPU, where there is one: the same promises, the same masks. Without one all of this is skipped."""

from __future__ import annotations

import copy

import pytest
import torch

from lens_adapter import LensAdapter
from lens_adapter.builtin import HEADS, QUESTIONS, load_base, load_head
from lens_adapter.builtin.world import sample_scene
from tests.tiny.adapters import GREEDY, PAIRED, hooks_in, learn, ready_inputs, tiny_adapter
from tests.tiny.models import IMPLEMENTATIONS
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image
from tests.tiny.training import curve, make_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
SCENE = sample_scene(1, "validation")
PROMPTS = [f"the {thing.name}" for thing in SCENE.objects]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize(("architecture", "fusion"), PAIRED)
def test_outputs_of_the_base_are_bit_identical(architecture, fusion, attention, dtype):
    model, processor = tiny_pair(architecture, attention=attention)
    model = copy.deepcopy(model).to("cuda", dtype)
    inputs = ready_inputs(processor).to("cuda", dtype)

    @torch.no_grad()
    def speak() -> tuple[torch.Tensor, torch.Tensor]:
        return model(**inputs).logits, model.generate(**inputs, **GREEDY)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = [speak(), speak()]
    adapter = tiny_adapter(model, processor, fusion)
    said.append(speak())
    with adapter.capture(query="all", layers=range(4)):
        said.append(speak())
    adapter.segment(noise_image(50, 70), "the cat")
    said.append(speak())
    learn(adapter, processor)
    adapter.detach()
    said.append(speak())
    logits, tokens = said[0]
    for other_logits, other_tokens in said[1:]:
        assert torch.equal(other_logits, logits) and torch.equal(other_tokens, tokens)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hooks_in(model)


@pytest.mark.parametrize("head", HEADS)
def test_masks_are_those_of_the_processor(head):
    picture = SCENE.draw(384)
    found = []
    for device in ("cpu", "cuda"):
        model, processor = load_base()
        found.append(load_head(head).attach(model.to(device), processor).segment(picture, PROMPTS))
    here, there = found
    assert here.found.any()
    torch.testing.assert_close(there.scores, here.scores, atol=0.02, rtol=0)
    assert (here.masks != there.masks).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_readout_is_fitted_and_every_sam_decodes(dtype):
    model, processor = load_base()
    model = model.to("cuda", dtype)
    for sam in ("builtin", "builtin-sam2"):
        adapter = LensAdapter.from_model(model, processor, fusion="readout", sam=sam, **QUESTIONS)
        report = adapter.fit(count=20)
        assert report.pointing > report.chance
        out = adapter.segment(SCENE.draw(384), PROMPTS)
        assert out.masks.shape == (len(PROMPTS), 384, 384) and out.scores.isfinite().all()


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"bf16": False}, {"bf16": True, "decoder_tuning": "lora"}], ids=str
)
@pytest.mark.parametrize("fusion", ["mirror", "lite"])
def test_a_head_learns(fusion, options, tmp_path):
    model, processor = tiny_pair("llava")
    model = copy.deepcopy(model).to("cuda", torch.bfloat16 if options["bf16"] else torch.float32)
    trainer = make_trainer(tmp_path, tiny_adapter(model, processor, fusion), max_steps=30, use_cpu=False, **options)
    trainer.train()
    losses = curve(trainer)
    assert sum(losses[-5:]) < sum(losses[:5])
