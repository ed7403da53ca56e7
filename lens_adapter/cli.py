"""`lens-adapter`: demo, segment, train, evaluate, probe, app, env. Exit code 0, 1 (failed), 2 (usage)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens_adapter import __version__
from lens_adapter.errors import InputError, LensError, UnsupportedModelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; heavy imports wait until a command needs them."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (LensError, OSError) as error:
        print(f"lens-adapter {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


_TRAIN_EXAMPLE = """\
CONFIG.yaml:
    model: llava-hf/llava-1.5-7b-hf
    data: refcoco/train                  # a line of prompts.jsonl per example; see `lens-adapter probe --help`
    validation: refcoco/val
    dtype: bfloat16
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
        sample_grid_steps: 1000          # pictures of validation samples in lens-llava/samples
        decoder_tuning: full             # of the mask decoder; or lora, or frozen
        keypoint_dropout: 0.5            # share of samples that go without their keypoints

The same with flags:
    lens-adapter train --model llava-hf/llava-1.5-7b-hf --data refcoco/train -o lens-llava \\
        --head fusion=lite tap_layer=14 --training learning_rate=1e-4 max_steps=20000 bf16=true

A run that was killed goes on with:
    lens-adapter train CONFIG.yaml --resume
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lens-adapter", description="Segmentation for a frozen vision-language model: LENS heads as adapters."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="segment pictures with the models that ship with the package",
        description="Without arguments: three test scenes with three prompts each. Writes a contact sheet.",
    )
    demo.add_argument("--image", type=Path, help="a picture of your own (the built-in model knows only its world)")
    demo.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="what to find; may be repeated")
    demo.add_argument("--head", choices=["mirror", "lite"], default="lite", help="default: %(default)s")
    demo.add_argument("-o", "--output", type=_picture, default="lens-demo.png", help="default: %(default)s")
    demo.set_defaults(run=_demo, parser=demo)

    segment = commands.add_parser(
        "segment",
        help="segment one image with any model and head",
        description="Example: lens-adapter segment photo.jpg 'the dog on the left' --model llava-hf/llava-1.5-7b-hf "
        "--adapter org/lens-llava-1.5-7b -o out.png",
    )
    segment.add_argument("image", type=Path)
    segment.add_argument("prompts", nargs="+", metavar="PROMPT")
    segment.add_argument("--model", required=True, metavar="ID_OR_FOLDER", help="the frozen vision-language model")
    segment.add_argument("--adapter", required=True, metavar="ID_OR_FOLDER", help="the LENS head")
    _add_device_options(segment)
    segment.add_argument("-o", "--output", type=_picture, default="overlay.png", help="default: %(default)s")
    segment.set_defaults(run=_segment)

    train = commands.add_parser(
        "train",
        help="train a head for any model on a folder of labelled images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trains a LENS head and its mask decoder; the model itself stays frozen. Give a file, flags, or\n"
        "both: flags come first. Several devices: `accelerate launch -m lens_adapter train CONFIG.yaml`.",
        epilog=_TRAIN_EXAMPLE,
    )
    train.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="the training as a file, see below")
    train.add_argument("--model", metavar="ID_OR_FOLDER", help="the frozen vision-language model")
    train.add_argument("--adapter", metavar="ID_OR_FOLDER", help="start from this head; default: a new one")
    train.add_argument("--data", metavar="FOLDER", help="images/, masks/ and prompts.jsonl, as for `probe`")
    train.add_argument("--validation", metavar="FOLDER", help="the same, to evaluate on")
    train.add_argument("--dtype", metavar="TYPE", help="of the frozen model; default: as it was saved")
    train.add_argument("--head", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of LensConfig")
    train.add_argument(
        "--training", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of LensTrainingArguments"
    )
    train.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint, if there is one")
    train.add_argument("-o", "--output", metavar="FOLDER", help="where the head goes: training.output_dir")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="measure the shipped models on their test split",
        description="Prints every figure and, with --json, writes them; all are fractions.",
    )
    evaluate.add_argument("--builtin", action="store_true", required=True, help="the models that ship with the package")
    evaluate.add_argument("--scenes", type=_count, default=500, help="test scenes; default: %(default)s")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    evaluate.set_defaults(run=_evaluate)

    probe = commands.add_parser(
        "probe",
        help="find the layer to tap, without any training",
        description="Ranks the decoder layers and attention heads of a frozen model by how well the attention of the "
        "last token points at what a prompt names, and recommends the tap_layer of a new head. Prints, and draws layer "
        "by head: the pointing game (how often the hottest image token's centre lies in the mask) and the mass ratio "
        "(attention inside the mask, over that of an even spread: 1 means it does not know). "
        "Example: lens-adapter probe --model Qwen/Qwen2-VL-2B-Instruct --data folder -o layers.png",
        epilog="FOLDER holds images/, masks/ (PNG, one channel, not zero on the target) and prompts.jsonl with a line "
        'per example: {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}. Take some hundred '
        "examples of the kind that the head is for.",
    )
    probe.add_argument(
        "--model", required=True, metavar="ID_OR_FOLDER", help='the frozen model; "builtin": the shipped'
    )
    probe.add_argument("--data", type=Path, metavar="FOLDER", help="labelled images; the built-in model needs none")
    probe.add_argument("--template", metavar="TEXT", help="the question, with {prompt} in it; default: a new head's")
    probe.add_argument(
        "--scenes", type=_count, default=100, help="validation scenes for the built-in model; default: %(default)s"
    )
    _add_device_options(probe)
    probe.add_argument("-o", "--output", type=_picture, default="lens-probe.png", help="default: %(default)s")
    probe.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    probe.set_defaults(run=_probe)

    app = commands.add_parser(
        "app",
        help="open a web page: pictures, prompts, masks, chat",
        description="Serves a page where visitors segment pictures and chat with the frozen model. Needs gradio: "
        "pip install 'lens_adapter[app]'. Example: lens-adapter app --model llava-hf/llava-1.5-7b-hf --adapter "
        "org/lens-llava-1.5-7b --device cuda",
    )
    app.add_argument(
        "--model", default="builtin", metavar="ID_OR_FOLDER", help="the frozen model; default: the shipped"
    )
    app.add_argument("--adapter", metavar="ID_OR_FOLDER", help="the LENS head; default: the shipped lite one")
    _add_device_options(app)
    app.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines, too; default: %(default)s")
    app.add_argument("--port", type=_count, help="default: the first free one from 7860")
    app.add_argument("--share", action="store_true", help="also through a public link of gradio's")
    app.set_defaults(run=_app, parser=app)

    env = commands.add_parser("env", help="versions and devices, for bug reports")
    env.set_defaults(run=_env)
    return parser


