"""A training as one dict: what `lens-adapter train` reads from its file and its flags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, enable_full_determinism, set_seed

from lens_adapter.adapter import LensAdapter
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import digest_folder
from lens_adapter.data.formats import DataSource
from lens_adapter.errors import CalibrationError, LensConfigError
from lens_adapter.training.cache.read import CachedFeatures
from lens_adapter.training.cache.write import cache_features
from lens_adapter.training.configuration import read_config
from lens_adapter.training.run_folder import Start, begin, claimed, finish, last_checkpoint, plan
from lens_adapter.training.trainer import LensTrainer, LensTrainingArguments

__all__ = ["last_checkpoint", "read_config", "run_training"]

LoadBase = Callable[[str, str, torch.device], tuple[Any, Any]]


def run_training(config: dict[str, Any], load_base: LoadBase) -> dict[str, float]:
    """Train as `read_config` says, and write the head to its `output_dir`.

    The same configuration gives the same head: all that is random, the new head too, follows the `seed`. Where the
    validation data hold prompts with a target and prompts without, they also set the head's score threshold.

    Args:
        load_base: the frozen model's name, dtype and device -> the model and its processor.

    Returns:
        What the validation data say about it, if there are any.

    Raises:
        LensConfigError: a setting that is impossible or cannot work, data without an example, or a folder that another
            run is in, or was. All before a model is loaded.
    """
    examples = DataSource.of(config["data"]).examples()  # before anything large is loaded
    held_out = DataSource.of(config["validation"]).examples() if config.get("validation") else None
    for name, found in (("data", examples), ("validation", held_out)):
        if found is not None and not len(found):
            raise LensConfigError(f"{name}: expected at least one example, got none in {config[name]}.")
    try:
        args = LensTrainingArguments(**config["training"])
    except LensConfigError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise LensConfigError(f"training: {error}") from error
    args.require_data(held_out)
    if config.get("features") and args.sample_grid_steps:  # LensTrainer would say so after hours
        raise LensConfigError(
            "training: sample_grid_steps draws on pictures, which `features` do not hold; set it to 0."
        )
    with claimed(args.output_dir):
        start = plan(config)
        if args.process_index == 0:
            for note in start.notes:
                print(note)
        if start.finished is not None:
            return start.finished
        return _run(config, load_base, args, start, examples, held_out)


def _run(
    config: dict[str, Any],
    load_base: LoadBase,
    args: LensTrainingArguments,
    start: Start,
    examples: Examples,
    held_out: Examples | None,
) -> dict[str, float]:
    model, processor = load_base(config["model"], config.get("dtype") or "auto", args.device)
    # Before the head is made: its weights are random.
    (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
    if start.trained and start.checkpoint:
        adapter = LensAdapter.from_pretrained(start.checkpoint).attach(model, processor)
    elif config.get("adapter"):
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
    trainer.accelerator.wait_for_everyone()  # all have seen what the folder holds
    if trainer.is_world_process_zero():
        begin(config, start)
    if start.trained:
        steps, epoch = start.trained
    else:
        trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
        steps, epoch = trainer.state.global_step, trainer.state.epoch or 0.0
    figures: dict[str, float] = {}
    if validation is not None:
        trainer.save_model(_internal_call=True)  # first: what follows may fail; it is not the one to be pushed
        said = _calibrate(trainer)
        if trainer.is_world_process_zero():
            print(said)
    trainer.save_model()
    if validation is not None:
        figures = trainer.evaluate()
    if trainer.is_world_process_zero():
        finish(config, steps, epoch, figures)
    return figures


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
