"""What a command has to say: text for people, the same facts for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from lens_adapter.writing import write_text

STDOUT = "-"


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        text: for people; empty: nothing.
        data: for machines, ready for JSON.
        failure: why the command failed all the same, which makes its exit code 1; empty: it did not.
    """

    text: str
    data: Mapping[str, Any]
    failure: str = ""

    def report(self, file: str | None) -> None:
        """Print the text, and write the data to a file; `STDOUT`: print the data alone; None: the text alone."""
        document = json.dumps(self.data, indent=2, allow_nan=False)
        if file == STDOUT:
            say(document, sys.stdout)
            return
        if self.text:
            say(self.text, sys.stdout)
        if file is not None:
            if Path(file).exists() and not Path(file).is_file():  # a device, which is not to be replaced
                Path(file).write_text(document + "\n", encoding="utf-8")
            else:
                write_text(file, document + "\n")
            note(f"Wrote {file}")


def figures(values: Mapping[str, float]) -> Result:
    """Named numbers, one to a line; one that is not finite is null in JSON."""
    text = "\n".join(f"{name:<52} {value:.4f}" for name, value in values.items())
    return Result(text, {name: value if isfinite(value) else None for name, value in values.items()})


def note(text: str) -> None:
    """Tell people what goes on."""
    say(text, sys.stderr)


def say(text: str, stream: TextIO) -> None:
    """Print to a console, whatever letters it knows: those it does not come as escapes, as in \\u2026."""
    known = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(known, "backslashreplace").decode(known), file=stream)
