"""`LensTrainer`: transformers' Trainer for a head on a frozen base."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from lens_adapter.adapter import LensAdapter
from lens_adapter.errors import CalibrationError, LensConfigError, LensError
from lens_adapter.evaluation import Calibration, Finding, Overlap, choose_score_threshold, measure, overlap
from lens_adapter.evaluation.metrics import METRICS
from lens_adapter.hub.card import CARD_FILE, is_generated, write_model_card
from lens_adapter.hub.publishing import is_written_by_hand, remote_card
from lens_adapter.pictures.samples import Sample, sample_grid
from lens_adapter.pictures.saving import save_picture
from lens_adapter.sam.square import logit
from lens_adapter.segmentation import LensPrediction
from lens_adapter.training.cache.read import FeatureBatch, caches_in, collate_features
from lens_adapter.training.collate import Batch, LensCollator
from lens_adapter.training.losses import lens_losses
from lens_adapter.training.record import training_record
from lens_adapter.training.tuning import TUNINGS, DecoderTuning
from lens_adapter.writing import write_text

GRID_SAMPLES = 6
# Switches of transformers' that a head on a frozen base can do nothing with: what would fail late, or do nothing.
_CANNOT_WORK = {
    "gradient_checkpointing": "the base runs without gradients and the head is small: there is nothing to save",
    "activation_checkpointing": "the base runs without gradients and the head is small: there is nothing to save",
    "neftune_noise_alpha": "its noise is for the embeddings of a language model, which is frozen here",
    "group_by_length": "examples have no length before the processor has read them",
    "label_smoothing_factor": "masks have no classes to smooth",
    "include_inputs_for_metrics": "pictures and texts cannot be gathered as tensors",
    "batch_eval_metrics": "figures are of all prompts together",
    "use_liger_kernel": "the layers are the base's own, and no language model of transformers is trained",
}
# What can be the `metric_for_best_model`: all that `measure` says without keypoints.
_BEST = {"loss", *(name for name in METRICS if "keypoint" not in name)}
_SMALLER_IS_BETTER = ("loss", "score_error")


@dataclass
class LensTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, and what a head needs beside them.

    Args:
        attention_weight: of the heatmap's part of the loss; LENS (arXiv 2510.16785): 1.
        bce_weight: of the mask's cross-entropy; LENS: 2.
        dice_weight: of the mask's dice loss; LENS: 4.
        quality_weight: of the squared error of the mask decoder's own estimate of its IoU, which becomes `scores`.
        keypoint_dropout: probability that a sample goes without its keypoint prompts, leaving the query token alone.
        decoder_tuning: of the mask decoder learns everything ("full"), LoRA factors ("lora") or nothing ("frozen").
        lora_rank: of these factors; they are scaled by 2.
        sample_grid_steps: every so many steps a picture of validation samples is written to `output_dir`/samples; 0:
            never.
        dataset_names: what the training data are called, by Hub id where they have one; for the model card.
    """

    attention_weight: float = field(default=1.0)
    bce_weight: float = field(default=2.0)
    dice_weight: float = field(default=4.0)
    quality_weight: float = field(default=1.0)
    keypoint_dropout: float = field(default=0.0)
    decoder_tuning: str = field(default="full")
    lora_rank: int = field(default=8)
    sample_grid_steps: int = field(default=0)
    dataset_names: list[str] = field(default_factory=list)
    if TYPE_CHECKING:
        output_dir: str  # transformers fills in None

    def __post_init__(self) -> None:
        self._refuse_what_cannot_work()
        metric = self.metric_for_best_model
        if self.greater_is_better is None and metric is not None:  # transformers knows "loss" alone
            self.greater_is_better = not metric.endswith(_SMALLER_IS_BETTER)
        super().__post_init__()
        if isinstance(self.dataset_names, str):
            self.dataset_names = [self.dataset_names]
        self.remove_unused_columns = False  # the columns are the collator's, not arguments of `forward`
        for key, good, allowed in (
            ("keypoint_dropout", 0 <= self.keypoint_dropout < 1, "in [0, 1)"),
            ("decoder_tuning", self.decoder_tuning in TUNINGS, f"one of {TUNINGS}"),
            ("lora_rank", self.lora_rank >= 1, "at least 1"),
            ("sample_grid_steps", self.sample_grid_steps >= 0, "0 (never) or more"),
        ):
            if not good:
                raise LensConfigError(f"{key} must be {allowed}; got {getattr(self, key)!r}.")

    def _refuse_what_cannot_work(self) -> None:
        given = {name: getattr(self, name, None) for name in _CANNOT_WORK}
        reasons = [f"{name}: {value!r} ({_CANNOT_WORK[name]})" for name, value in given.items() if value]
        if getattr(self, "train_sampling_strategy", None) == "group_by_length":
            reasons.append(f"train_sampling_strategy: 'group_by_length' ({_CANNOT_WORK['group_by_length']})")
        if wanted := {*(self.include_for_metrics or [])} - {"loss"}:
            reasons.append(f"include_for_metrics: {sorted(wanted)} ({_CANNOT_WORK['include_inputs_for_metrics']})")
        if not self.eval_do_concat_batches:
            reasons.append(f"eval_do_concat_batches: False ({_CANNOT_WORK['batch_eval_metrics']})")
        if reasons:
            raise LensConfigError(
                f"Training a head on a frozen base cannot work with {'; '.join(reasons)}. Leave "
                f"{'it' if len(reasons) == 1 else 'them'} out."
            )

    def require_data(self, held_out: Any, *, own_metrics: bool = False) -> None:
        """Refuse settings that need what validation data say, without such data, or by a name that nothing has.

        Args:
            held_out: the validation data: a dataset, a dict of them by name, or None.
            own_metrics: somebody else's function measures, so any name may be right.

        Raises:
            LensConfigError: names the setting.
        """
        if held_out is None:
            if str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no":
                raise LensConfigError(
                    f"eval_strategy is {getattr(self.eval_strategy, 'value', self.eval_strategy)!r}, and there are no "
                    "validation data to evaluate on. Give some, or leave it out."
                )
            return
        metric = self.metric_for_best_model
        names = [f"{name}_" for name in held_out] if isinstance(held_out, dict) else [""]
        known = {f"{name}{figure}" for name in names for figure in (("loss",) if self.prediction_loss_only else _BEST)}
        if metric is not None and not own_metrics and metric.removeprefix("eval_") not in known:
            raise LensConfigError(f"metric_for_best_model must be one of {sorted(known)}; got {metric!r}.")

    def __getstate__(self) -> dict[str, Any]:
        """Without the token: Trainer pickles its arguments into the folder that it pushes."""
        return {**vars(self), "hub_token": None}