def _add_device_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="e.g. cuda; default: %(default)s")
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    command.add_argument("--dtype", choices=dtypes, default="auto", help="of the frozen model; default: %(default)s")


def _picture(text: str) -> Path:
    """A file to write a picture to; said to be none before any work is done."""
    from PIL import Image

    path = Path(text)
    if path.suffix.lower() not in Image.registered_extensions():
        raise argparse.ArgumentTypeError(f"{text!r} must end like a picture, e.g. in .png or .jpg")
    return path


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _demo(args: argparse.Namespace) -> None:
    if (args.image is None) != (not args.prompt):
        args.parser.error("--image and --prompt go together")
    from lens_adapter.demo import run_demo

    run_demo(args.image, args.prompt, args.output, args.head)


def _segment(args: argparse.Namespace) -> None:
    from lens_adapter.vlm.inputs import load_image

    image = load_image(args.image)  # before anything large is loaded
    _check_device(args.device)
    adapter = _load_head(args.adapter)
    with adapter.attach(*_load_base(args.model, args.dtype, args.device)):
        out = adapter.segment(image, args.prompts)
    for prompt, score, mask in zip(out.prompts, out.scores.tolist(), out.masks, strict=True):
        print(f"{prompt}\tscore {score:.2f}\t{mask.float().mean().item():.1%} of the image")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    out.save(args.output)
    print(f"Wrote {args.output}")


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used here; try cpu. {_first_line(error)}") from error


