"""Lists of pictures: JSONL, CSV and Parquet, read line by line or batch by batch, however long they are.

    {"image": "a.jpg", "prompt": "the dog on the left"}
    {"image": "/data/b.png", "prompts": ["a cup", "a plate"]}

`image` is a path (relative ones count from the list's folder; `..` and absolute ones may be given, as the list is the
user's own), a URI of `file:` or `data:`, or, in Parquet, a file's bytes, or `{"bytes": ..., "path": ...}` as the
library datasets writes it. `prompt` is a text; `prompts` a list, in CSV as JSON. Other columns are left alone. A row
that cannot be used is a task with an error.
"""

from __future__ import annotations

import csv
import hashlib
import json
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pyarrow import parquet

from lens_adapter.annotation.tasks import Task, Tasks, task_of
from lens_adapter.data.files import json_line
from lens_adapter.errors import InputError, brief

_STRIDE = 256  # of so many rows the first one's place in the file is kept
_LONGEST_LINE = 256 * 2**20  # bytes; what is longer is cut off, and so broken
_ROWS_AT_A_TIME = 32  # of Parquet, where a row may hold a picture's bytes
_FOOTER = 8  # the last bytes of a Parquet file: the size of what stands before them, and "PAR1"


class _Lines:
    """Lines of a binary file as text, from where it stands. Bytes that are no UTF-8 become halves of letters.

    Args:
        file: opened.
        digest: is told every byte.
        number: of the lines before the place where the file stands.

    Attributes:
        offset: where the next line begins.
        number: of the last line that was read, counted from 1, as editors do.
    """

    def __init__(self, file: IO[bytes], digest: Any = None, number: int = 0):
        self._file, self._digest = file, digest
        self.offset, self.number = file.tell(), number

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._taken()
        if not raw:
            raise StopIteration
        rest = raw
        while len(rest) == _LONGEST_LINE and not rest.endswith(b"\n"):
            rest = self._taken()
        self.number += 1
        return raw.decode("utf-8", "surrogateescape")

    def _taken(self) -> bytes:
        raw = self._file.readline(_LONGEST_LINE)
        self.offset += len(raw)
        if self._digest is not None:
            self._digest.update(raw)
        return raw


