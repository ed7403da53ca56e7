"""The heat as a dense prompt: nothing at first, in the decoder's own frame, and what it learns is saved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lens_adapter import LensAdapter, LensConfig
from lens_adapter.errors import CheckpointMismatchError, LensConfigError
from lens_adapter.head.dense import DensePrompt
from lens_adapter.sam.square import heat_in_square, size_in
from tests.tiny.adapters import PAIRED, learn, same_output, tiny_trio
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, tiny_sam
from tests.tiny.training import make_trainer, toy_samples

IMAGE, PROMPTS = noise_image(50, 70), ["the cat", "a dog on the left"]
SIZES = [(40, 100), (90, 33), (64, 64)]


@pytest.mark.parametrize(("architecture", "fusion"), PAIRED)
def test_it_starts_as_nothing_and_is_saved(architecture, fusion, tmp_path):
    plain, _, _ = tiny_trio(architecture, fusion, dense_prompt=False)
    adapter, model, processor = tiny_trio(architecture, fusion, dense_prompt=True)
    fresh = DensePrompt(32)
    assert not any(parameter.any() for parameter in fresh.parameters())
    adapter.head.dense = fresh  # tiny adapters have noise on all that a head learns
    weights = {name: value for name, value in adapter.state_dict().items() if not name.startswith("head.dense.")}
    plain.load_state_dict(weights)  # every other tensor has the same name
    one, two = (head.segment(IMAGE, PROMPTS, return_logits=True) for head in (plain, adapter))
    torch.testing.assert_close(one.logits, two.logits, atol=1e-5, rtol=1e-5)
    for _ in range(2):
        learn(adapter, processor)
    assert all(parameter.any() for parameter in adapter.head.dense.parameters())
    out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    adapter.save_pretrained(tmp_path)
    loaded = LensAdapter.from_pretrained(tmp_path).attach(model, processor)
    assert loaded.config.dense_prompt and same_output(out, loaded.segment(IMAGE, PROMPTS, return_logits=True))
    silent = loaded.requires_grad_(False)
    for parameter in silent.head.dense.parameters():
        parameter.zero_()
    assert not torch.equal(silent.segment(IMAGE, PROMPTS, return_logits=True).logits, out.logits)
    with pytest.raises(CheckpointMismatchError, match=r"head\.dense"):
        LensAdapter.from_pretrained(tmp_path, dense_prompt=False)


def test_the_trainer_teaches_it(tmp_path):
    adapter, _, _ = tiny_trio(dense_prompt=True)
    make_trainer(tmp_path, adapter, samples=toy_samples(4), max_steps=2).train()
    assert all(parameter.any() for parameter in adapter.head.dense.parameters())


def test_new_lite_heads_have_it_and_readouts_cannot():
    model, processor = tiny_pair("llava")
    made = {fusion: LensConfig.from_model(model, processor, fusion=fusion) for fusion in ("mirror", "lite", "readout")}
    assert {fusion: config.dense_prompt for fusion, config in made.items()} == {
        "mirror": False,
        "lite": True,
        "readout": False,
    }
    assert not LensConfig.from_model(model, fusion="lite", dense_prompt=False).dense_prompt
    assert not LensConfig(fusion="lite").dense_prompt  # a config that does not say is of a head without it
    for fields in ({"fusion": "readout", "dense_prompt": True}, {"fusion": "lite", "dense_prompt": "yes"}):
        with pytest.raises(LensConfigError, match="dense_prompt must be False, or True"):
            LensConfig(**fields)


@pytest.mark.parametrize("squashed", [False, True])
def test_heat_lies_in_the_decoders_square(squashed):
    sam = {**tiny_sam(image_size=256), "squashed": squashed}
    size = torch.tensor([[6, 9], [12, 5], [12, 9]])
    heat = torch.zeros(3, 12, 9)
    for k, (h, w) in enumerate(size.tolist()):
        heat[k, :h, :w] = torch.rand(h, w, generator=torch.Generator().manual_seed(k)) + 0.1
    heat[0, 6:] = heat[1, :, 5:] = 7.0  # what is beyond a map is of no meaning
    found = heat_in_square(heat, size, SIZES, sam)
    assert found.shape == (3, 1, 32, 32)
    for k, (h, w) in enumerate(size.tolist()):
        own = heat[k, :h, :w]
        rows, columns = (side // 8 for side in size_in(sam, SIZES[k]))
        assert not found[k, 0, rows + 1 :].any() and not found[k, 0, :, columns + 1 :].any()
        inside = found[k, 0, :rows, :columns]
        assert inside.min() >= 0.1 and inside.max() <= own.max() + 1e-6
        if squashed:
            expected = F.interpolate(own[None, None], (32, 32), mode="bilinear", align_corners=False)[0, 0]
            torch.testing.assert_close(found[k, 0], expected)
