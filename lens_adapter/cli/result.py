"""What a command has to say: text for people, the same facts for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

STDOUT = "-"


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        text: for people; empty: nothing.
        data: for machines, ready for JSON.
    """

    text: str
    data: Mapping[str, Any]

    def report(self, file: str | None) -> None:
        """Print the text, and write the data to a file; `STDOUT`: print the data alone; None: the text alone."""
        document = json.dumps(self.data, indent=2, allow_nan=False)
        if file == STDOUT:
            print(document)
            return
        if self.text:
            print(self.text)
        if file is not None:
            Path(file).write_text(document + "\n", encoding="utf-8")
            note(f"Wrote {file}")


def figures(values: Mapping[str, float]) -> Result:
    """Named numbers, one to a line; one that is not finite is null in JSON."""
    text = "\n".join(f"{name:<52} {value:.4f}" for name, value in values.items())
    return Result(text, {name: value if isfinite(value) else None for name, value in values.items()})


def note(text: str) -> None:
    """Tell people what goes on."""
    print(text, file=sys.stderr)
