"""What commands have in common on the command line: how they are added, models, data, devices, files."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from lens_adapter.builtin.names import DEFAULT_HEAD, HEAD_NAMES, HEADS
from lens_adapter.cli.result import STDOUT, Result
from lens_adapter.errors import InputError, LensConfigError, brief, did_you_mean
from lens_adapter.sam.published import DEFAULT_SAM, PUBLISHED
from lens_adapter.sources import why_no_source

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
_INVALID_CHOICE = re.compile(r"invalid choice: '(?P<given>.*)' \(choose from (?P<choices>.*)\)", re.DOTALL)
BUILTIN = "builtin"  # as a model or a head: those that ship with the package
# Below the options of every command that reads labelled images.
_LABELLED = """

labelled images:
  PATH                     a folder with images/, masks/ (PNG, one channel, not zero on the target)
                           and prompts.jsonl, a line per example; null where nothing is named:
                           {"image": "a.jpg", "mask": "a.png", "prompt": "the dog on the left"}
                           {"image": "a.jpg", "mask": null, "prompt": "a boat"}
  PATH format=refer        the folder of the REFER data sets; dataset= (refcoco, refcoco+, refcocog,
                           refclef, grefcoco), split=, split_by=, images=
  PATH format=reason_seg   ReasonSeg, or the folder of a split; split=
  PATH format=coco         annotations as JSON; images= (required)
  PATH format=label_maps   a folder of PNGs; images=, classes= (required), first=, ignore=
  PATH format=lisa         LISA's `dataset` folder; name= (required), split=, classes=
  PATH format=hub          a repository of the Hub; split= (required), name=, revision=, columns=
  All take on_error=skip: what is broken is left out with a warning, instead of an error."""


class Parser(argparse.ArgumentParser):
    """Asks "Did you mean ...?" where one of several words, or an option, was mistyped."""

    def error(self, message: str) -> NoReturn:
        if wrong := _INVALID_CHOICE.search(message):
            choices = [choice.strip(" '") for choice in wrong["choices"].split(",")]
            message += f".{did_you_mean(wrong['given'], choices)}"
        super().error(message)

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """A usage error about words that no option of this command takes."""
        flags = [word.partition("=")[0] for word in words if word.startswith("-")]
        known = re.findall(r"--[\w-]+", self.format_usage())
        self.error(f"unrecognized arguments: {' '.join(words)}.{did_you_mean(flags, known)}")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], Result | None],
    *,
    help: str,
    description: str,
    examples: str,
) -> Parser:
    """A parser for one command.

    Args:
        run: what the command does; its result is printed.
        help: its line in the list of commands.
        description: what it does and prints; paragraphs are separated by blank lines.
        examples: command lines, and what else should stand below the options as it is.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description="\n\n".join(textwrap.fill(part, 80) for part in textwrap.dedent(description).strip().split("\n\n")),
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser, json=None)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--adapter`; `pair_of` reads them."""
    parser.add_argument(
        "--model",
        metavar="ID_OR_FOLDER",
        help=f'the frozen model; "{BUILTIN}", also with --adapter {BUILTIN}: the one that ships',
    )
    add_adapter_option(parser)


def add_adapter_option(parser: argparse.ArgumentParser) -> None:
    others = " and ".join(f"{BUILTIN}-{name}" for name in HEADS if name != DEFAULT_HEAD)
    parser.add_argument(
        "--adapter",
        metavar="ID_OR_FOLDER",
        help=f'the LENS head that was trained for it; "{BUILTIN}" (default with --model {BUILTIN}): '
        f"{BUILTIN}-{DEFAULT_HEAD}, which ships as do {others}",
    )


def add_sam_option(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    size = PUBLISHED[DEFAULT_SAM].megabytes
    parser.add_argument(
        "--sam",
        metavar="NAME",
        help=f"the mask decoder{purpose}: vit_b, sam2.1-small, ..., any folder or Hub repository of a SAM of "
        f'transformers; default: {DEFAULT_SAM} ({size} MB), or "{BUILTIN}" with --model {BUILTIN}',
    )


def sam_of(args: argparse.Namespace) -> dict[str, Any]:
    """The field `sam` of a new head, where it is not the default."""
    sam = args.sam or (BUILTIN if args.model == BUILTIN else None)
    return {"sam": sam} if sam else {}


def is_builtin_head(name: str | None) -> bool:
    """Whether it names a head that ships."""
    return name in HEAD_NAMES


def pair_of(args: argparse.Namespace) -> tuple[str, str]:
    """Names of the model and of its head; a usage error where one is missing."""
    if args.model is None and is_builtin_head(args.adapter):
        return BUILTIN, args.adapter
    if args.model is None and args.adapter is None:
        args.parser.error("the following arguments are required: --model")
    if args.model is None:
        args.parser.error("--adapter needs --model: the frozen model that the head was trained for")
    if args.adapter is None and args.model != BUILTIN:
        args.parser.error("--model needs --adapter: a head that was trained for it")
    return args.model, args.adapter or BUILTIN


def add_device_options(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument(
        "--device",
        help=f"e.g. cuda:1, cpu, or auto: over all there are; default: cuda where there is one{more}, else cpu",
    )
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument(
        "--dtype", choices=dtypes, default="auto", help="of the frozen model; default: %(default)s, as it was saved"
    )


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mask-threshold", type=float, metavar="P", help="default: the head's own")
    parser.add_argument("--score-threshold", type=float, metavar="S", help="decides found; default: the head's own")


def add_data_option(parser: argparse.ArgumentParser, flag: str, purpose: str) -> None:
    parser.add_argument(
        flag,
        nargs="+",
        action=_Source,
        metavar=("PATH", "KEY=VALUE"),
        help=f"labelled images {purpose}. PATH is a folder with images/, masks/ and prompts.jsonl, or has "
        "format=refer, reason_seg, coco, label_maps, lisa or hub beside it, and the options of that format: see the "
        "end",
    )
    _explain_labelled(parser)


def _explain_labelled(parser: argparse.ArgumentParser) -> None:
    if _LABELLED not in (text := parser.epilog or ""):
        parser.epilog = text + _LABELLED


def add_data_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """DATA [KEY=VALUE ...] in the first place, as `add_data_option` takes it; None where it is not given."""
    parser.add_argument("data", nargs="*", action=_Source, default=None, metavar="DATA", help=help)
    _explain_labelled(parser)


def add_template_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="the question, with {prompt} in it; default: prompt_template of LensConfig, or with --model "
        f"{BUILTIN} the question that it was taught",
    )


def add_pairs_option(parser: argparse.ArgumentParser, flag: str, help: str) -> None:
    parser.add_argument(flag, nargs="+", action=_Pairs, default={}, metavar="KEY=VALUE", help=help)


def add_picture_option(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=picture,
        default=default,
        metavar="FILE",
        help="where the picture goes; default: %(default)s",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=_json_file,
        metavar="FILE",
        help="write the result as JSON, too; without FILE: to stdout, in the place of the text",
    )


def picture(text: str) -> Path:
    """A file to write a picture to; said to be none before any work is done."""
    from lens_adapter.pictures.saving import picture_format

    try:
        picture_format(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def _json_file(text: str) -> str:
    """A file to write JSON to, and not the next argument, which stands behind a bare `--json`."""
    if Path(text).suffix.lower() in {*_picture_suffixes(), ".yaml", ".yml"}:
        raise argparse.ArgumentTypeError(f"{text!r} is no place for JSON; without a file of its own, put --json last")
    return text


def _picture_suffixes() -> Iterable[str]:
    from PIL import Image

    return Image.registered_extensions()


def count(text: str) -> int:
    """A whole number of at least 1, and below 2**31."""
    if not (text.isdecimal() and len(text) <= 10 and 1 <= int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} must be a whole number of at least 1, below 2147483648")
    return int(text)


def port(text: str) -> int:
    """The number of a port."""
    if not (text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} must be a port, from 1 to 65535, or 0 for any that is free")
    return int(text)


def require_data(source: Any) -> None:
    """Refuse a plain folder that is none, before anything heavy is imported; other formats are read later.

    Args:
        source: as `DataSource.of` takes it; None: no data.

    Raises:
        InputError: says what such a folder holds.
    """
    given = source if isinstance(source, Mapping) else {"path": source}
    path = given.get("path")
    plain = given.get("format", "folder") == "folder" and given.keys() <= {"path", "format", "on_error"}
    if plain and isinstance(path, str | Path) and not Path(path, "prompts.jsonl").is_file():
        raise InputError(
            f"There is no {str(Path(path, 'prompts.jsonl'))!r}. A folder of labelled images holds images/, masks/ and "
            "prompts.jsonl; other data need format=..., see `lens-adapter evaluate --help`."
        )


def require_name(flag: str, name: Any) -> None:
    """Refuse what is neither a folder nor can be a repository of the Hub, before anything heavy is imported.

    Args:
        flag: that named it.
        name: of a model or a head; None: none.

    Raises:
        InputError: names it.
    """
    if isinstance(name, str) and name != BUILTIN and (why := why_no_source(name)):
        raise InputError(f"{flag} {brief(name, 300)} {why}")


def require_prompts(prompts: Iterable[str]) -> None:
    """Refuse prompts that say nothing, before anything heavy is imported.

    Raises:
        InputError: there is one.
    """
    if blank := [prompt for prompt in prompts if not prompt.strip()]:
        raise InputError(f"A prompt must say what to find; got the empty text {blank[0]!r}.")


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """["fusion=lite", "tap_layer=14"] -> their dict; values are read as YAML.

    Raises:
        LensConfigError: no pair, or no YAML.
    """
    import yaml

    split = [pair.partition("=") for pair in pairs]
    if wrong := [key or equals for key, equals, _ in split if not key or not equals]:
        raise LensConfigError(f"Expected KEY=VALUE, got {wrong}.")
    try:
        return {key: yaml.safe_load(value) for key, _, value in split}
    except yaml.YAMLError as error:
        raise LensConfigError(f"A value in {list(pairs)} is no YAML: {error}") from error


class _Pairs(argparse.Action):
    """KEY=VALUE ... -> a dict; given again, it goes on."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(args, self.dest, {**getattr(args, self.dest), **_pairs_of(values, parser, option)})


class _Source(argparse.Action):
    """PATH KEY=VALUE ... -> what `DataSource.of` takes."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values:  # none are given where they need not be
            setattr(args, self.dest, {"path": values[0], **_pairs_of(values[1:], parser, option or "DATA")})


def _pairs_of(values: Sequence[str], parser: argparse.ArgumentParser, option: str | None) -> dict[str, Any]:
    try:
        return parse_pairs(values)
    except LensConfigError as error:
        parser.error(f"argument {option}: {error}")
