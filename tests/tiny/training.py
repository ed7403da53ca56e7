"""A few pictures to learn from, and a trainer of a tiny adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lens_adapter import LensAdapter
from lens_adapter.data.examples import Example
from lens_adapter.training import LensTrainer, LensTrainingArguments
from tests.tiny.adapters import tiny_trio
from tests.tiny.sam import noise_image

PROMPTS = ("the cat", "a dog on the left", "the red one", "what flies", "a cup")


def toy_samples(count: int = 7, *, absent: tuple[int, ...] = ()) -> list[Example]:
    """`count` pictures with a box each, but for those that do not show what is asked for."""
    samples = []
    for k in range(count):
        image = noise_image(48 + 4 * (k % 3), 60, seed=k)
        mask = np.zeros((image.height, image.width), bool)
        if k not in absent:
            mask[8 + 3 * k : 30 + 3 * k, 5 * k : 5 * k + 25] = True
        samples.append(Example(image=image, prompt=PROMPTS[k % len(PROMPTS)], mask=mask))
    return samples


def make_trainer(folder: Path, adapter: LensAdapter | None = None, **options: Any) -> LensTrainer:
    """A trainer of `adapter` (default: the same tiny one each time); options are its arguments or `LensTrainer`'s."""
    parts = {key: options.pop(key) for key in ("eval_dataset", "callbacks") if key in options}
    samples = options.pop("samples", None) or toy_samples()
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = LensTrainingArguments(str(folder), **{**settings, **options})
    return LensTrainer(adapter or tiny_trio()[0], args, train_dataset=samples, **parts)


def curve(trainer: LensTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def same_weights(one: nn.Module, two: nn.Module, atol: float = 0) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(two.state_dict()), atol=atol, rtol=0)
