"""A run knows its folder: the same command gives the same curve, and no two runs are mixed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from lens_adapter import builtin
from lens_adapter.cli import main
from lens_adapter.errors import LensConfigError
from lens_adapter.training import LensTrainer
from lens_adapter.training.configuration import head_keys, read_config, training_keys
from lens_adapter.training.run_folder import LOCK_FILE, RUN_FILE, checkpoints, claimed, damage
from lens_adapter.training.trainer import LensTrainingArguments
from tests.tiny.processes import PATIENCE, SERVER
from tests.tiny.training import make_trainer, toy_samples
from tests.training.test_run import world

__all__ = ["world"]


def train(world: Path, output: Path, *more: str, **settings: object) -> int:
    pairs = [f"{key}={value}" for key, value in {"max_steps": 2, **settings}.items()]
    head = ["--head", "fusion=lite", "fusion_width=32"]
    return main(["train", str(world / "train.yaml"), *head, "-o", str(output), "--training", *pairs, *more])


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != LOCK_FILE)
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def losses(folder: Path) -> list[float]:
    state = json.loads((checkpoints(folder)[0] / "trainer_state.json").read_text())
    return [log["loss"] for log in state["log_history"] if "loss" in log]


def test_the_same_command_gives_the_same_curve_and_head(world, tmp_path):
    for name in ("a", "b"):
        assert train(world, tmp_path / name, logging_steps=1) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and len(losses(tmp_path / "a")) == 2
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == two
    assert train(world, tmp_path / "c", logging_steps=1, seed=7) == 0
    assert losses(tmp_path / "c") != losses(tmp_path / "a")


def test_a_finished_run_is_left_as_it_is(world, tmp_path, capsys):
    assert train(world, tmp_path / "a", "--json") == 0
    first, before = json.loads(capsys.readouterr().out), contents(tmp_path / "a")
    assert train(world, tmp_path / "a", "--resume", "--json") == 0
    captured = capsys.readouterr()
    assert "is finished (2 steps); nothing is changed" in captured.err and json.loads(captured.out) == first
    assert contents(tmp_path / "a") == before


def test_a_folder_that_holds_a_run_is_kept(world, tmp_path, capsys):
    assert train(world, tmp_path / "a") == 0
    before = contents(tmp_path / "a")
    assert train(world, tmp_path / "a", seed=3) == 1
    assert "holds a training already" in capsys.readouterr().err and contents(tmp_path / "a") == before
    assert train(world, tmp_path / "a", "--resume", "--overwrite") == 1
    assert "give one of them" in capsys.readouterr().err and contents(tmp_path / "a") == before
    assert train(world, tmp_path / "a", "--overwrite", max_steps=1) == 0
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["checkpoint-1"]


@pytest.mark.parametrize(
    "more, settings, complaint",
    [
        ([], {"learning_rate": "2e-3"}, "training.learning_rate: 0.001 -> 0.002"),
        (["--head", "tap_layer=0"], {}, "head.tap_layer: None -> 0"),
        (["--dtype", "bfloat16"], {}, "dtype: None -> 'bfloat16'"),
    ],
)
def test_another_configuration_is_refused(world, tmp_path, capsys, more, settings, complaint):
    assert train(world, tmp_path / "a") == 0
    before = contents(tmp_path / "a")
    assert train(world, tmp_path / "a", "--resume", *more, max_steps=3, **settings) == 1
    said = capsys.readouterr().err
    assert "holds another run" in said and complaint in said and contents(tmp_path / "a") == before


def test_checkpoints_of_an_unknown_run_are_refused(world, tmp_path, capsys):
    assert train(world, tmp_path / "a") == 0
    (tmp_path / "a" / RUN_FILE).unlink()
    assert train(world, tmp_path / "a", "--resume", max_steps=3) == 1
    assert f"holds checkpoints or a head but no {RUN_FILE}" in capsys.readouterr().err
    (tmp_path / "a" / RUN_FILE).write_text("{")
    assert train(world, tmp_path / "a", "--resume", max_steps=3) == 1
    assert f"{RUN_FILE} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "config.json"])
@pytest.mark.parametrize("kept", [0, 0.6])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(world, tmp_path, capsys, name, kept):
    assert train(world, tmp_path / "a") == 0
    file = tmp_path / "a" / "checkpoint-2" / name
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    assert train(world, tmp_path / "a", "--resume", max_steps=3, logging_steps=1) == 0
    said = capsys.readouterr().err
    assert "checkpoint-2 is left out, since it is not whole" in said and name in said
    assert "Going on from" in said and "checkpoint-1." in said
    assert damage(tmp_path / "a" / "checkpoint-3") is None and damage(tmp_path / "a" / "checkpoint-2") is None


def test_nothing_whole_is_refused(world, tmp_path, capsys):
    assert train(world, tmp_path / "a", max_steps=1) == 0
    (tmp_path / "a" / "checkpoint-1" / "trainer_state.json").unlink()
    before = contents(tmp_path / "a")
    assert train(world, tmp_path / "a", "--resume") == 1
    said = capsys.readouterr().err
    assert "There is no whole checkpoint in" in said and "trainer_state.json" in said and "--overwrite" in said
    assert contents(tmp_path / "a") == before


def test_weights_of_another_save_are_damage(world, tmp_path, capsys):
    assert train(world, tmp_path / "a") == 0
    one, two = (tmp_path / "a" / f"checkpoint-{step}" for step in (1, 2))
    shutil.copyfile(one / "model.safetensors", two / "model.safetensors")  # whole, and not of this config
    assert "not of one save" in str(damage(two)) and damage(one) is None
    assert train(world, tmp_path / "a", "--resume", max_steps=3) == 0
    said = capsys.readouterr().err
    assert "checkpoint-2 is left out" in said and "Going on from" in said and "checkpoint-1." in said


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_head_of_somebody_elses_is_neither_gone_on_with_nor_left_to_be_published(world, tmp_path, capsys, flags):
    """A folder used before, without a checkpoint: what lies there is of no run that is known."""
    folder = Path(shutil.copytree(builtin.HEADS["lite"], tmp_path / "a"))
    before = contents(folder)
    assert train(world, folder, *flags) == 1
    said = capsys.readouterr().err
    assert ("checkpoints or a head" if flags else "holds a head already") in said and contents(folder) == before


def test_a_run_that_starts_from_the_beginning_starts_without_a_head(world, tmp_path, monkeypatch):
    """So that one of another run cannot be taken for its own, whenever it is stopped."""
    folder = Path(shutil.copytree(builtin.HEADS["lite"], tmp_path / "a"))
    monkeypatch.setattr(LensTrainer, "train", lambda self, **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(world, folder, "--overwrite")
    assert not [*folder.glob("*.safetensors")] and not (folder / "config.json").exists()
    monkeypatch.undo()
    assert train(world, folder, "--resume", max_steps=1) == 0  # it knows its configuration
    assert train(world, folder, "--resume", max_steps=1, learning_rate="2e-3") == 1


def _hold(folder: str, ready: str) -> None:
    with claimed(folder):
        Path(ready).touch()
        time.sleep(600)


def test_a_folder_is_free_again_when_its_run_is_killed(tmp_path):
    holder = SERVER.Process(target=_hold, args=(str(tmp_path), str(tmp_path / "ready")))
    holder.start()
    end = time.monotonic() + PATIENCE
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.02)
    with pytest.raises(LensConfigError, match="Another training works in"), claimed(tmp_path):
        pass
    holder.kill()
    holder.join(PATIENCE)
    with claimed(tmp_path):
        pass


def test_a_second_run_in_the_folder_is_refused_before_anything_is_loaded(world, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / LOCK_FILE):
        assert train(world, tmp_path / "a") == 1
        assert "Another training works in" in capsys.readouterr().err
    with claimed(tmp_path / "a"), pytest.raises(LensConfigError, match="Another training"), claimed(tmp_path / "a"):
        pass
    assert train(world, tmp_path / "a") == 0


def test_the_head_is_there_whatever_fails_after_training(world, tmp_path, monkeypatch, capsys):
    """And what was left undone is done by --resume, without another step."""
    monkeypatch.setattr(LensTrainer, "calibrate", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(world, tmp_path / "a")
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    monkeypatch.undo()
    steps: list[int] = []
    monkeypatch.setattr(LensTrainer, "train", lambda self, **_: steps.append(1))
    assert train(world, tmp_path / "a", "--resume") == 0 and not steps
    assert "eval_giou" in capsys.readouterr().out
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "a" / RUN_FILE).read_text())["finished"]["steps"] == 2


def test_the_token_is_not_written_down(world, tmp_path):
    assert train(world, tmp_path / "a", hub_token="hf_secret", max_steps=1) == 0
    assert "hf_secret" not in (tmp_path / "a" / RUN_FILE).read_text()


# -- what cannot work is said at the start


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True},
        {"neftune_noise_alpha": 5.0},
        {"label_smoothing_factor": 0.1},
        {"include_for_metrics": ["inputs"]},
        {"batch_eval_metrics": True},
        {"eval_do_concat_batches": False},
        {"use_liger_kernel": True},
        {"train_sampling_strategy": "group_by_length"},
        {"group_by_length": True},
    ],
)
def test_switches_that_cannot_work(tmp_path, settings):
    (name,) = settings
    if name not in training_keys():
        pytest.skip(f"this transformers has no {name}")
    with pytest.raises(LensConfigError, match=f"cannot work with {name}"):
        LensTrainingArguments(str(tmp_path), **settings)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"eval_strategy": "steps", "eval_steps": 1}, "no validation data to evaluate on"),
        ({"metric_for_best_model": "miou"}, r"must be one of \[.*'giou'.*; got 'miou'"),
        ({"metric_for_best_model": "eval_first_keypoint_on_target"}, "metric_for_best_model must be one of"),
    ],
)
def test_settings_that_do_not_fit_the_data(tmp_path, settings, complaint):
    held_out = None if "eval_strategy" in settings else toy_samples(2)
    with pytest.raises(LensConfigError, match=complaint):
        make_trainer(tmp_path, eval_dataset=held_out, **settings)


@pytest.mark.parametrize("metric, greater", [("giou", True), ("eval_score_error", False), ("loss", False)])
def test_which_way_a_metric_is_better(tmp_path, metric, greater):
    assert LensTrainingArguments(str(tmp_path), metric_for_best_model=metric).greater_is_better is greater


def test_data_without_an_example_are_refused_before_a_model_is_loaded(world, tmp_path, capsys, monkeypatch):
    empty = Path(shutil.copytree(world / "data", tmp_path / "empty"))
    (empty / "prompts.jsonl").write_text("")
    monkeypatch.setattr("lens_adapter.cli.train.base_by_name", lambda *_: 1 / 0)
    for flag in ("--data", "--validation"):
        assert train(world, tmp_path / "a", flag, str(empty)) == 1
        assert f"{flag[2:]}: expected at least one example, got none" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["no", "off", "false"])
def test_words_of_yaml_that_mean_never(tmp_path, word):
    text = f"model: m\ndata: d\ntraining: {{output_dir: o, save_strategy: {word}, report_to: {word}, bf16: {word}}}\n"
    (tmp_path / "train.yaml").write_text(text)
    config = read_config(tmp_path / "train.yaml", {"training": {"eval_strategy": False}})["training"]
    assert (config["save_strategy"], config["eval_strategy"], config["report_to"]) == ("no", "no", "none")
    assert config["bf16"] is False


def test_keys_are_known_without_the_classes():
    from dataclasses import fields
    from inspect import signature

    from lens_adapter import LensConfig

    assert head_keys() == set(signature(LensConfig.__init__).parameters) - {"self", "kwargs"}
    assert set(training_keys()) == {entry.name for entry in fields(LensTrainingArguments) if entry.init}


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "nowhere.yaml"],
        ["train", "--model", "m", "--data", "nowhere", "-o", "o"],
        ["train", "--model", "m", "--data", "d", "-o", "o", "--training", "learning_rat=1"],
        ["train", "--model", "m", "--data", "d", "-o", "o", "--training", "learning_rate=fast"],
        ["train", "--model", "m", "--data", "d", "-o", "o", "--head", "fusoin=lite"],
        ["evaluate", "--model", "m", "--adapter", "a", "--data", "nowhere"],
        ["probe", "--model", "m", "--data", "nowhere"],
        ["segment", "nowhere.png", "a dog", "--model", "builtin"],
        ["segment", "nowhere.png", " ", "--model", "builtin"],
        ["segment", __file__, "a dog", "--model", "./nowhere/at-all", "--adapter", "a"],
        ["segment", __file__, "a dog", "--model", "m", "--adapter", "./nowhere/at-all"],
        ["push", "nowhere", "me/lens"],
    ],
)
def test_a_typing_error_waits_for_nothing_heavy(arguments, tmp_path):
    code = (
        f"import sys; from lens_adapter.cli import main; code = main({arguments!r})\n"
        "assert code == 1, code\n"
        "assert not {'torch', 'transformers', 'accelerate'} & sys.modules.keys()"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
    assert time.perf_counter() - started < 5  # under one when the machine has nothing else to do
