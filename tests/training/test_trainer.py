"""LensTrainer on tiny models: what learns, what stays, and what transformers' Trainer promises beside."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from lens_adapter import LensAdapter
from lens_adapter.data.examples import Example
from lens_adapter.errors import CalibrationError, CheckpointMismatchError, InputError, LensConfigError, NotAttachedError
from lens_adapter.evaluation import Finding, measure, overlap
from lens_adapter.training import LensTrainer, LensTrainingArguments
from lens_adapter.training.collate import LensCollator
from lens_adapter.training.run_folder import last_checkpoint
from tests.tiny.adapters import assert_close, tiny_adapter, tiny_trio, weights_of
from tests.tiny.pairs import tiny_pair
from tests.tiny.processes import PATIENCE, SERVER, run_alone, run_two
from tests.tiny.sam import noise_image, tiny_sam
from tests.tiny.training import curve, make_trainer, same_weights, toy_samples

TUNED = {"full": ("head.", "decoder.mask_decoder."), "frozen": ("head.",)}


# -- what learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture, fusion", [("llava", "lite"), ("qwen2_vl", "mirror")])
def test_the_loss_goes_down_and_the_base_stays(tmp_path, architecture, fusion):
    adapter, model, _ = tiny_trio(architecture, fusion)
    model.train()  # as somebody may hand it over: dropout must not blur what the head reads, and the mode is theirs
    base, before = weights_of(model), weights_of(adapter)
    trainer = make_trainer(
        tmp_path, adapter, samples=toy_samples(4), max_steps=12, save_steps=12, save_strategy="steps"
    )
    trainer.train()
    losses = curve(trainer)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert weights_of(model) == base
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    changed = {name for name, value in weights_of(adapter).items() if value != before[name]}
    assert changed and all(name.startswith(TUNED["full"]) for name in changed)
    assert {name.split(".")[1] for name in changed if name.startswith("head")} >= {"fusion", "descriptors"}
    assert adapter.is_attached and adapter.base.processor is not None
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert saved.keys() == adapter.state_dict().keys()
    LensAdapter.from_pretrained(tmp_path / "checkpoint-12")  # complains about anything that does not fit


class Watch(TrainerCallback):
    """What the optimizer held at the first step."""

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **_):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.held = {names.get(id(p), "?") for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_what_the_optimizer_holds(tmp_path, tuning):
    adapter = tiny_trio()[0].requires_grad_(True)  # whatever the caller did
    before, watch = weights_of(adapter), Watch()
    trainer = make_trainer(tmp_path, adapter, decoder_tuning=tuning, max_steps=2, callbacks=[watch])
    trainer.train()
    assert {name for name in watch.held if name.startswith("head.")} == {
        f"head.{name}" for name, _ in adapter.head.named_parameters()
    }
    rest = {name for name in watch.held if not name.startswith("head.")}
    whole = {f"decoder.mask_decoder.{name}" for name, _ in adapter.decoder.mask_decoder.named_parameters()}
    if tuning == "lora":
        assert rest and all(".lora_A." in name or ".lora_B." in name for name in rest)
    else:
        assert rest == (whole if tuning == "full" else set())
    after = weights_of(adapter)
    assert after.keys() == before.keys()  # plain again
    changed = {name for name in after if after[name] != before[name] and not name.startswith("head.")}
    assert bool(changed) == (tuning != "frozen") and changed <= whole
    assert all(p.requires_grad for p in adapter.decoder.mask_decoder.parameters())
    assert not hasattr(adapter.decoder.mask_decoder, "peft_config")


def test_it_can_train_again(tmp_path):
    adapter = tiny_trio()[0]
    trainer = make_trainer(tmp_path, adapter, decoder_tuning="lora", max_steps=2)
    trainer.train()
    before = weights_of(adapter.decoder.mask_decoder)
    trainer.train()
    assert weights_of(adapter.decoder.mask_decoder) != before


def test_ignored_pixels_do_not_count(tmp_path):
    one, other = toy_samples(1)[0], toy_samples(1)[0]
    other.mask[30:, 40:] = True
    ignore = np.zeros_like(one.mask)
    ignore[30:, 40:] = True
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.adapter.eval()

    def loss(sample: Example, **more: Any) -> float:
        return trainer.compute_loss(trainer.adapter, trainer.data_collator([replace(sample, **more)])).item()

    assert loss(one) != loss(other)
    assert loss(one, ignore=ignore) == loss(other, ignore=ignore)
    of_both = trainer.predict([replace(one, ignore=ignore), replace(other, ignore=ignore)])
    overlaps = of_both.predictions[0]
    np.testing.assert_array_equal(overlaps[0], overlaps[1])
    assert overlaps[0, 1] <= (~ignore).sum()


def test_keypoints_are_dropped_in_training_alone(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, keypoint_dropout=0.9, eval_dataset=toy_samples(2))
    seen = []
    trainer.adapter.head.register_forward_pre_hook(lambda head, args: seen.append((head.training, args[-1])))
    trainer.train()
    trainer.evaluate()
    assert seen == [(True, 0.9), (False, 0.0)]


def test_prompts_about_one_picture_encode_it_once(tmp_path, monkeypatch):
    first, second = toy_samples(2)
    third = Example(image=first.image, prompt="a cup", mask=~first.mask)
    trainer = make_trainer(tmp_path, max_steps=1)
    adapter, counts = trainer.adapter.eval(), []
    encode = adapter.decoder.encode_images
    monkeypatch.setattr(adapter.decoder, "encode_images", lambda images: counts.append(len(images)) or encode(images))
    together = trainer._predict(adapter, trainer.data_collator([first, second, third])["batch"])
    assert counts == [2]
    alone = trainer._predict(adapter, trainer.data_collator([third])["batch"])
    torch.testing.assert_close(together.logits[2:], alone.logits, atol=2e-4, rtol=0)


# -- what Trainer promises --------------------------------------------------------------------------------------------


RUN = {"save_strategy": "steps", "save_steps": 2, "max_steps": 7, "keypoint_dropout": 0.5}  # 4 steps an epoch


@cache
def unbroken(tuning: str, folder: Path) -> LensTrainer:
    trainer = make_trainer(folder, decoder_tuning=tuning, **RUN)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def unbroken_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("unbroken")


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_resumed_in_the_middle_of_an_epoch(tmp_path, unbroken_folder, tuning):
    whole = unbroken(tuning, unbroken_folder / tuning)
    resumed = make_trainer(tmp_path, decoder_tuning=tuning, **RUN)
    resumed.train(resume_from_checkpoint=str(unbroken_folder / tuning / "checkpoint-2"))
    assert curve(resumed) == curve(whole) and len(curve(whole)) == 7
    same_weights(resumed.adapter, whole.adapter)


def _die(folder: Path) -> None:
    class Killer(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 7:
                os.kill(os.getpid(), signal.SIGKILL)

    make_trainer(folder, callbacks=[Killer()], **RUN).train()


def test_killed_and_resumed(tmp_path, unbroken_folder):
    whole = unbroken("full", unbroken_folder / "full")
    assert run_alone(_die, tmp_path) == -signal.SIGKILL
    (tmp_path / "checkpoint-99").mkdir()  # as a run leaves it that dies while it saves
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    resumed = make_trainer(tmp_path, **RUN)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert curve(resumed) == curve(whole)
    same_weights(resumed.adapter, whole.adapter)


def test_lora_is_resumed_as_it_was_trained(tmp_path, unbroken_folder):
    unbroken("full", unbroken_folder / "full")
    unbroken("lora", unbroken_folder / "lora")
    for tuning, rank, complaint in (("full", 8, "without decoder_tuning='lora'"), ("lora", 2, "the same lora_rank")):
        adapter = tiny_trio()[0]
        trainer = make_trainer(tmp_path, adapter, decoder_tuning="lora", lora_rank=rank, **RUN)
        with pytest.raises(CheckpointMismatchError, match=complaint):
            trainer.train(resume_from_checkpoint=str(unbroken_folder / tuning / "checkpoint-2"))
        assert not any("lora" in name for name in adapter.state_dict())  # plain, error or not


def test_a_lora_checkpoint_is_a_plain_adapter(unbroken_folder):
    whole = unbroken("lora", unbroken_folder / "lora")
    model, processor = tiny_pair("llava")
    image = noise_image(48, 60)
    checkpoint = unbroken_folder / "lora" / "checkpoint-6"
    one_step_before = LensAdapter.from_pretrained(checkpoint).attach(model, processor)
    whole.save_model(unbroken_folder / "final")
    assert sorted(file.name for file in (unbroken_folder / "final").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "training_args.bin",
    ]
    final = LensAdapter.from_pretrained(unbroken_folder / "final").attach(model, processor)
    logits = [a.segment(image, "the cat", return_logits=True) for a in (whole.adapter, final, one_step_before)]
    assert_close(logits[0], logits[1])
    assert not torch.equal(logits[1].logits, logits[2].logits)
    factors = load_file(checkpoint / "decoder_lora.safetensors")
    assert any(factors[name].any() for name in factors if ".lora_B." in name)


def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path):
    trainers = []
    for size, steps in ((4, 1), (2, 2)):
        trainer = make_trainer(
            tmp_path,
            samples=toy_samples(8),
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.02,
        )
        trainer.train()
        trainers.append(trainer)
    assert curve(trainers[0]) == pytest.approx(curve(trainers[1]), abs=1e-4)
    same_weights(trainers[0].adapter, trainers[1].adapter, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bf16_is_the_adapters_alone(tmp_path, monkeypatch, dtype):
    adapter, model, _ = tiny_trio()
    model.to(dtype)
    seen: list[Tensor] = []
    prefill, decode = adapter.prefill, adapter.decoder.forward

    def watched(inputs: Any) -> Any:
        signals = prefill(inputs)
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(signals.hidden, prefill(inputs).hidden)
        assert signals.hidden.dtype == dtype
        return signals

    def decoded(*args: Any) -> Any:
        seen.append(adapter.decoder.mask_decoder.iou_prediction_head(args[2][:, :1]))
        return decode(*args)

    monkeypatch.setattr(adapter, "prefill", watched)
    monkeypatch.setattr(adapter.decoder, "forward", decoded)
    trainer = make_trainer(tmp_path, adapter, bf16=True, max_steps=3, eval_dataset=toy_samples(2))
    trainer.train()
    assert np.isfinite(curve(trainer)).all()
    trainer.evaluate()
    assert {linear.dtype for linear in seen} == {torch.bfloat16}  # inside the adapter, in evaluation too
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {dtype}
    monkeypatch.undo()
    assert "forward" not in vars(adapter)
    copy.deepcopy(adapter)  # what accelerate wraps cannot be copied


def by_hand(adapter: LensAdapter, samples: list[Example]) -> dict[str, float]:
    found = [adapter.segment(sample.image, sample.prompt) for sample in samples]
    findings = [
        Finding(overlap(out.masks[0].numpy(), sample.mask), out.scores[0].item())
        for out, sample in zip(found, samples, strict=True)
    ]
    return measure(findings)  # `segment` has followed the threshold


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_evaluation_in_training_keeps_the_best(tmp_path, tuning):
    held_out = toy_samples(5, absent=(1, 4))
    trainer = make_trainer(
        tmp_path,
        eval_dataset=held_out,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="ciou",
        decoder_tuning=tuning,
        learning_rate=1e-2,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_ciou" in log]
    best = max(logs, key=lambda log: log["eval_ciou"])
    assert [log["step"] for log in logs] == [2, 4, 6]
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best['step']}"
    saved = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    torch.testing.assert_close(dict(trainer.adapter.state_dict()), saved, atol=0, rtol=0)
    figures, expected = trainer.evaluate(), by_hand(trainer.adapter, held_out)
    assert {"giou", "ciou", "precision_at_50", "no_target_accuracy", "target_accuracy"} <= set(expected)
    for name, value in expected.items():
        assert figures[f"eval_{name}"] == pytest.approx(value, abs=2e-3), name
        assert best[f"eval_{name}"] == pytest.approx(value, abs=2e-3), name


def test_evaluation_refuses_what_segment_refuses(tmp_path):
    samples = toy_samples(6, absent=(1, 4))
    trainer = make_trainer(tmp_path, eval_dataset=samples)
    adapter = trainer.adapter
    scores = sorted(adapter.segment(sample.image, sample.prompt).scores.item() for sample in samples)
    adapter.config.score_threshold = (scores[2] + scores[3]) / 2
    expected = by_hand(adapter, samples)
    figures = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    for name in ("giou", "ciou", "precision_at_50", "no_target_accuracy", "target_accuracy"):
        assert figures[name] == pytest.approx(expected[name], abs=2e-3), name
    assert expected["target_accuracy"] < 1 and figures["score_error"] <= 1


def test_calibration(tmp_path):
    adapter = tiny_trio()[0]
    adapter.config.mask_threshold = 0.0  # every mask is full: only a score can refuse
    scores = [adapter.segment(sample.image, sample.prompt).scores.item() for sample in toy_samples(6)]
    low = np.argsort(scores)[:3].tolist()
    samples = toy_samples(6, absent=tuple(low))  # so that the scores tell them apart
    trainer = make_trainer(tmp_path, adapter, eval_dataset=samples)
    with pytest.raises(CalibrationError, match="got 6 and 0"):
        trainer.calibrate(toy_samples(6))
    with pytest.raises(CalibrationError, match="got several: a, b"):
        trainer.calibrate({"a": samples, "b": samples})
    assert adapter.config.score_threshold == 0.0  # of a new head, and untouched
    before = trainer.evaluate()
    assert (before["eval_target_accuracy"], before["eval_no_target_accuracy"]) == (1.0, 0.0)
    chosen = trainer.calibrate()
    assert sorted(scores)[2] < chosen.score_threshold < sorted(scores)[3] and chosen.balanced_accuracy == 1.0
    after = trainer.evaluate()
    assert (after["eval_target_accuracy"], after["eval_no_target_accuracy"]) == (1.0, 1.0)
    empty = [not adapter.segment(sample.image, sample.prompt).masks.any() for sample in samples]
    assert empty == [k in low for k in range(6)]
    trainer.save_model()
    assert LensAdapter.from_pretrained(tmp_path).config.score_threshold == chosen.score_threshold


def test_pictures_of_samples(tmp_path):
    plain = make_trainer(tmp_path / "plain", max_steps=4)
    plain.train()
    trainer = make_trainer(tmp_path, max_steps=4, sample_grid_steps=2, eval_dataset={"some": toy_samples(8)})
    trainer.train()
    assert curve(trainer) == curve(plain)  # to look does not change anything
    names = sorted(file.name for file in (tmp_path / "samples").iterdir())
    assert names == ["step-000002.png", "step-000004.png"]


# -- processes --------------------------------------------------------------------------------------------------------


class NothingHeavy(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        assert not isinstance(thing, (Tensor, nn.Module)), f"{type(thing).__name__} would travel to every worker"
        return NotImplemented


def test_workers_are_sent_no_weights(tmp_path):
    collator = LensCollator(tiny_trio()[0])
    sent = BytesIO()
    NothingHeavy(sent).dump(collator)
    received = pickle.loads(sent.getvalue())
    samples = toy_samples(2)
    for one, two in zip(
        collator(samples)["batch"].inputs.values(), received(samples)["batch"].inputs.values(), strict=True
    ):
        assert torch.equal(one, two)


def test_workers_change_nothing(tmp_path):
    alone = make_trainer(tmp_path, max_steps=3)
    alone.train()
    helped = make_trainer(tmp_path, max_steps=3, dataloader_num_workers=1)
    helped.train()
    assert curve(helped) == curve(alone)


def test_workers_that_inherit_nothing():
    samples = toy_samples(3)
    samples[1] = replace(samples[0], prompt="a cup")
    collator = LensCollator(tiny_trio()[0])
    loader = DataLoader(
        samples, batch_size=3, collate_fn=collator, num_workers=1, multiprocessing_context=SERVER, timeout=PATIENCE
    )
    (loaded,) = [item["batch"] for item in loader]
    expected = collator(samples)["batch"]
    assert torch.equal(loaded.targets.masks, expected.targets.masks) and len(loaded.pictures) == 2
    assert torch.equal(loaded.inputs["pixel_values"], expected.inputs["pixel_values"])


PARALLEL = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.02}


def _one_of_two(rank: int, folder: Path, sharded: bool) -> None:
    adapter, model, processor = tiny_trio()
    if sharded:  # a base that is too large for one device
        torch.distributed.init_process_group("gloo")
        for layer in model.model.language_model.layers:
            fully_shard(layer)
        fully_shard(model)
        adapter.attach(model, processor)
    trainer = make_trainer(
        folder / str(rank), adapter, samples=toy_samples(12), ddp_backend="gloo", ddp_timeout=240, **PARALLEL
    )
    assert trainer.args.world_size == 2
    trainer.train()
    held_out = toy_samples(5, absent=(2,))
    found = trainer.predict(held_out)
    torch.save(
        {"curve": curve(trainer), "weights": trainer.adapter.state_dict(), "labels": torch.tensor(found.label_ids)}
        | {"overlaps": torch.tensor(found.predictions[0]), "scores": torch.tensor(found.predictions[1])},
        folder / f"{rank}.pt",
    )
    (folder / f"{rank}.json").write_text(json.dumps(found.metrics))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_do_what_one_does(tmp_path, sharded):
    single = make_trainer(tmp_path, samples=toy_samples(12), per_device_train_batch_size=4, **PARALLEL)
    single.train()
    run_two(_one_of_two, tmp_path, sharded)
    expected = single.predict(toy_samples(5, absent=(2,)))
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert got["curve"] == pytest.approx(curve(single), abs=1e-4)
        torch.testing.assert_close(got["weights"], dict(single.adapter.state_dict()), atol=1e-5, rtol=0)
        assert got["labels"].tolist() == expected.label_ids.tolist() == [True, True, False, True, True]
        np.testing.assert_allclose(got["overlaps"], expected.predictions[0], atol=3)
        np.testing.assert_allclose(got["scores"], expected.predictions[1], atol=1e-3)
        figures = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in ("test_giou", "test_ciou", "test_no_target_accuracy"):
            assert figures[name] == pytest.approx(expected.metrics[name], abs=2e-3)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"keypoint_dropout": 1.0}, {"decoder_tuning": "some"}, {"lora_rank": 0}, {"sample_grid_steps": -1}]
)
def test_impossible_arguments(tmp_path, wrong):
    with pytest.raises(LensConfigError, match=next(iter(wrong))):
        LensTrainingArguments(str(tmp_path), use_cpu=True, **wrong)


def test_what_it_cannot_start_with(tmp_path, monkeypatch):
    with pytest.raises(LensConfigError, match="eval_dataset"):
        make_trainer(tmp_path, sample_grid_steps=1)
    adapter = tiny_adapter(*tiny_pair("llava"))
    adapter.detach()
    with pytest.raises(NotAttachedError):
        make_trainer(tmp_path, adapter)
    readout = LensAdapter.from_model(*tiny_pair("llava"), fusion="readout", sam=tiny_sam(), load_sam=False)
    with pytest.raises(LensConfigError, match=r"nothing that gradients train: call adapter\.fit"):
        make_trainer(tmp_path, readout)
    monkeypatch.setattr(LensTrainingArguments, "n_gpu", 2)
    with pytest.raises(LensConfigError, match="accelerate launch"):
        make_trainer(tmp_path)


@pytest.mark.parametrize("stage, name", [(None, "FSDP"), (3, "ZeRO-3")])
def test_the_adapter_is_not_sharded(tmp_path, monkeypatch, stage, name):
    make = LensTrainer.create_accelerator_and_postprocess

    def sharding(trainer: LensTrainer) -> None:  # as `accelerate launch` sets it up where there are GPUs
        make(trainer)
        trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = stage is None, stage is not None
        plugin = SimpleNamespace(zero_stage=stage)
        trainer.accelerator.state = SimpleNamespace(deepspeed_plugin=plugin)

    monkeypatch.setattr(LensTrainer, "create_accelerator_and_postprocess", sharding)
    with pytest.raises(LensConfigError, match=f"{name} would shard the adapter"):
        make_trainer(tmp_path)


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"mask": np.zeros((3, 4), bool)}, r"'mask' of a sample .* got bool \(3, 4\) for the prompt 'the cat'"),
        ({"mask": np.zeros((48, 60), np.uint8)}, "got uint8"),
        ({"mask": None}, "got NoneType"),
        ({"ignore": np.zeros((48, 60))}, "'ignore' of a sample .* got float64"),
    ],
)
def test_samples_that_do_not_fit(wrong, complaint):
    with pytest.raises(InputError, match=complaint):
        LensCollator(tiny_trio()[0])([replace(toy_samples(1)[0], **wrong)])
