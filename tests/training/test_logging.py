"""What transformers' loggers get from a LensTrainer."""

from __future__ import annotations

import json

import pytest

from tests.tiny.training import curve, make_trainer, toy_samples


def test_tensorboard(tmp_path, monkeypatch):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))  # before transformers 5: in output_dir
    trainer = make_trainer(tmp_path, report_to="tensorboard", max_steps=3, eval_dataset=toy_samples(2))
    trainer.train()
    metrics = trainer.evaluate()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = reading.EventAccumulator(str(folder)).Reload()
    logged = events.Scalars("train/loss")
    assert [event.step for event in logged] == [1, 2, 3]
    assert [event.value for event in logged] == pytest.approx(curve(trainer), rel=1e-3)
    assert events.Scalars("eval/giou")[-1].value == pytest.approx(metrics["eval_giou"])
    text = events.Tensors("model_config/text_summary")[0].tensor_proto.string_val[0]
    assert json.loads(text)["tap_layer"] == trainer.adapter.config.tap_layer


def test_trackio(tmp_path, monkeypatch):
    """Not in the test extra: trackio 0.43 asks for pillow < 13. `make test` runs this with constraints-app.txt."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at the first import
    pytest.importorskip("trackio", exc_type=ImportError)  # it wants huggingface_hub 1.10 or later
    from trackio.sqlite_storage import SQLiteStorage

    trainer = make_trainer(
        tmp_path, report_to="trackio", max_steps=3, eval_dataset=toy_samples(2), project="lens", run_name="first"
    )
    trainer.train()
    logs = SQLiteStorage.get_logs("lens", "first")
    assert [log["train/loss"] for log in logs if "train/loss" in log] == pytest.approx(curve(trainer), rel=1e-3)