class LineTasks(Tasks):
    """A list that is a text file, one entry after the other."""

    def __init__(self, path: Path):
        self.name, self._path = str(path), path
        digest, self._count = hashlib.sha256(), 0
        self._offsets, self._numbers = array("Q"), array("Q")  # where a stride begins, and how many lines are before it
        try:
            with path.open("rb") as file:
                lines = _Lines(file, digest)
                self._begin(lines)
                entries, place = self._entries(lines), (lines.offset, lines.number)
                for _ in entries:
                    if self._count % _STRIDE == 0:
                        self._offsets.append(place[0])
                        self._numbers.append(place[1])
                    self._count, place = self._count + 1, (lines.offset, lines.number)
        except OSError as error:
            raise InputError(f"The list {brief(self.name, 300)} cannot be read: {error}.") from error
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Iterator[Task]:
        if start >= min(stop, self._count):
            return
        with self._path.open("rb") as file:
            file.seek(self._offsets[start // _STRIDE])
            index = start - start % _STRIDE
            lines = _Lines(file, number=self._numbers[start // _STRIDE])
            for entry in self._entries(lines):
                if index >= stop:
                    return
                if index >= start:
                    yield self._task(entry, f"{self._path.name}#{lines.number}")
                index += 1

    def _task(self, entry: Any, name: str) -> Task:
        try:
            return task_of(self._cells(entry), name, self._path.parent)
        except InputError as error:
            return Task(name, None, (), str(error))

    def _begin(self, lines: _Lines) -> None:
        """Read what stands before the first entry."""

    @abstractmethod
    def _entries(self, lines: _Lines) -> Iterator[Any]:
        """Entries as they stand there."""

    @abstractmethod
    def _cells(self, entry: Any) -> dict[str, Any]:
        """What an entry says, by column."""


class JsonlTasks(LineTasks):
    """A JSON object per line; empty lines count for nothing."""

    def _entries(self, lines: _Lines) -> Iterator[str]:
        return (line for line in lines if line.strip("\ufeff \t\r\n"))

    def _cells(self, entry: str) -> dict[str, Any]:
        found = json_line(entry.lstrip("\ufeff"))
        if not isinstance(found, dict):
            raise InputError(f"Expected a JSON object, got {brief(entry)}.")
        return found


class CsvTasks(LineTasks):
    """Rows of values between commas (in a .tsv between tabs), the names of the columns in the first."""

    def _begin(self, lines: _Lines) -> None:
        try:
            header = next(csv.reader(_without_mark(lines), **self._dialect), [])
        except csv.Error as error:
            raise InputError(f"The list {self.name!r} has no header that can be read: {error}.") from error
        self._header = [name.strip() for name in header]
        self.asks = "prompt" in self._header or "prompts" in self._header
        if "image" not in self._header or len(set(self._header)) < len(self._header):
            raise InputError(
                f"The first line of {self.name!r} must name its columns, each once, image among them; got "
                f"{brief(self._header)}."
            )

    @property
    def _dialect(self) -> dict[str, Any]:
        return {"delimiter": "\t" if self._path.suffix.lower() == ".tsv" else ",", "strict": True}

    def _entries(self, lines: _Lines) -> Iterator[list[str] | csv.Error]:
        reader = csv.reader(lines, **self._dialect)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield error
                continue
            if row:
                yield row

    def _cells(self, entry: list[str] | csv.Error) -> dict[str, Any]:
        if isinstance(entry, csv.Error):
            raise InputError(f"It is no row of CSV: {entry}. Long values, such as data URIs, go into a JSONL.")
        if len(entry) != len(self._header):
            raise InputError(f"Expected {len(self._header)} values, got {len(entry)}: {brief(entry)}.")
        cells: dict[str, Any] = dict(zip(self._header, entry, strict=True))
        if cells.get("prompts"):
            try:
                cells["prompts"] = json.loads(cells["prompts"])
            except (ValueError, RecursionError) as error:
                raise InputError(f"Its prompts must be a list in JSON, got {brief(cells['prompts'])}.") from error
        return {name: value for name, value in cells.items() if value != ""}


class ParquetTasks(Tasks):
    """Rows of a Parquet file. Its digest is that of its size and of its footer, which says where which values stand."""

    def __init__(self, path: Path):
        self.name, self._path = str(path), path
        try:
            self._file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
            names = self._file.schema_arrow.names
            self._groups = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]
            self.digest = self._footer_digest()
        except Exception as error:  # damage is met in whatever way comes first
            raise InputError(f"The list {brief(self.name, 300)} cannot be read as Parquet: {error}.") from error
        self._columns = [name for name in ("image", "prompt", "prompts") if name in names]
        if "image" not in names or len(set(self._columns)) < len([name for name in names if name in self._columns]):
            raise InputError(f"{self.name!r} must have one column image; its columns are {brief(names)}.")
        self.asks = len(self._columns) > 1
        self._next, self._rows = 0, self._cells(range(len(self._groups)))  # where the last reading ended

    def __len__(self) -> int:
        return sum(self._groups)

    def read(self, start: int, stop: int) -> Iterator[Task]:
        first, group = self._group_of(start)
        if not first <= self._next <= start:  # else the last reading goes on
            self._next, self._rows = first, self._cells(range(group, len(self._groups)))
        while self._next < min(stop, len(self)):
            try:
                cells, index = next(self._rows), self._next
            except InputError:
                self._next = -1
                raise
            self._next += 1
            if index >= start:
                yield task_of(cells, f"{self._path.name}#{index}", self._path.parent)

    def _group_of(self, row: int) -> tuple[int, int]:
        """The first row of the group that holds `row`, and the group's number."""
        first, group = 0, 0
        while group < len(self._groups) and first + self._groups[group] <= row:
            first, group = first + self._groups[group], group + 1
        return first, group

    def _cells(self, groups: Iterable[int]) -> Iterator[dict[str, Any]]:
        try:
            for batch in self._file.iter_batches(_ROWS_AT_A_TIME, row_groups=list(groups), columns=self._columns):
                yield from batch.to_pylist()
        except Exception as error:
            raise InputError(f"The list {brief(self.name, 300)} is damaged: {error}.") from error
        raise InputError(f"The list {brief(self.name, 300)} ends before its {len(self)} rows.")

    def _footer_digest(self) -> str:
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _FOOTER, 0))
            length = min(int.from_bytes(file.read(4), "little") + _FOOTER, size)
            file.seek(size - length)
            return hashlib.sha256(b"%d " % size + file.read()).hexdigest()


LISTS: dict[str, type[LineTasks] | type[ParquetTasks]] = {
    ".jsonl": JsonlTasks,
    ".ndjson": JsonlTasks,
    ".csv": CsvTasks,
    ".tsv": CsvTasks,
    ".parquet": ParquetTasks,
}


def _without_mark(lines: Iterable[str]) -> Iterator[str]:
    """Lines, the first without the mark that some editors begin a file with."""
    for line in lines:
        yield line.lstrip("\ufeff")