class LensTrainer(Trainer):
    """Trains head and mask decoder of an attached `LensAdapter`; the base stays frozen, in evaluation mode and outside.

    Datasets hold `Example`s: picture, prompt, mask. Or they are `CachedFeatures`, which `cache_features` makes of such:
    then neither the base nor SAM's image encoder is needed.

    Everything else is transformers' Trainer: checkpoints and resume, accumulation, mixed precision (of the adapter: the
    base keeps its own), logging, several processes, the Hub. Predictions are, per prompt, the pixels of
    `evaluation.Overlap` (intersection, found, truth), and the score.

    Args:
        model: attached, unless the datasets are cached features.
        args: `LensTrainingArguments`.
        compute_metrics: default: what `evaluation.measure` reports (`giou`, `ciou`, ...).
        data_collator: default: the one that fits the datasets.
        kwargs: as for `transformers.Trainer`.

    Raises:
        NotAttachedError: the adapter has no base, and the datasets are examples.
        StaleFeaturesError: the datasets are features made for another base or head.
        LensConfigError: sample grids, evaluations or the best of all checkpoints are asked for without an
            `eval_dataset`, a dataset is empty, one process is to use several GPUs, or the adapter is to be sharded
            (FSDP, DeepSpeed ZeRO-3): what can be sharded is the base, see docs/train.md.
    """

    args: LensTrainingArguments

    def __init__(
        self,
        model: LensAdapter,
        args: LensTrainingArguments,
        *,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            raise LensConfigError(
                f"One process cannot train on {args.n_gpu} devices. Start one process per device with "
                "`accelerate launch`, or show this one a single device (CUDA_VISIBLE_DEVICES=0)."
            )
        if model.config.fusion == "readout":
            raise LensConfigError(
                'A readout (fusion="readout") has nothing that gradients train: call adapter.fit(examples). To train, '
                'make a head with fusion="lite" or "mirror".'
            )
        self.adapter = model
        held_out = kwargs.get("eval_dataset")
        args.require_data(held_out, own_metrics=compute_metrics is not None)
        if (train_data := kwargs.get("train_dataset")) is not None and isinstance(train_data, Sized) and not train_data:
            raise LensConfigError("train_dataset must hold at least one example; it is empty.")
        held_out = list(held_out.values()) if isinstance(held_out, dict) else [held_out]
        caches = caches_in([data for data in (kwargs.get("train_dataset"), *held_out) if data is not None])
        for cache in caches:
            cache.require(model)
        if caches and args.sample_grid_steps:
            raise LensConfigError(
                "sample_grid_steps draws on pictures, which cached features do not hold; set it to 0."
            )
        # Without a cache, and without a base, the second collator says so.
        collator = data_collator or (collate_features if caches else LensCollator(model))
        if not caches and model.decoder.image_encoder is None:
            model.decoder.load_image_encoder()
        model.decoder.freeze()
        # As `save_pretrained` sets it: a checkpoint that is resumed from lacks these on purpose.
        model._keys_to_ignore_on_save = {f"decoder.{key}" for key in model.decoder.unsaved_keys}
        self._tuning = DecoderTuning(model.decoder)
        super().__init__(
            model=model, args=args, data_collator=collator, compute_metrics=compute_metrics or self._judge, **kwargs
        )
        vars(model.config).pop("use_cache", None)  # Trainer's, for models that generate
        self._refuse_sharding()
        if args.sample_grid_steps:
            if not self.eval_dataset:
                raise LensConfigError("sample_grid_steps needs an eval_dataset to draw samples of.")
            self.add_callback(SampleGrids(model, self.eval_dataset))

    def _refuse_sharding(self) -> None:
        """The adapter is small, and parts of it are called outside its `forward`."""
        zero3 = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        if self.is_fsdp_enabled or zero3:
            raise LensConfigError(
                f"{'DeepSpeed ZeRO-3' if zero3 else 'FSDP'} would shard the adapter, which every process needs whole. "
                "Use plain data parallelism or DeepSpeed ZeRO-1 or 2. A base that does not fit on one device is "
                "sharded before `attach`: device_map='auto', or torch's fully_shard (docs/train.md of the repository "
                "shows both)."
            )

    # -- learning -----------------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'. The adapter comes out plain: LoRA factors merged, no autocast left on its `forward`."""
        self._tuning = DecoderTuning(self.adapter.decoder, self.args.decoder_tuning, self.args.lora_rank)
        self._earlier_trainings = list(self.adapter.config.training or [])
        try:
            return super().train(*args, **kwargs)
        finally:
            self._note_training()
            self._tuning.end()
            if self.args.decoder_tuning == "lora":  # what it was made for is merged
                self.optimizer = self.lr_scheduler = None
            self.accelerator.unwrap_model(self.adapter, keep_fp32_wrapper=False)
            vars(self.adapter).pop("forward", None)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, LensPrediction]:
        batch: Batch | FeatureBatch = inputs["batch"]
        found = self._predict(model, batch)
        if not found.is_finite():
            raise self._diverged("Head and mask decoder made numbers that are infinite or none (NaN)")
        targets = batch.targets.to(found.logits.device)
        parts = lens_losses(found, targets, heat_needs_target=self.adapter.config.fusion == "mirror")
        loss = torch.stack([getattr(self.args, f"{name}_weight") * part for name, part in parts.items()]).sum()
        if not loss.isfinite():  # transformers' Trainer looks at it, too, and goes on
            raise self._diverged(f"The loss is {float(loss)}")
        return (loss, found) if return_outputs else loss

    def _diverged(self, what: str) -> LensError:
        return LensError(
            f"{what} at step {self.state.global_step}; expected finite ones. Nothing more is learned or saved. Train "
            "with a smaller learning_rate, or with bf16 in the place of fp16, from the last checkpoint (--resume) or "
            "anew."
        )

    def _predict(self, model: nn.Module, batch: Batch | FeatureBatch) -> LensPrediction:
        """Through `model`, which several processes wrap; the base and SAM's image encoder, if any, run outside it."""
        adapter = self.adapter
        with torch.autocast(self.args.device.type, enabled=False):  # the base keeps its own precision
            reading = batch.read(adapter)
        dropout = self.args.keypoint_dropout if model.training else 0.0
        with self.accelerator.autocast():
            embeddings = batch.encode_images(adapter)
            index = batch.image_index.to(embeddings.device)
            found: LensPrediction = model(reading, embeddings, index, keypoint_dropout=dropout)
        return found

    # -- judging ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prediction_step(  # type: ignore[override]  # Trainer takes nested tensors too
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        """Loss; overlaps long (N, 3) and scores (N,); whether the prompts have a target, bool (N,)."""
        loss, found = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        threshold = logit(self.adapter.config.mask_threshold)
        overlaps = []
        for logits, sample in zip(found.logits, inputs["batch"].samples, strict=True):
            mask = self.adapter.decoder.upsample(logits[None], sample.mask.shape)[0].cpu().numpy() > threshold
            overlaps.append(astuple(overlap(mask, sample.mask, sample.ignore)))
        measured = torch.tensor(overlaps, device=loss.device)
        return loss, (measured, found.quality.clamp(0, 1)), measured[:, 2] > 0

    def _judge(self, predicted: EvalPrediction) -> dict[str, float]:
        return measure(_findings(predicted.predictions), self.adapter.config.score_threshold)

    def calibrate(self, dataset: Any = None) -> Calibration:
        """Choose `config.score_threshold` on data that the head did not learn from; masks under it come out empty.

        Args:
            dataset: prompts with a target and prompts without; default: the `eval_dataset`.

        Raises:
            CalibrationError: the data lack prompts of one kind, or there are none.
        """
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None or isinstance(dataset, dict):
            got = "none" if dataset is None else f"several: {', '.join(dataset)}"
            raise CalibrationError(f"calibrate needs one dataset, got {got}. Pass it: trainer.calibrate(dataset).")
        found = self.predict(dataset, metric_key_prefix="calibration")
        calibration = choose_score_threshold(_findings(found.predictions))
        self.adapter.config.score_threshold = calibration.score_threshold
        return calibration

    # -- checkpoints: always those of a plain LensAdapter, whatever the tuning ----------------------------------------

    def _save(self, *args: Any, **kwargs: Any) -> None:
        self._note_training()
        with self._tuning.merged():
            super()._save(*args, **kwargs)

    def _note_training(self) -> None:
        """Into the head's config, which its card is written from."""
        if self.state.global_step:
            run = training_record(self.args, self.state, self.train_dataset)
            self.adapter.config.training = [*self._earlier_trainings, run]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with self._tuning.merged():
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        self._tuning.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._tuning.end()
        super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self._tuning.save(output_dir)

    # -- the Hub ------------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As transformers'; a card that somebody wrote in the repository becomes that of `output_dir`, and stays."""
        super().init_hf_repo(token, *args, **kwargs)
        if not self.is_world_process_zero():
            return
        file = Path(self.args.output_dir, CARD_FILE)
        repo_id: Any = self.hub_model_id  # transformers gives it no other type than None
        card = remote_card(HfApi(token=token or self.args.hub_token), repo_id, self.args.hub_revision)
        ours = not file.exists() or is_generated(file.read_text(encoding="utf-8"))
        if card is not None and is_written_by_hand(card) and ours:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, card)

    def create_model_card(
        self, language: Any = None, license: str | None = None, tags: Any = None, *_: Any, **__: Any
    ) -> None:
        """The card of `output_dir`, as `LensAdapter.save_pretrained` writes it, under its name on the Hub."""
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else tags or ()
            folder, config = Path(self.args.output_dir), self.adapter.config
            write_model_card(folder, config, (), location=self.hub_model_id, license=license, tags=tags)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # What is pushed while a training runs has its card too; what is being uploaded must not change.
        under_way = getattr(self, "push_in_progress", None)  # the first process alone has it
        if under_way is None or under_way.is_done():
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)


