"""A training as one dict: what `lens-adapter train` reads from its file and its flags."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from lens_adapter.adapter import LensAdapter
from lens_adapter.config import LensConfig
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import digest_folder
from lens_adapter.data.formats import DataSource
from lens_adapter.errors import CalibrationError, LensConfigError
from lens_adapter.training.cache.read import CachedFeatures
from lens_adapter.training.cache.write import cache_features
from lens_adapter.training.trainer import LensTrainer, LensTrainingArguments

LoadBase = Callable[[str, str, torch.device], tuple[Any, Any]]
KNOWN = {
    "": {"model", "adapter", "data", "validation", "dtype", "features", "features_dtype", "resume", "head", "training"},
    "head": set(inspect.signature(LensConfig.__init__).parameters) - {"self", "kwargs"},
    "training": {entry.name for entry in fields(LensTrainingArguments) if entry.init},
}
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # 1e-4, which YAML takes for a text


def read_config(file: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """The file's keys, and over them the flags that were given; `head` and `training` are merged key by key.

    Raises:
        LensConfigError: no YAML, an unknown key, or a key that is missing.
    """
    try:
        config = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LensConfigError(f"{file} is no YAML: {error}") from error
    if not isinstance(config, dict) or any(not isinstance(config.get(key) or {}, dict) for key in ("head", "training")):
        raise LensConfigError(f"{file} must hold keys and values, and so must its `head` and `training`.")
    for section in ("head", "training"):
        given = {**(config.get(section) or {}), **flags.get(section, {})}
        config[section] = {key: _number(value) for key, value in given.items()}
    config |= {key: value for key, value in flags.items() if key not in ("head", "training") and value}
    for section, known in KNOWN.items():
        if unknown := sorted(set(config[section] if section else config) - known, key=str):
            raise LensConfigError(
                f"Unknown keys {unknown}{f' in {section}' if section else ''}; known: {sorted(known)}."
            )
    missing = [key for key in ("model", "data") if not config.get(key)]
    missing += [] if config["training"].get("output_dir") else ["training.output_dir"]
    if missing:
        raise LensConfigError(f"A training needs {', '.join(missing)} too; `lens-adapter train --help` shows how.")
    return config


def run_training(config: dict[str, Any], load_base: LoadBase) -> dict[str, float]:
    """Train as `read_config` says, and write the head to its `output_dir`.

    Where the validation data hold prompts with a target and prompts without, they also set the head's score threshold.

    Args:
        load_base: the frozen model's name, dtype and device -> the model and its processor.

    Returns:
        What the validation data say about it, if there are any.
    """
    examples = DataSource.of(config["data"]).examples()  # before anything large is loaded
    held_out = DataSource.of(config["validation"]).examples() if config.get("validation") else None
    numbers = {entry.name for entry in fields(LensTrainingArguments) if type(entry.default) in (int, float)}
    if wrong := {key: value for key, value in config["training"].items() if key in numbers and isinstance(value, str)}:
        raise LensConfigError(f"training: expected numbers, got {wrong}.")
    try:
        args = LensTrainingArguments(**config["training"])
    except (TypeError, ValueError) as error:
        raise LensConfigError(f"training: {error}") from error
    if config.get("features") and args.sample_grid_steps:  # LensTrainer would say so after hours
        raise LensConfigError(
            "training: sample_grid_steps draws on pictures, which `features` do not hold; set it to 0."
        )
    model, processor = load_base(config["model"], config.get("dtype") or "auto", args.device)
    if config.get("adapter"):
        adapter = LensAdapter.from_pretrained(config["adapter"], **config["head"]).attach(model, processor)
    else:
        adapter = LensAdapter.from_model(model, processor, **config["head"])
    train_data: Examples | CachedFeatures = examples
    validation: Examples | CachedFeatures | None = held_out
    if config.get("features"):
        train_data = _cached(adapter, examples, "train", config["data"], config, args)
        if held_out is not None:
            validation = _cached(adapter, held_out, "validation", config["validation"], config, args)
        adapter.detach()
        del model, processor  # all that was wanted of them is on disk
    trainer = LensTrainer(adapter, args, train_dataset=train_data, eval_dataset=validation)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir) if config.get("resume") else None)
    if validation is not None:
        said = _calibrate(trainer)
        if trainer.is_world_process_zero():
            print(said)
    trainer.save_model()
    return trainer.evaluate() if validation is not None else {}


def _cached(
    adapter: LensAdapter, examples: Examples, name: str, source: Any, config: dict[str, Any], args: TrainingArguments
) -> CachedFeatures:
    source = DataSource.of(source)
    return cache_features(
        adapter,
        examples,
        Path(config["features"], name),
        dtype=config.get("features_dtype") or "exact",
        data_key=digest_folder(source.path) if source.format == "folder" else None,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )


def _calibrate(trainer: LensTrainer) -> str:
    """What was done about the score threshold, in a line."""
    try:
        return f"Calibrated on the validation data: {trainer.calibrate()}."
    except CalibrationError as error:
        return f"score_threshold stays {trainer.adapter.config.score_threshold:g}: {error}"


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The last checkpoint that is whole: a run killed while it wrote one leaves it without its last file."""
    written = (state.parent for state in Path(output_dir).glob(f"checkpoint-*/{TRAINER_STATE_NAME}"))
    return max(map(str, written), key=lambda name: int(name.rpartition("-")[2]), default=None)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
