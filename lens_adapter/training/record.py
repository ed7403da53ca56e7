"""What a training was, as plain facts: they stay in the head's config, and its model card shows them."""

from __future__ import annotations

import platform
from collections.abc import Sized
from dataclasses import fields
from enum import Enum
from typing import Any

import torch
import transformers
from transformers import TrainerState, TrainingArguments

import lens_adapter

# Of transformers' arguments: what another run would have to set alike. All of `LensTrainingArguments`' own come too.
_COMMON = ("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm", "seed")
_NOT_LEARNING = {"dataset_names", "sample_grid_steps"}


def training_record(args: TrainingArguments, state: TrainerState, data: Any) -> dict[str, Any]:
    """Numbers and names of a training as far as it has come, ready for JSON.

    Args:
        args: its arguments.
        state: of the trainer; `global_step` steps are done.
        data: what it learns from.
    """
    own = [entry.name for entry in fields(args) if entry.name not in TrainingArguments.__dataclass_fields__]
    settings = {name: getattr(args, name) for name in [*_COMMON, *own] if name not in _NOT_LEARNING}
    return {
        "datasets": list(getattr(args, "dataset_names", [])),
        "examples": len(data) if isinstance(data, Sized) else None,
        "steps": state.global_step,
        "epochs": round(state.epoch or 0.0, 3),
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "warmup_steps": args.get_warmup_steps(state.max_steps),
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        **{name: value.value if isinstance(value, Enum) else value for name, value in settings.items()},
        "versions": {
            "lens_adapter": lens_adapter.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