def _load_base(name: Any, dtype: str, device: Any) -> tuple[Any, Any]:
    """The frozen model and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
    except ValueError as error:
        raise UnsupportedModelError(
            f"--model {name} is nothing that AutoModelForImageTextToText loads; name a vision-language model. "
            f"{_first_line(error)}"
        ) from error
    return model.to(device).eval(), AutoProcessor.from_pretrained(name)


def _load_head(name: Any) -> Any:
    """The LENS head, not attached."""
    from huggingface_hub.errors import HFValidationError

    from lens_adapter.adapter import LensAdapter

    try:
        return LensAdapter.from_pretrained(name)
    except HFValidationError as error:
        raise InputError(f"--adapter {name} is neither a folder nor a Hub repository. {error}") from error


def _train(args: argparse.Namespace) -> None:
    from lens_adapter.training.run import parse_pairs, read_config, run_training

    training = parse_pairs(args.training) | ({"output_dir": args.output} if args.output else {})
    flags = {key: getattr(args, key) for key in ("model", "adapter", "data", "validation", "dtype", "resume")}
    config = read_config(args.config, {**flags, "head": parse_pairs(args.head), "training": training})
    for name, value in run_training(config, _load_base).items():
        print(f"{name:<52} {value:.4f}")
    print(f"Wrote {config['training']['output_dir']}")


def _evaluate(args: argparse.Namespace) -> None:
    from lens_adapter.builtin.evaluation import evaluate_builtin

    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)  # better to fail now than after the work
    figures = evaluate_builtin(args.scenes)
    for name, value in figures.items():
        print(f"{name:<52} {value:.4f}")
    _write_json(figures, args.json)


def _probe(args: argparse.Namespace) -> None:
    from lens_adapter import builtin
    from lens_adapter.data.examples import Examples
    from lens_adapter.data.folder import read_folder
    from lens_adapter.probing import probe

    data = None if args.data is None else Examples(read_folder(args.data))  # before anything large is loaded
    _check_device(args.device)
    if args.model == "builtin":
        args.model = builtin.VLM
    for file in filter(None, (args.output, args.json)):
        file.parent.mkdir(parents=True, exist_ok=True)
    result = probe(
        *_load_base(args.model, args.dtype, args.device), data, prompt_template=args.template, scenes=args.scenes
    )
    print(result.summary())
    result.save(args.output)
    print(f"Wrote {args.output}")
    _write_json(result.to_dict(), args.json)


def _write_json(figures: dict[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
        print(f"Wrote {file}")


def _app(args: argparse.Namespace) -> None:
    if args.adapter is None and args.model != "builtin":
        args.parser.error("--model needs --adapter: a head that was trained for it")
    from lens_adapter import builtin

    try:
        from lens_adapter.app.page import build_page, launch
    except ModuleNotFoundError as error:
        raise LensError(f"The page needs {error.name}. Install it: pip install 'lens_adapter[app]'") from error
    _check_device(args.device)
    adapter = _load_head(args.adapter or builtin.HEADS["lite"])
    base = builtin.VLM if args.model == "builtin" else args.model
    with adapter.attach(*_load_base(base, args.dtype, args.device)):
        launch(build_page(adapter), host=args.host, port=args.port, share=args.share)


def _env(_: argparse.Namespace) -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    print(f"lens_adapter {__version__}\npython {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "torchvision", "transformers", "huggingface-hub", "safetensors", "peft", "segment-anything"):
        print(f"{name} {installed(name)}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"accelerator {device}\nthreads {torch.get_num_threads()}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
