"""Broken records: one policy for the readers of files and for those who go through the records.

`on_error="raise"` stops at a broken record; "skip" warns, counts it and goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from transformers.utils import logging

from lens_adapter.data.records import Record
from lens_adapter.errors import BrokenRecordError, InputError

logger = logging.get_logger(__name__)

OnError = Literal["raise", "skip"]
Entry = TypeVar("Entry")


class Breakage:
    """What is done about broken records: stop at the first, or warn, take note and go on.

    Attributes:
        errors: of those skipped so far, in the order they were met.
    """

    def __init__(self, on_error: OnError):
        if on_error not in ("raise", "skip"):
            raise InputError(f'on_error must be "raise" or "skip", got {on_error!r}.')
        self.on_error = on_error
        self.errors: list[InputError] = []

    def meet(self, error: InputError, cause: Exception | None = None) -> None:
        """Raise `error`, or take note of it and warn."""
        if self.on_error == "raise":
            raise error from (cause or error.__cause__)
        self.errors.append(error)
        logger.warning("Skipped a broken record, number %d so far: %s", len(self.errors), error)


def collect(
    file: str | Path, entries: Iterable[tuple[int, Entry]], build: Callable[[Entry], Record], on_error: OnError
) -> list[Record]:
    """Make a record of each entry of `file`.

    Args:
        file: for messages.
        entries: each with its position in the file, from 0.
        build: makes the record of one.
        on_error: what to do where `build` raises.

    Raises:
        BrokenRecordError: `build` raised, and `on_error` is "raise".
    """
    records, breakage = [], Breakage(on_error)
    for index, entry in entries:
        try:
            records.append(replace(build(entry), file=str(file), index=index))
        except (InputError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            breakage.meet(BrokenRecordError(_reason(error), str(file), index), error)
    return records


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"It has no {error}."
    return str(error) if isinstance(error, InputError) else f"It is malformed: {error}."
