"""The folder of a training: who works in it, of which configuration its checkpoints are, and from where to go on.

`lens_run.json` says what the run was asked, and whether it has come to its end. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lens_adapter.errors import LensConfigError
from lens_adapter.writing import write_text

RUN_FILE = "lens_run.json"
LOCK_FILE = "_lens_run.lock"  # Trainer does not upload what begins so
STATE_FILE = "trainer_state.json"  # the last file of a checkpoint
_HEAD = ("config.json", "model*.safetensors", "model.safetensors.index.json", "evaluation.json", ".lens-save")
# What may differ when a run is gone on with: how long it is, what is shown, kept and uploaded of it, and where.
_FREE = ("resume", "overwrite", "features")
_FREE_IN_TRAINING = (
    *("output_dir", "max_steps", "num_train_epochs", "do_", "hub_", "push_to_hub", "log", "save_", "eval_"),
    *("per_device_eval_batch_size", "report_to", "run_name", "project", "trackio_", "disable_tqdm", "dataloader_"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "sample_grid_steps", "dataset_names"),
    *("use_cpu", "ddp_", "local_rank", "debug", "skip_memory_metrics", "torch_empty_cache_steps", "overwrite_"),
)


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Attributes:
        checkpoint: the one to go on from; None: from the beginning.
        trained: steps and epochs, where all are taken in `checkpoint`; what follows training is still to be done.
        finished: nothing is left to do; what its validation data said about the head.
        notes: what is to be said about it.
    """

    checkpoint: Path | None = None
    trained: tuple[int, float] | None = None
    finished: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Inside, no other run works in the folder; the first process of several claims it for all.

    Raises:
        LensConfigError: another one does.
    """
    if int(os.environ.get("RANK", 0)):
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder, LOCK_FILE))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LensConfigError(
            f"Another training works in {folder} at this moment; two would mix their checkpoints. Wait for its end, or "
            "name another output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def plan(config: Mapping[str, Any]) -> Start:
    """How the run that `config` describes begins in its `output_dir`; changes nothing.

    Args:
        config: as `configuration.read_config` returns it.

    Raises:
        LensConfigError: the folder holds another run, or one that is neither to be gone on with nor overwritten.
    """
    folder = Path(config["training"]["output_dir"])
    record, there = _read(folder), checkpoints(folder)
    ended, head = record.get("finished"), bool(_head_files(folder))
    if config.get("resume") and config.get("overwrite"):
        raise LensConfigError("resume goes on with a run and overwrite deletes it; give one of them.")
    if not config.get("resume"):
        if (there or ended or head) and not config.get("overwrite"):
            what = "holds a training already" if there or record else "holds a head already"
            raise LensConfigError(
                f"{folder} {what} ({len(there)} checkpoints). Go on with it by --resume, delete it by --overwrite, or "
                "name another output_dir."
            )
        return Start()
    if not there and not record and not head:
        return Start()
    _require_same(folder, record, config)
    if ended and not _asks_for_more(config, ended["steps"], ended["epoch"]):
        return Start(
            finished=ended["figures"],
            notes=[
                f"The training in {folder} is finished ({ended['steps']} steps); nothing is changed. Give more "
                "max_steps or num_train_epochs to go on, or another output_dir."
            ],
        )
    notes = []
    for checkpoint in there:
        if reason := damage(checkpoint):
            notes.append(f"{checkpoint} is left out, since it is not whole: {reason}.")
            continue
        notes += [f"Going on from {checkpoint}."] if notes else []
        if _asks_for_more(config, *steps_of(checkpoint)):
            return Start(checkpoint, notes=notes)
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        best = Path(state.get("best_model_checkpoint") or "").name
        keep_best = config["training"].get("load_best_model_at_end") and best
        return Start(folder / best if keep_best else checkpoint, trained=steps_of(checkpoint), notes=notes)
    if there:
        raise LensConfigError(
            f"There is no whole checkpoint in {folder}: {' '.join(notes)} Start anew by --overwrite, or name another "
            "output_dir."
        )
    return Start(notes=[f"The training in {folder} ended before its first checkpoint: starting anew."])


def begin(config: Mapping[str, Any], start: Start) -> None:
    """Write down of which run the folder is; what it is to overwrite goes, a head of another run as well."""
    folder = Path(config["training"]["output_dir"])
    if start.checkpoint is None:
        for path in (*checkpoints(folder), *_head_files(folder)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _write(folder, {"config": _plain(config), "finished": None})


def finish(config: Mapping[str, Any], steps: int, epoch: float, figures: Mapping[str, float]) -> None:
    """Write down that the run has come to its end."""
    ended = {"steps": steps, "epoch": epoch, "figures": dict(figures)}
    _write(Path(config["training"]["output_dir"]), {"config": _plain(config), "finished": ended})


def checkpoints(folder: Path) -> list[Path]:
    """All of them, whole or not, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that is whole, if there is one."""
    return next((str(path) for path in checkpoints(Path(folder)) if damage(path) is None), None)


def _head_files(folder: Path) -> list[Path]:
    """What a head in the folder itself is made of."""
    return [file for pattern in _HEAD for file in folder.glob(pattern)]


def steps_of(checkpoint: Path) -> tuple[int, float]:
    """Steps and epochs that a whole checkpoint has behind it."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state["global_step"], state.get("epoch") or 0.0


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, or which of its files cannot be read; None: it is whole."""
    from safetensors import SafetensorError, safe_open

    if not (checkpoint / STATE_FILE).is_file():
        return f"there is no {STATE_FILE}, its last file"
    if not [*checkpoint.glob("*.safetensors")]:
        return "there are no weights"
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        try:
            if file.suffix == ".json":
                content = json.loads(file.read_text(encoding="utf-8"))
                if file.name == STATE_FILE and not isinstance(content["global_step"], int):
                    return f"{file.name} names no step"
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="np"):
                    pass
            elif file.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(file) as parts:
                    if wrong := parts.testzip():
                        return f"{file.name} is damaged in {wrong}"
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{file.name} cannot be read ({type(error).__name__}: {error})"
    return _mixed(checkpoint)


def _mixed(checkpoint: Path) -> str | None:
    """What is wrong where weights are other ones than those that the config was saved with."""
    from lens_adapter.checkpoint import require_digest, weight_files  # takes seconds

    try:
        expected = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("head_sha256")
        require_digest(checkpoint, expected, weight_files(checkpoint))
    except (OSError, ValueError, AttributeError) as error:  # ours are ValueErrors
        return str(error)
    return None


def _asks_for_more(config: Mapping[str, Any], steps: int, epoch: float) -> bool:
    training = config["training"]
    if (most := training.get("max_steps") or -1) > 0:
        return bool(steps < most)
    epochs = training.get("num_train_epochs")
    return epoch < float(3 if epochs is None else epochs)  # 3: transformers' default


def _require_same(folder: Path, record: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if not record:
        raise LensConfigError(
            f"{folder} holds checkpoints or a head but no {RUN_FILE}, so it is not known which run they are of. Delete "
            "them by --overwrite, or name another output_dir."
        )
    old, new = _fixed(record["config"]), _fixed(_plain(config))
    if wrong := [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in old | new if old.get(key) != new.get(key)]:
        raise LensConfigError(
            f"{folder} holds another run: {'; '.join(wrong)} (there -> asked for). Go on with it as it was, delete it "
            "by --overwrite, or name another output_dir."
        )


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same when a run is gone on with, by key; what is not set is not there."""
    flat = {key: value for key, value in config.items() if key not in (*_FREE, "head", "training")}
    flat |= {f"head.{key}": value for key, value in (config.get("head") or {}).items()}
    training = (config.get("training") or {}).items()
    flat |= {f"training.{key}": value for key, value in training if not key.startswith(_FREE_IN_TRAINING)}
    return {key: value for key, value in flat.items() if value is not None}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back; without the token."""
    training = {key: value for key, value in config["training"].items() if key != "hub_token"}
    plain: dict[str, Any] = json.loads(json.dumps({**config, "training": training}, default=str))
    return plain


def _read(folder: Path) -> dict[str, Any]:
    file = folder / RUN_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        ended = content["finished"]
        if not isinstance(content["config"], dict) or not (ended is None or {"steps", "epoch", "figures"} <= {*ended}):
            raise ValueError("a part is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LensConfigError(
            f"{file} is damaged ({error}), so it is not known which run this folder is of. Delete the file and give "
            "--overwrite, or name another output_dir."
        ) from error
    return dict(content)


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    """All of it, or nothing."""
    write_text(folder / RUN_FILE, json.dumps(content, indent=2) + "\n")