class SampleGrids(TrainerCallback):
    """Every `sample_grid_steps` steps, a page of some validation samples: truth, mask, heatmap, keypoints and IoU."""

    def __init__(self, adapter: LensAdapter, dataset: Any):
        self.adapter = adapter
        self.dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % args.sample_grid_steps or not state.is_world_process_zero:
            return
        count = len(self.dataset)
        picked = np.linspace(0, count - 1, min(count, GRID_SAMPLES)).round().astype(int).tolist()
        page = sample_grid([self._sample(index) for index in picked], title=f"Step {state.global_step}")
        file = Path(args.output_dir, "samples", f"step-{state.global_step:06}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_picture(page, file)

    def _sample(self, index: int) -> Sample:
        example = self.dataset[index]
        out = self.adapter.segment(example.image, [example.prompt])
        iou = overlap(out.masks[0].numpy(), example.mask, example.ignore).iou
        return Sample(
            image=out.image,
            prompt=example.prompt,
            truth=torch.from_numpy(example.mask),
            mask=out.masks[0],
            heatmap=out.heatmaps[0],
            keypoints=out.keypoints[0],
            caption=f"IoU {iou:.2f}   score {out.scores[0]:.2f}{'' if out.found[0] else '   absent'}",
        )


def _findings(predictions: Any) -> list[Finding]:
    """Overlaps (N, 3) and scores (N,) as arrays, one by one."""
    overlaps, scores = predictions
    return [Finding(Overlap(*pixels), score) for pixels, score in zip(overlaps.tolist(), scores.tolist(), strict=True)]
