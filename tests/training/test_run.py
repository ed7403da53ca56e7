"""`lens-adapter train`: from a file and flags to a head on disk; and the example."""

from __future__ import annotations

import gc
import json
import runpy
import shutil
import sys
import weakref
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from lens_adapter import LensAdapter
from lens_adapter.cli import main
from lens_adapter.cli import train as command
from lens_adapter.cli.arguments import parse_pairs
from lens_adapter.data.folder import digest_folder
from lens_adapter.errors import LensConfigError
from lens_adapter.training import LensTrainer
from lens_adapter.training.run import read_config
from lens_adapter.vlm.base import FrozenBase
from tests.data.formats import reference
from tests.data.test_refer import write_set
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, tiny_sam, tiny_sam_model
from tests.tiny.training import toy_samples

FULL = {"model": "m", "data": "d", "training": {"output_dir": "o"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A base, a SAM and a labelled folder on disk, and a training of them."""
    world = tmp_path_factory.mktemp("world")
    model, processor = tiny_pair("llava")
    model.save_pretrained(world / "base")
    processor.save_pretrained(world / "base")
    tiny_sam_model(tiny_sam()).save_pretrained(world / "sam")
    for name in ("images", "masks"):
        (world / "data" / name).mkdir(parents=True)
    lines = []
    for k, sample in enumerate(toy_samples(4)):
        sample.image.save(world / "data" / "images" / f"{k}.png")
        Image.fromarray(sample.mask).save(world / "data" / "masks" / f"{k}.png")
        lines.append(json.dumps({"image": f"{k}.png", "mask": f"{k}.png", "prompt": sample.prompt}))
    (world / "data" / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    sam = {**tiny_sam(include_image_encoder=False), "weights": str(world / "sam")}
    training = {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    config = {
        "model": str(world / "base"),
        "data": str(world / "data"),
        "validation": str(world / "data"),
        "head": {"fusion": "mirror", "fusion_layers": 1, "sam": sam},
        "training": {**training, "output_dir": str(world / "unused"), "max_steps": 9, "save_steps": 1},
    }
    (world / "train.yaml").write_text(
        yaml.safe_dump(config).replace("max_steps: 9", "max_steps: 9\n  learning_rate: 1e-3")
    )
    return world


def test_a_file_flags_and_resume(world, tmp_path, capsys):
    output = tmp_path / "head"
    flags = ["--head", "fusion=lite", "fusion_width=32", "-o", str(output), "--training"]
    figures = tmp_path / "new" / "figures.json"
    assert main(["train", str(world / "train.yaml"), *flags, "max_steps=2", "--json", str(figures)]) == 0
    captured, result = capsys.readouterr(), json.loads(figures.read_text())
    printed = dict(line.split() for line in captured.out.splitlines())
    assert "eval_giou" in printed and f"Wrote {output}\n" in captured.err
    assert result["output_dir"] == str(output)
    assert {name: f"{value:.4f}" for name, value in result["validation"].items()} == printed
    state = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and not (world / "unused").exists()
    model, processor = tiny_pair("llava")
    with LensAdapter.from_pretrained(output).attach(model, processor) as adapter:
        assert adapter.config.fusion == "lite" and "use_cache" not in json.loads((output / "config.json").read_text())
        assert adapter.segment(noise_image(48, 60), "the cat").masks.shape == (1, 48, 60)
    assert not any("image_encoder" in name for name in load_file(output / "checkpoint-2" / "model.safetensors"))
    assert main(["train", str(world / "train.yaml"), *flags, "max_steps=3", "--resume"]) == 0
    assert "missing keys" not in capsys.readouterr().err
    state = json.loads((output / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and not (output / "checkpoint-9").exists()
    assert main(["train", str(world / "train.yaml"), "--adapter", str(output), "-o", str(tmp_path / "b"),
                 "--training", "max_steps=1"]) == 1  # fmt: skip
    assert "head" in capsys.readouterr().err  # an existing head has its fusion


def test_data_in_any_format_and_calibration(world, tmp_path, capsys):
    """Validation data with prompts that name nothing set the threshold; those without leave it, and say so."""
    meant = [[11], [15], [-1], [-1]]
    said = [reference(k, ids, 1 + k % 2, [f"thing {k}"], "val") for k, ids in enumerate(meant)]
    write_set(tmp_path, said, "grefcoco", "grefs(unc).json")
    write_set(tmp_path, [reference(0, 11, 1, ["thing"], "val")])
    output = tmp_path / "head"
    flags = ["--head", "fusion=lite", "fusion_width=32", "mask_threshold=0.0", "-o", str(output)]
    flags += ["--training", "max_steps=1"]
    both = [str(tmp_path), "format=refer", "dataset=grefcoco", "split=val"]
    assert main(["train", str(world / "train.yaml"), "--validation", *both, *flags]) == 0
    printed = "".join(capsys.readouterr())
    assert "Calibrated on the validation data: score_threshold" in printed and "2 prompts with and 2 without" in printed
    threshold = LensAdapter.from_pretrained(output).config.score_threshold
    assert f"score_threshold {threshold:.4f}:" in printed and "eval_no_target_accuracy" in printed
    config = yaml.safe_load((world / "train.yaml").read_text())
    config["validation"] = {"path": str(tmp_path), "format": "refer", "dataset": "refcoco"}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "train.yaml"), "--overwrite", *flags]) == 0
    assert "score_threshold stays 0: A score threshold is chosen on prompts with" in capsys.readouterr().err


def test_the_example(world, tmp_path, monkeypatch):
    make = LensAdapter.from_model.__func__
    sam = {**tiny_sam(), "weights": str(world / "sam")}
    monkeypatch.setattr(
        LensAdapter, "from_model", classmethod(lambda cls, *args, **fields: make(cls, *args, **{**fields, "sam": sam}))
    )
    example = Path(__file__).parents[2] / "examples" / "train_on_a_folder.py"
    monkeypatch.setattr(sys, "argv", [example.name, str(world / "base"), str(world / "data"), str(tmp_path / "head")])
    runpy.run_path(str(example))
    assert (tmp_path / "head" / "first-sample.png").is_file()
    assert LensAdapter.from_pretrained(tmp_path / "head").config.fusion == "lite"


def test_from_cached_features(world, tmp_path, monkeypatch, capsys):
    features, output = tmp_path / "features", tmp_path / "head"
    bases, readings, read, load, train = [], [], FrozenBase.read, command.base_by_name, LensTrainer.train

    def loaded(*args):
        pair = load(*args)
        bases.append(weakref.ref(pair[0]))
        return pair

    def trained(self, *args, **kwargs):
        gc.collect()
        assert bases[-1]() is None  # let go of before the training
        return train(self, *args, **kwargs)

    monkeypatch.setattr(command, "base_by_name", loaded)
    monkeypatch.setattr(LensTrainer, "train", trained)
    monkeypatch.setattr(FrozenBase, "read", lambda *given, **more: readings.append(1) or read(*given, **more))
    flags = ["train", str(world / "train.yaml"), "--features", str(features), "-o", str(output), "--training"]
    assert main([*flags, "max_steps=2"]) == 0
    assert "eval_giou" in capsys.readouterr().out
    assert {file.parent.name for file in features.rglob("index.json")} == {"train", "validation"}
    assert LensAdapter.from_pretrained(output).config.fusion == "mirror"
    done = len(readings)
    assert done and main([*flags, "max_steps=3", "--resume"]) == 0
    assert len(readings) == done and (output / "checkpoint-3").is_dir()
    assert main([*flags, "max_steps=3", "sample_grid_steps=1", "--overwrite"]) == 1
    assert "set it to 0" in capsys.readouterr().err
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    assert digest_folder(data) == digest_folder(world / "data")
    shutil.copy(data / "masks" / "0.png", data / "masks" / "1.png")
    assert main([*flags, "max_steps=1", "--data", str(data), "--overwrite"]) == 1
    assert (output / "checkpoint-3").is_dir()  # nothing is deleted before all is known to be well
    assert "data_key: expected" in capsys.readouterr().err


def test_flags_go_before_the_file(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("model: a\ndata: b\nhead: {tap_layer: 3}\ntraining:\n  output_dir: c\n  learning_rate: 1e-4\n")
    flags = {"model": "other", "data": None, "resume": False, "head": {"fusion": "lite"}, "training": {"max_steps": 5}}
    assert read_config(file, flags) == {
        "model": "other",
        "data": "b",
        "head": {"tap_layer": 3, "fusion": "lite"},
        "training": {"output_dir": "c", "learning_rate": 1e-4, "max_steps": 5},
    }
    assert read_config(None, FULL) == {**FULL, "head": {}}


def test_pairs():
    assert parse_pairs(["a=1", "b=x=y", "c=true", "d=[1, 2]"]) == {"a": 1, "b": "x=y", "c": True, "d": [1, 2]}
    for wrong, complaint in (("a", "KEY=VALUE"), ("=1", "KEY=VALUE"), ("a=[", "no YAML")):
        with pytest.raises(LensConfigError, match=complaint):
            parse_pairs([wrong])


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("learning_rate: 1\n", r"Unknown keys \['learning_rate'\]"),
        ("head: {fusoin: lite}\n", r"Unknown keys \['fusoin'\] in head; known: .*'fusion'"),
        ("training: {learning_rat: 1, 7: 2}\n", r"Unknown keys \[7, 'learning_rat'\] in training"),
        ("head: lite\n", "must hold keys and values"),
        ("- model\n", "must hold keys and values"),
        ("model: [\n", "is no YAML"),
        ("model: m\n", "needs data, training.output_dir too"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, complaint, capsys):
    file = tmp_path / "train.yaml"
    file.write_text(text)
    with pytest.raises(LensConfigError, match=complaint):
        read_config(file, {})
    assert main(["train", str(file)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (["--training", "learning_rate=fast"], "learning_rate"),
        (["--training", "decoder_tuning=some"], "decoder_tuning must be one of"),
        (["--head", "tap_layer=99"], "tap_layer"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "nowhere", "format=coco"], "needs images too"),
        (["--validation", "nowhere", "splt=val"], "'folder' has no option splt"),
        (["--model", "./nowhere/at-all"], "nowhere"),
    ],
)
def test_values_that_are_wrong(world, tmp_path, flags, complaint, capsys):
    flags = [flags[0], *flags[1:], "-o", str(tmp_path)]
    assert main(["train", str(world / "train.yaml"), *flags]) == 1
    _, said, message = capsys.readouterr().err.rpartition("lens-adapter train: ")
    assert said and complaint in message
