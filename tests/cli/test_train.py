"""`lens-adapter train`: what its help teaches; what it does is in tests/training/test_run.py."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import yaml
from PIL import Image

from lens_adapter import LensAdapter
from lens_adapter.builtin.world import sample_scene
from lens_adapter.cli import _parser, main
from lens_adapter.training.run import read_config
from tests.cli.calls import example_lines, helped


def test_help_of_train_holds_a_whole_file(capsys, tmp_path):
    printed = helped("train", capsys)
    text = printed.partition("CONFIG.yaml:\n")[2].partition("\n\n")[0]
    (tmp_path / "train.yaml").write_text(text)
    config = read_config(tmp_path / "train.yaml", {})
    assert config["validation"]["dataset"] == "refcoco" and config["training"]["learning_rate"] == 1e-4
    line = next(line for line in example_lines(printed) if "--validation" in line)
    args = _parser().parse_args(shlex.split(line)[1:])
    assert (args.validation, args.head["tap_layer"]) == (config["validation"], config["head"]["tap_layer"])
    assert args.training.keys() < config["training"].keys() and yaml.safe_load(text)["data"] == args.data["path"]


@pytest.mark.parametrize("flags, sam", [([], "builtin"), (["--sam", "builtin-sam2"], "builtin-sam2")])
def test_the_model_that_ships_is_trained_offline_with_what_ships(tmp_path, flags, sam):
    """Its SAM and the questions that it knows, without being told."""
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    sample_scene(7, "validation").draw(64).save(tmp_path / "data" / "images" / "a.png")
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(tmp_path / "data" / "masks" / "a.png")
    line = {"image": "a.png", "mask": "a.png", "prompt": "the dog"}
    (tmp_path / "data" / "prompts.jsonl").write_text(json.dumps(line))
    command = ["train", "--model", "builtin", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "head"), *flags]
    assert main([*command, "--head", "fusion=lite", "--training", "max_steps=1", "use_cpu=true"]) == 0
    config = LensAdapter.from_pretrained(tmp_path / "head").config
    assert (config.sam["variant"], config.prompt_template) == (sam, "where is {prompt} ?")


def test_a_key_that_is_mistyped_is_asked_about(tmp_path, capsys):
    command = ["train", "--model", "m", "--data", str(tmp_path), "-o", str(tmp_path / "o")]
    assert main([*command, "--head", "tap_leyer=3"]) == 1
    assert "Did you mean 'tap_layer'?" in capsys.readouterr().err
    assert main([*command, "--training", "lerning_rate=1"]) == 1
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err
