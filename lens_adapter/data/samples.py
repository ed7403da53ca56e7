"""Records made, taken apart and loaded, with one policy for broken ones.

`on_error="raise"` stops at a broken record; "skip" warns, counts and goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from transformers.utils import logging

from lens_adapter.data.records import Record, Sample
from lens_adapter.errors import BrokenRecordError, InputError

logger = logging.get_logger(__name__)

OnError = Literal["raise", "skip"]
Entry = TypeVar("Entry")


class Breakage:
    """What is done about broken records: stop at the first, or warn, count and go on."""

    def __init__(self, on_error: OnError):
        if on_error not in ("raise", "skip"):
            raise InputError(f'on_error must be "raise" or "skip", got {on_error!r}.')
        self.on_error = on_error
        self.count = 0

    def meet(self, error: InputError, cause: Exception | None = None) -> None:
        """Raise `error`, or take note of it."""
        if self.on_error == "raise":
            raise error from (cause or error.__cause__)
        self.count += 1
        logger.warning("Skipped a broken record, number %d so far: %s", self.count, error)


class Samples:
    """Records as samples, loaded when asked for: for a torch DataLoader, or to go through once.

    Records without prompts are passed over, and with `on_error="skip"` so are broken ones, each with a warning and an
    entry in `broken`. Passed over by `[index]` means: the next sample stands in; by iteration: there is one less.

    Attributes:
        broken: the errors met so far, by position.
    """

    def __init__(self, records: Sequence[Record], on_error: OnError = "raise"):
        self.records = records
        self.broken: dict[int, InputError] = {}
        self._breakage = Breakage(on_error)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} records; got the index {index}.")
        for step in range(len(self)):
            sample = self.get((index + step) % len(self))
            if sample is not None:
                return sample
        raise InputError(f"None of the {len(self)} records can be used; {len(self.broken)} are broken.")

    def __iter__(self) -> Iterator[Sample]:
        return (sample for sample in map(self.get, range(len(self))) if sample is not None)

    def get(self, index: int) -> Sample | None:
        """The sample of the record at `index`, from 0; None where it is passed over."""
        if index in self.broken:
            return None
        try:
            record = self.records[index]
            return record.load() if record.prompts else None
        except InputError as error:
            self._breakage.meet(error)
            self.broken[index] = error
            return None


def collect(
    file: str | Path, entries: Iterable[tuple[int, Entry]], build: Callable[[Entry], Record], on_error: OnError
) -> list[Record]:
    """The record that `build` makes of each entry of `file`, given with its position.

    Raises:
        BrokenRecordError: `build` raised over an entry, and `on_error` is "raise".
    """
    records, breakage = [], Breakage(on_error)
    for index, entry in entries:
        try:
            records.append(replace(build(entry), file=str(file), index=index))
        except (InputError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            breakage.meet(BrokenRecordError(_reason(error), str(file), index), error)
    return records


def one_per_prompt(records: Sequence[Record], on_error: OnError = "raise") -> list[Record]:
    """Records of one prompt each. Reads what must be read to know the prompts: label maps, but no image."""
    singles, breakage = [], Breakage(on_error)
    for index in range(len(records)):
        try:
            record = records[index]
        except InputError as error:
            breakage.meet(error)
            continue
        several = len(record.prompts) > 1
        for k, (prompt, region) in enumerate(zip(record.prompts, record.regions, strict=True)):
            name = f"{record.id}#{k}" if several else record.id
            singles.append(replace(record, prompts=[prompt], regions=[region], id=name))
    return singles


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"It has no {error}."
    return str(error) if isinstance(error, InputError) else f"It is malformed: {error}."
