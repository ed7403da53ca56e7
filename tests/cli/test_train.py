"""`lens-adapter train`: what its help teaches; what it does is in tests/training/test_run.py."""

from __future__ import annotations

import shlex

import yaml

from lens_adapter.cli import _parser
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
