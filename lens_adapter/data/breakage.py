"""Broken records: one policy for the readers of files and for those who go through the records.

`on_error="raise"` stops at a broken record; "skip" warns, counts it and goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from transformers.utils import logging

from lens_adapter.data.records import Record
from lens_adapter.errors import BrokenRecordError, InputError, brief

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
    file: str | Path, entries: Iterable[tuple[int, Entry]], build: Callable[[Entry], dict[str, Any]], on_error: OnError
) -> list[Record]:
    """Make a record of each entry of `file`.

    A prompt that says nothing is broken like a record: with "skip" it is left out, and its record keeps the others.

    Args:
        file: for messages.
        entries: each with its position in the file, from 0.
        build: makes of one the fields of its record; whatever it raises breaks this record alone.
        on_error: what to do about what is broken.

    Raises:
        BrokenRecordError: something is broken, and `on_error` is "raise".
    """
    records, breakage = [], Breakage(on_error)
    for index, entry in entries:
        dumb: dict[int, Any] = {}
        try:
            fields = build(entry)
            if on_error == "skip":
                fields, dumb = _outspoken(fields)
            if not fields["prompts"]:
                raise InputError("It has no prompt.")
            records.append(Record(**fields, file=str(file), index=index))
        except Exception as error:  # what others wrote breaks in whatever way comes first
            breakage.meet(BrokenRecordError(reason(error), str(file), index), error)
            continue
        for place, prompt in dumb.items():
            said = f"Its prompt {place} (counted from 0) says nothing: {brief(prompt)}. The others are kept."
            breakage.meet(BrokenRecordError(said, str(file), index))
    return records


def _outspoken(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """The fields of a record with those of its prompts that say something, and {position: prompt} of the others."""
    prompts, regions = fields["prompts"], fields["regions"]
    dumb = {k: prompt for k, prompt in enumerate(prompts) if not isinstance(prompt, str) or not prompt.strip()}
    if len(dumb) == len(prompts) or len(prompts) != len(regions):
        return fields, {}  # broken as a whole, as `Record` will say
    kept = [k for k in range(len(prompts)) if k not in dumb]
    return fields | {"prompts": [prompts[k] for k in kept], "regions": [regions[k] for k in kept]}, dumb


def reason(error: Exception) -> str:
    """Why an entry is broken, in words."""
    if isinstance(error, KeyError):
        return f"It has no {error}."
    if isinstance(error, InputError):
        return str(error)
    return f"It is malformed: {str(error)[:300] or type(error).__name__}."
