"""`lens-adapter train`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from lens_adapter.cli.arguments import (
    BUILTIN,
    Commands,
    add_command,
    add_data_option,
    add_json_option,
    add_pairs_option,
    add_sam_option,
    require_data,
    require_name,
)
from lens_adapter.cli.loading import base_by_name
from lens_adapter.cli.outputs import require_files, require_folder_for
from lens_adapter.cli.result import Result, figures, note

_EXAMPLES = """\
lens-adapter train --model llava-hf/llava-1.5-7b-hf --data my-pictures -o my-head --head fusion=lite
lens-adapter train CONFIG.yaml
lens-adapter train CONFIG.yaml --resume                 # go on with a run that was killed
accelerate launch -m lens_adapter train CONFIG.yaml     # on several devices

CONFIG.yaml:
  model: llava-hf/llava-1.5-7b-hf
  data: refcoco/train                  # a folder with images/, masks/ and prompts.jsonl
  validation:                          # or a path with a format and its options, all of them at the end
      path: refer_seg
      format: refer
      dataset: refcoco
      split: val
  dtype: bfloat16
  features: features/refcoco           # what the frozen parts say, computed once and kept here; see below
  head:                                # any field of LensConfig
      fusion: lite                     # a small head of our own; mirror: copies of the model's layers, as the paper
      tap_layer: 14                    # `lens-adapter probe` recommends one
  training:                            # any of transformers' TrainingArguments, and LensTrainingArguments' own
      output_dir: lens-llava
      learning_rate: 1e-4
      per_device_train_batch_size: 8
      max_steps: 20000
      bf16: true
      eval_strategy: steps
      eval_steps: 1000
      save_steps: 1000
      sample_grid_steps: 0             # 1000: pictures of samples in lens-llava/samples; not with `features`
      decoder_tuning: full             # of the mask decoder; or lora, or frozen
      keypoint_dropout: 0.5            # share of samples that go without their keypoints

The same with flags:
lens-adapter train --model llava-hf/llava-1.5-7b-hf -o lens-llava --data refcoco/train \\
    --validation refer_seg format=refer dataset=refcoco split=val \\
    --head fusion=lite tap_layer=14 --training learning_rate=1e-4 max_steps=20000 bf16=true

features:
  The model and SAM's image encoder are frozen: with `features`, each reads every example once, what it says goes to
  that folder, and the head trains from there, without the model in memory. A folder that is there is checked and
  used, one that is not finished is gone on with, one of another model, head or data is refused. It takes megabytes
  per example and per picture (of a 7B model 3 to 6, and 4); `features_dtype: float16` halves what is float32.
"""


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        help="train a head for any model on labelled images",
        description="""
        Trains a LENS head and its mask decoder on labelled images; the model itself stays frozen. Give a file, flags,
        or both: flags come first.

        Prints what the validation data say about the head, and writes it to a folder that `segment`, `evaluate` and
        `push` take.""",
        examples=_EXAMPLES,
    )
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="the training as a file, see below")
    parser.add_argument("--model", metavar="ID_OR_FOLDER", help='the frozen model; "builtin": the one that ships')
    parser.add_argument("--adapter", metavar="ID_OR_FOLDER", help="start from this head; default: a new one")
    add_data_option(parser, "--data", "to learn from")
    add_data_option(parser, "--validation", "to evaluate on, and to calibrate scores if some prompts have no target")
    parser.add_argument("--dtype", metavar="TYPE", help="of the frozen model; default: as it was saved")
    parser.add_argument("--features", metavar="FOLDER", help="keep here what the frozen parts say, and train from that")
    parser.add_argument(
        "--features-dtype", choices=["exact", "float16"], help="of the numbers in it; default: exact, as they came"
    )
    add_pairs_option(parser, "--head", "of LensConfig")
    add_sam_option(parser, " (short for --head sam=NAME)")
    add_pairs_option(parser, "--training", "of LensTrainingArguments")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint, if there is one")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the checkpoints of an earlier run that is there"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where the head goes: training.output_dir")
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result | None:
    training = args.training | ({"output_dir": args.output} if args.output else {})
    if args.config is None and not (args.model and args.data and training.get("output_dir")):
        args.parser.error("give CONFIG.yaml, or all of --model, --data and --output")
    from lens_adapter.training.configuration import read_config
    from lens_adapter.training.run_folder import claimed, plan

    keys = ("model", "adapter", "data", "validation", "dtype", "features", "features_dtype", "resume", "overwrite")
    flags = {key: getattr(args, key) for key in keys}
    head = args.head | ({"sam": args.sam} if args.sam else {})
    config = read_config(args.config, {**flags, "head": head, "training": training})
    for key in ("data", "validation"):
        require_data(config.get(key))
    for key in ("model", "adapter"):
        require_name(f"--{key}", config.get(key))
    if config["model"] == BUILTIN and not config.get("adapter"):
        config["head"] = {"sam": BUILTIN, **_questions(), **config["head"]}
    output = config["training"]["output_dir"]
    read = [config.get(key) for key in ("model", "adapter", "data", "validation")]
    require_folder_for("--output", output, *read)
    require_files({"--json": args.json}, args.config, *read)
    start = plan(config)  # all this, before anything heavy is imported
    if Path(output).is_dir():
        with claimed(output):
            pass
    if start.finished is not None:
        return _result(output, start.finished, start.notes)
    from accelerate import PartialState

    from lens_adapter.training.run import run_training

    values = run_training(config, base_by_name)
    if not PartialState().is_main_process:
        return None
    return _result(output, values, [f"Wrote {output}"])


def _questions() -> dict[str, str]:
    """In words that the shipped model knows."""
    from lens_adapter import builtin

    return {"prompt_template": builtin.QUESTIONS["prompt_template"]}


def _result(output: str, values: Mapping[str, float], notes: Iterable[str]) -> Result:
    for text in notes:
        note(text)
    measured = figures(values)
    return Result(measured.text, {"output_dir": output, "validation": measured.data})
