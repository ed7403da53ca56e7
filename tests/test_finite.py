"""Numbers that are infinite or none are an error where they arise: never a mask, a figure or a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lens_adapter import LensAdapter, builtin, probe
from lens_adapter.errors import CheckpointMismatchError, LensError
from lens_adapter.evaluation import evaluate
from lens_adapter.finite import is_finite, not_finite
from lens_adapter.signals import LensSignals, Reading
from lens_adapter.training import cache_features
from lens_adapter.vlm import shared_prefix
from tests.tiny.adapters import tiny_trio
from tests.tiny.sam import noise_image
from tests.tiny.training import make_trainer, toy_samples

INF, NAN = float("inf"), float("nan")
LAYER = "head.descriptors.text_vector"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_one_bad_number_is_found(dtype, bad):
    tensor = torch.randn(7, 5).to(dtype)
    assert is_finite(tensor) and is_finite(tensor[:0]) and is_finite(torch.tensor([3]))
    tensor[4, 2] = bad
    assert not is_finite(tensor) and not_finite([("a", tensor[:2]), ("b", tensor)]) == ["b"]


def overflowing(fusion: str = "lite", dtype: torch.dtype = torch.float16) -> tuple:
    """A base in half precision with a layer of weights that its numbers do not survive, and its head."""
    adapter, model, processor = tiny_trio(fusion=fusion)
    model.to(dtype)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight.fill_(6e4 if dtype == torch.float16 else NAN)
    return adapter, model, processor


CAUSE = r"float16, .*infinite or none \(NaN\) in .*layer \d.*load it in bfloat16"


@pytest.mark.parametrize("fusion", ["lite", "mirror"])
def test_a_base_that_overflows_gives_one_error_and_no_mask(fusion, tmp_path):
    adapter, model, processor = overflowing(fusion)
    samples = toy_samples(3)
    for ask in (
        lambda: adapter.segment(noise_image(50, 70), "the cat"),
        lambda: adapter.segment(noise_image(50, 70), ["the cat", "a dog"]),
        lambda: adapter.segment([noise_image(50, 70)] * 2, ["the cat", "a dog"], batch_size=2),
        lambda: evaluate(adapter, samples),
        lambda: cache_features(adapter, samples, tmp_path / "features"),
        lambda: probe(model, processor, samples),
    ):
        with pytest.raises(LensError, match=CAUSE):
            ask()
    assert model not in shared_prefix._unfit  # it is no reason to read every prompt anew


def test_training_on_a_base_that_overflows_stops_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, overflowing()[0], save_strategy="steps", save_steps=1)
    before = {name: tensor.clone() for name, tensor in trainer.adapter.state_dict().items()}
    with pytest.raises(LensError, match=CAUSE):
        trainer.train()
    torch.testing.assert_close(dict(trainer.adapter.state_dict()), before, rtol=0, atol=0)
    assert not [*tmp_path.rglob("*.safetensors")]


def test_damaged_weights_of_another_dtype_get_another_advice():
    with pytest.raises(LensError, match=r"in float32, .* Its weights may be damaged"):
        overflowing(dtype=torch.float32)[0].segment(noise_image(50, 70), "the cat")


def test_the_layer_is_named():
    rows = {0: torch.ones(1, 2, 1, 3), 1: torch.full((1, 2, 1, 3), NAN), 2: torch.full((1, 2, 1, 3), NAN)}
    hidden = torch.ones(1, 3, 4)
    with pytest.raises(LensError, match=r"in the attention of layer 1, the attention of layer 2;"):
        Reading(LensSignals(hidden, rows), [None], [(3, 4)], tap_layer=2)
    with pytest.raises(LensError, match=r"in the attention of layer 1, the hidden states that enter layer 2,"):
        Reading(LensSignals(hidden * INF, rows), [None], [(3, 4)], tap_layer=2)


@pytest.mark.parametrize("part", ["head.fusion.place.weight", "decoder.mask_decoder.iou_token.weight"])
def test_a_head_that_makes_no_numbers_gives_no_mask_and_is_not_saved(tmp_path, part):
    adapter = tiny_trio()[0]
    with torch.no_grad():
        adapter.get_parameter(part)[0] = NAN
    with pytest.raises(LensError, match=r"Head and mask decoder, in float32, made numbers .* Load the head in"):
        adapter.segment(noise_image(50, 70), "the cat")
    with pytest.raises(LensError, match=f"not saved: 1 of its tensors .*{part}"):
        adapter.save_pretrained(tmp_path / "head")
    assert not (tmp_path / "head").exists()


def test_a_training_that_leaves_the_numbers_stops_and_saves_none_of_them(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e30, optim="sgd", save_strategy="steps", save_steps=1, max_steps=9)
    with pytest.raises(LensError, match=r"at step \d; expected finite|This head is not saved"):
        trainer.train()
    for file in tmp_path.rglob("model.safetensors"):
        assert not not_finite(load_file(file).items())


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda x: x.to(torch.int64), rf"no floating-point numbers: {LAYER} \(I64\)"),
        (lambda x: x.to(torch.int8), rf"no floating-point numbers: {LAYER} \(I8\)"),
        (lambda x: x.to(torch.bool), rf"no floating-point numbers: {LAYER} \(BOOL\)"),
        (lambda x: x.to(torch.float8_e4m3fn), rf"no floating-point numbers: {LAYER} \(F8_E4M3\)"),
        (lambda x: x * INF, rf"infinite or none \(NaN\): '{LAYER}'"),
        (lambda x: torch.full_like(x, NAN).half(), rf"infinite or none \(NaN\): '{LAYER}'"),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused_when_they_are_loaded(tmp_path, change, complaint, dtype):
    folder = Path(shutil.copytree(builtin.HEADS["lite"], tmp_path / "head"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, LAYER: change(tensors[LAYER])}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["head_sha256"]  # as of heads from before there were digests, which say that much only
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match=complaint):
        LensAdapter.from_pretrained(folder, **({} if dtype is None else {"dtype": dtype}))
