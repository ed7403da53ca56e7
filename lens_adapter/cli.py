"""`lens-adapter`: demo, segment, train, evaluate, probe, push, app, env. Exit code 0, 1 (failed), 2 (usage)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lens_adapter import __version__
from lens_adapter.errors import InputError, LensConfigError, LensError, UnsupportedModelError, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; heavy imports wait until a command needs them."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except Exception as error:
        if not isinstance(error, (LensError, OSError, *_http_errors())):
            raise
        print(f"lens-adapter {args.command}: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _http_errors() -> tuple[type[Exception], ...]:
    from lens_adapter.publishing import HTTP_ERRORS

    return HTTP_ERRORS


_TRAIN_EXAMPLE = """\
CONFIG.yaml:
    model: llava-hf/llava-1.5-7b-hf
    data: refcoco/train                  # images/, masks/ and prompts.jsonl, see `lens-adapter probe --help`; or
    validation:                          # one of the formats of lens_adapter.data.formats, with its options
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

A run that was killed goes on with:
    lens-adapter train CONFIG.yaml --resume

features:
    The model and SAM's image encoder are frozen: with `features`, each reads every example once, what it says goes to
    that folder, and the head trains from there, without the model in memory. A folder that is there is checked and
    used, one that is not finished is gone on with, one of another model, head or data is refused. It takes megabytes
    per example and per picture (7B: see docs/cached-features.md); `features_dtype: float16` halves what is float32.
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
    _add_data_option(train, "--data", "to learn from")
    _add_data_option(train, "--validation", "to evaluate on, and to calibrate scores if some prompts have no target")
    train.add_argument("--dtype", metavar="TYPE", help="of the frozen model; default: as it was saved")
    train.add_argument("--features", metavar="FOLDER", help="keep here what the frozen parts say, and train from that")
    train.add_argument(
        "--features-dtype", choices=["exact", "float16"], help="of the numbers in it; default: exact, as they came"
    )
    train.add_argument("--head", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of LensConfig")
    train.add_argument(
        "--training", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of LensTrainingArguments"
    )
    train.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint, if there is one")
    train.add_argument("-o", "--output", metavar="FOLDER", help="where the head goes: training.output_dir")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="measure a head on labelled images, or the shipped models on their test split",
        description="gIoU, cIoU, precision, keypoints on the target, what is refused, how well scores know it: each "
        "with its interval, for all prompts and by subset. Several devices: `accelerate launch -m lens_adapter "
        "evaluate ...`. With --builtin: figures as NAME VALUE, all fractions.",
        epilog="Example: lens-adapter evaluate --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b "
        "--data refer_seg format=refer dataset=refcoco+ split=testA --json testA.json --gallery testA.html",
    )
    evaluate.add_argument("--model", metavar="ID_OR_FOLDER", help="the frozen vision-language model")
    evaluate.add_argument("--adapter", metavar="ID_OR_FOLDER", help="the LENS head")
    _add_data_option(evaluate, "--data", "to measure on")
    evaluate.add_argument("--batch-size", type=_count, default=8, help="prompts at a time; default: %(default)s")
    evaluate.add_argument("--mask-threshold", type=float, metavar="P", help="default: the head's own")
    evaluate.add_argument("--score-threshold", type=float, metavar="S", help="default: the head's own")
    _add_device_options(evaluate, default=None, said="cpu, or each process's own under accelerate launch")
    evaluate.add_argument("--gallery", type=Path, metavar="FILE.html", help="a page of the best, median and worst")
    evaluate.add_argument("--builtin", action="store_true", help="the models that ship with the package, instead")
    evaluate.add_argument("--scenes", type=_count, default=500, help="of --builtin; default: %(default)s")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    evaluate.set_defaults(run=_evaluate, parser=evaluate)

    probe = commands.add_parser(
        "probe",
        help="find the layer to tap, without any training",
        description="Ranks the decoder layers and attention heads of a frozen model by how well the attention of the "
        "last token points at what a prompt names, and recommends the tap_layer of a new head. Prints, and draws layer "
        "by head: the pointing game (how often the hottest image token's centre lies in the mask) and the mass ratio "
        "(attention inside the mask, over that of an even spread: 1 means it does not know). "
        "Example: lens-adapter probe --model Qwen/Qwen2-VL-2B-Instruct --data folder -o layers.png",
        epilog="A folder holds images/, masks/ (PNG, one channel, not zero on the target) and prompts.jsonl with a "
        'line per example: {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}. Take some hundred '
        "examples of the kind that the head is for.",
    )
    probe.add_argument(
        "--model", required=True, metavar="ID_OR_FOLDER", help='the frozen model; "builtin": the shipped'
    )
    _add_data_option(probe, "--data", "to look at; the built-in model needs none")
    probe.add_argument("--template", metavar="TEXT", help="the question, with {prompt} in it; default: a new head's")
    probe.add_argument(
        "--scenes", type=_count, default=100, help="validation scenes for the built-in model; default: %(default)s"
    )
    _add_device_options(probe)
    probe.add_argument("-o", "--output", type=_picture, default="lens-probe.png", help="default: %(default)s")
    probe.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    probe.set_defaults(run=_probe)

    push = commands.add_parser(
        "push",
        help="publish a trained head on the Hugging Face Hub",
        description="Checks a head's folder and uploads it in one commit: config, weights, model card and results. "
        "Other files of a training (optimizer states, logs) stay at home. Log in first with `hf auth login`, or set "
        "HF_TOKEN. Example: lens-adapter push lens-llava me/lens-llava --results refcoco.json --license apache-2.0",
    )
    push.add_argument("folder", type=Path, metavar="FOLDER", help="what `train` wrote, or LensAdapter.save_pretrained")
    push.add_argument("repo_id", metavar="REPO_ID", help="owner/name; made if there is none")
    push.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="what `evaluate --json` wrote about these very weights: kept beside them, and shown in the card",
    )
    push.add_argument("--license", metavar="ID", help="for the card, e.g. apache-2.0; default: none is stated")
    push.add_argument("--private", action="store_true", help="make a private repository, if it has to be made")
    push.add_argument("--revision", metavar="BRANCH", help="default: main")
    push.add_argument("--token", metavar="TOKEN", help="default: that of `hf auth login`, or HF_TOKEN")
    push.add_argument("--create-pr", action="store_true", help="propose the upload as a pull request")
    push.add_argument("--message", metavar="TEXT", default="Upload LENS head", help="of the commit")
    push.set_defaults(run=_push)

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


