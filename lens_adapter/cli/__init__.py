"""`lens-adapter`: demo, segment, annotate, fit, train, evaluate, probe, push, app, serve, env.

A room per command: it adds its parser and runs it. What is heavy to import waits until a command runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING

from lens_adapter import __version__

if TYPE_CHECKING:
    from lens_adapter.cli.arguments import Parser

INTERRUPTED = 130  # the exit code, as of any program that Ctrl-C ends
_EPILOG = """\
The first thing to try, offline, with the models that ship with the package:
  lens-adapter demo

`lens-adapter COMMAND --help` says what a command does, with examples. Results go
to stdout (for machines with --json), progress and notes to stderr. Exit code: 0,
1 (it failed; stderr says why), 2 (the command line was not understood), 130
(interrupted).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 1 where it failed for a reason that a user can do something about, said in one line; or
        `INTERRUPTED`. A command line that is not understood ends the process with 2; any other error is ours, and is
        raised.
    """
    try:
        return _run(arguments)
    except BaseException as error:
        if not _was_interrupted(error):
            raise
        print("lens-adapter: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        if arguments is None:  # a process of its own, which is ending: a second Ctrl-C would only spoil that
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(arguments: Sequence[str] | None) -> int:
    from lens_adapter.cli.result import say
    from lens_adapter.errors import LensError, one_line

    args, unknown = _parser().parse_known_args(arguments)
    if unknown:
        args.parser.refuse_unknown(unknown)
    try:
        with redirect_stdout(sys.stderr):  # what libraries print meanwhile is no result
            result = args.run(args)
        if result is not None:
            result.report(args.json)
            if result.failure:
                say(f"lens-adapter {args.command}: {result.failure}", sys.stderr)
                return 1
    except Exception as error:
        if _was_interrupted(error):
            raise
        if not isinstance(error, LensError | OSError) and not isinstance(error, _foreseen()):
            raise
        say(f"lens-adapter {args.command}: {one_line(error)}", sys.stderr)
        return 1
    return 0


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what a library made of that."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _parser() -> Parser:
    # Here, where an interrupt is met, and not above.
    from lens_adapter.cli import annotate, app, demo, env, evaluate, fit, probe, push, segment, serve, train
    from lens_adapter.cli.arguments import Parser

    parser = Parser(
        prog="lens-adapter",
        description="Segmentation for a frozen vision-language model: LENS heads as adapters.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (demo, segment, annotate, fit, train, evaluate, probe, push, app, serve, env):
        room.add_to(commands)
    return parser


def _foreseen() -> tuple[type[Exception], ...]:
    """What else a user can do something about."""
    import torch

    from lens_adapter.hub.publishing import HTTP_ERRORS

    return (torch.OutOfMemoryError, *HTTP_ERRORS)
