"""`LensTrainer`: transformers' Trainer for a head on a frozen base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from lens_adapter.adapter import LensAdapter, LensPrediction
from lens_adapter.errors import LensConfigError
from lens_adapter.evaluation import Overlap, judge_predictions
from lens_adapter.training.collate import Batch, LensCollator
from lens_adapter.training.losses import lens_losses


@dataclass
class LensTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, and what a head needs beside them.

    Args:
        attention_weight, bce_weight, dice_weight: of the parts of the loss; LENS (arXiv 2510.16785): 1, 2, 4.
        quality_weight: of the squared error of the mask decoder's own estimate of its IoU, which becomes `scores`.
        keypoint_dropout: probability that a sample goes without its keypoint prompts, leaving the query token alone.
    """

    attention_weight: float = field(default=1.0)
    bce_weight: float = field(default=2.0)
    dice_weight: float = field(default=4.0)
    quality_weight: float = field(default=1.0)
    keypoint_dropout: float = field(default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False  # the columns are the collator's, not arguments of `forward`
        if not 0 <= self.keypoint_dropout < 1:
            raise LensConfigError(f"keypoint_dropout must be in [0, 1); got {self.keypoint_dropout}.")


class LensTrainer(Trainer):
    """Trains head and mask decoder of an attached `LensAdapter`; the base stays frozen, in evaluation mode and outside.

    Datasets hold `Sample`s: picture, prompt, mask. Everything else is transformers' Trainer: checkpoints and resume,
    accumulation, mixed precision, logging, several processes, the Hub.

    Args:
        model: attached.
        args: `LensTrainingArguments`.
        as for `transformers.Trainer` otherwise. Without `compute_metrics`, evaluation reports `giou`, `ciou`,
        `precision_at_50` and so on at the pictures' own resolution.

    Raises:
        NotAttachedError: the adapter has no base.
    """

    def __init__(
        self,
        model: LensAdapter,
        args: LensTrainingArguments,
        *,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ):
        self.adapter = model
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or LensCollator(model),
            compute_metrics=compute_metrics or judge,
            **kwargs,
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, LensPrediction]:
        batch: Batch = inputs["batch"]
        found = self._predict(model, batch)
        needs_target = self.adapter.config.fusion == "mirror"
        targets = _to(batch.targets, found.logits.device)
        parts = lens_losses(found, targets, heat_needs_target=needs_target)
        weights: LensTrainingArguments = self.args
        loss = sum(getattr(weights, f"{name}_weight") * part for name, part in parts.items())
        return (loss, found) if return_outputs else loss

    def _predict(self, model: nn.Module, batch: Batch) -> LensPrediction:
        """Through `model`, which several processes wrap; the base and SAM's image encoder run outside it."""
        adapter = self.adapter
        signals, layouts = adapter.prefill(batch.inputs), adapter.layout(batch.inputs, batch.sizes)
        embeddings = adapter.decoder.encode_images(batch.pictures)
        index = batch.image_index.to(embeddings.device)
        dropout = self.args.keypoint_dropout if model.training else 0.0
        return model(signals, layouts, embeddings, index, batch.sizes, keypoint_dropout=dropout)

    @torch.no_grad()
    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Loss and, per prompt, what `judge` reads: numbers of the mask at its picture's own resolution."""
        with self.compute_loss_context_manager():
            loss, found = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        judged = self._judged(found, inputs["batch"]).to(loss.device)  # (N, 4)
        return loss, judged, judged[:, 2:3]

    def _judged(self, found: LensPrediction, batch: Batch) -> Tensor:
        threshold = torch.logit(torch.tensor(self.adapter.config.mask_threshold)).item()
        rows = []
        for logits, quality, sample in zip(found.logits, found.quality, batch.samples, strict=True):
            mask = self.adapter.decoder.upsample(logits[None], sample["mask"].shape)[0].cpu().numpy() > threshold
            truth, ignore = sample["mask"], sample.get("ignore")
            if ignore is not None:
                mask, truth = mask & ~ignore, truth & ~ignore
            rows.append([(mask & truth).sum(), (mask | truth).sum(), truth.sum(), float(quality.clamp(0, 1))])
        return torch.tensor(rows, dtype=torch.float64)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: `LensAdapter.save_pretrained` writes the card."""


def judge(predicted: EvalPrediction) -> dict[str, float]:
    """Rows (intersection, union, pixels of the truth, score) of every prompt -> the field's metrics."""
    rows = np.asarray(predicted.predictions)
    overlaps = [Overlap(int(intersection), int(union)) for intersection, union, *_ in rows]
    return judge_predictions(overlaps, has_target=rows[:, 2] > 0, scores=rows[:, 3])


def _to(targets: Any, device: torch.device) -> Any:
    ignored = None if targets.ignored is None else tuple(part.to(device) for part in targets.ignored)
    return replace(targets, masks=targets.masks.to(device), heat=targets.heat.to(device), ignored=ignored)