def _add_data_option(command: argparse.ArgumentParser, flag: str, purpose: str) -> None:
    command.add_argument(
        flag,
        nargs="+",
        metavar=("PATH", "KEY=VALUE"),
        help=f"labelled images {purpose}: a folder with images/, masks/ and prompts.jsonl, or any path with format="
        "refer, reason_seg, coco, label_maps, lisa or hub, and the options of that format",
    )


def _add_device_options(
    command: argparse.ArgumentParser, default: str | None = "cpu", said: str = "%(default)s"
) -> None:
    command.add_argument("--device", default=default, help=f"e.g. cuda; default: {said}")
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
    with _load_head(args.adapter).attach(*_load_base(args.model, args.dtype, args.device)) as adapter:
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
    from lens_adapter.training.run import read_config, run_training

    training = parse_pairs(args.training) | ({"output_dir": args.output} if args.output else {})
    keys = ("model", "adapter", "dtype", "features", "features_dtype", "resume")
    flags = {key: getattr(args, key) for key in keys}
    flags |= {key: _source(getattr(args, key)) for key in ("data", "validation")}
    config = read_config(args.config, {**flags, "head": parse_pairs(args.head), "training": training})
    for name, value in run_training(config, _load_base).items():
        print(f"{name:<52} {value:.4f}")
    print(f"Wrote {config['training']['output_dir']}")


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """["fusion=lite", "tap_layer=14"] -> their dict; values are read as YAML."""
    import yaml

    split = [pair.partition("=") for pair in pairs]
    if wrong := [key for key, equals, _ in split if not key or not equals]:
        raise LensConfigError(f"Expected KEY=VALUE, got {wrong}.")
    try:
        return {key: yaml.safe_load(value) for key, _, value in split}
    except yaml.YAMLError as error:
        raise LensConfigError(f"A value in {list(pairs)} is no YAML: {error}") from error


def _source(given: list[str] | None) -> dict[str, Any] | None:
    """["refer_seg", "format=refer", "split=val"] -> what `DataSource.of` takes."""
    return {"path": given[0], **parse_pairs(given[1:])} if given else None


def _evaluate(args: argparse.Namespace) -> None:
    needed = [args.model, args.adapter, args.data]
    if any([*needed, args.gallery]) if args.builtin else not all(needed):
        args.parser.error("give --builtin alone, or all of --model, --adapter and --data")
    for file in filter(None, (args.json, args.gallery)):
        file.parent.mkdir(parents=True, exist_ok=True)  # better to fail now than after the work
    if not args.builtin:
        return _evaluate_head(args)
    from lens_adapter.builtin.evaluation import evaluate_builtin

    figures = evaluate_builtin(args.scenes)
    for name, value in figures.items():
        print(f"{name:<52} {value:.4f}")
    _write_json(figures, args.json)


def _evaluate_head(args: argparse.Namespace) -> None:
    from lens_adapter.data.formats import DataSource
    from lens_adapter.evaluation import evaluate, this_process
    from lens_adapter.evaluation.gallery import save_gallery

    source = DataSource.of(_source(args.data) or {})
    examples = source.examples()  # before anything large is loaded
    if args.device:
        _check_device(args.device)
    process = this_process(args.device)
    device = args.device or (process.device if process else "cpu")
    thresholds = {"mask_threshold": args.mask_threshold, "score_threshold": args.score_threshold}
    with _load_head(args.adapter).attach(*_load_base(args.model, args.dtype, device)) as adapter:
        result = evaluate(adapter, examples, dataset=source.describe(), batch_size=args.batch_size, **thresholds)
        if process and not process.is_main_process:
            return
        print(result.to_markdown())
        if args.gallery:
            save_gallery(args.gallery, result, adapter, examples)
            print(f"Wrote {args.gallery}")
    _write_json(result.to_dict(), args.json)


def _probe(args: argparse.Namespace) -> None:
    from lens_adapter import builtin
    from lens_adapter.data.formats import DataSource
    from lens_adapter.probing import probe

    source = _source(args.data)
    data = DataSource.of(source).examples() if source else None  # before anything large is loaded
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


def _push(args: argparse.Namespace) -> None:
    from lens_adapter.adapter import LensAdapter
    from lens_adapter.card import is_hub_id
    from lens_adapter.publishing import files_to_publish, publish
    from lens_adapter.results import RESULTS_FILE, read_record, save_results

    records = [read_record(file) for file in args.results]
    kept = files_to_publish(args.folder)
    adapter = LensAdapter.from_pretrained(args.folder, local_files_only=True)  # complains about what does not fit
    if records:
        save_results(args.folder, records)
    commit = publish(
        args.folder,
        args.repo_id,
        commit_message=args.message,
        revision=args.revision,
        private=args.private or None,
        token=args.token,
        create_pr=args.create_pr,
        license=args.license,
    )
    base = adapter.config.base_model_name_or_path
    if not is_hub_id(base):
        print(f"Nobody else can find its base: base_model_name_or_path in config.json is {base!r}, no name of the Hub.")
    if left := sorted({path.name for path in args.folder.iterdir()} - {*kept, RESULTS_FILE}):
        print(f"Not part of a head, not uploaded: {', '.join(left)}")
    print(f"Published at {commit.pr_url or commit.repo_url}")


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
