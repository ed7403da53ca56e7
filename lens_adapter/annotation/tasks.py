"""What is to be annotated: pictures in a fixed order, each with what is asked about it, read bit by bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image

from lens_adapter.data.files import say_left_out
from lens_adapter.data.hub import undecoded
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError, LensError, brief
from lens_adapter.vlm.images import load_draft, picture_suffixes

Opened = tuple[Image.Image, tuple[int, int]]  # a picture, and its (H, W) at full size


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One picture, and what is asked about it.

    Attributes:
        image: its name in the rows.
        source: what `load_image` takes, or a record of it.
        prompts: as the data have them; those that are no text, or say nothing, become rows with an error.
        error: why nothing can be asked; "": nothing is known against it.
    """

    image: str
    source: Any
    prompts: Sequence[Any]
    error: str = ""

    def open(self, draft_side: int | None = None) -> Opened:
        """The picture: RGB, upright; and its (H, W) at full size.

        Args:
            draft_side: JPEG files may be decoded at a smaller size, as `load_draft` says.

        Raises:
            LensError: it cannot be read.
        """
        if isinstance(self.source, Record):
            return self.source.load_draft(draft_side)
        return load_draft(self.source, draft_side)


class Tasks(ABC):
    """Pictures in a fixed order, of which any stretch can be read.

    Attributes:
        name: where they are from, for people.
        digest: SHA-256 of what says which pictures and prompts these are; what the pictures show is not in it.
        asks: whether they bring prompts of their own.
    """

    name: str
    digest: str
    asks: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """How many pictures there are."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Task]:
        """Those from `start` (from 0) up to `stop`, in order; nothing of another is kept."""


class FolderTasks(Tasks):
    """Every picture in a folder and those within it, by name. Hidden files and folders are left out; links to folders
    are not followed; files that are no pictures by their suffix are counted and said.

    Raises:
        InputError: there is none.
    """

    asks = False

    def __init__(self, folder: Path):
        self.name, self._folder = str(folder), folder
        known, digest = picture_suffixes(), hashlib.sha256()
        others: list[str] = []
        self._names: list[str] = []  # one text each, below the folder
        for top, below, files in os.walk(folder, onerror=_unreadable):
            below[:] = sorted(name for name in below if not name.startswith("."))
            inside = os.path.relpath(top, folder)
            for file in files:
                path = file if inside == "." else os.path.join(inside, file)
                if not file.startswith("."):
                    (self._names if Path(file).suffix.lower() in known else others).append(path)
        self._names.sort()
        say_left_out(sorted(others), f"files in {self.name!r} are no pictures by their suffix, and are left out")
        if not self._names:
            raise InputError(f"There is no picture in {self.name!r}. Name a folder of pictures, or a list of them.")
        for name in self._names:
            size = os.path.getsize(folder / name) if os.path.isfile(folder / name) else -1  # a link to nothing
            digest.update(os.fsencode(name) + b"\0%d\0" % size)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def read(self, start: int, stop: int) -> Iterator[Task]:
        for name in self._names[start:stop]:
            shown = os.fsencode(Path(name).as_posix()).decode("utf-8", "backslashreplace")
            yield Task(shown, self._folder / name, ())


class RecordTasks(Tasks):
    """The pictures and prompts of a labelled data set; its masks are not read.

    Args:
        records: of any reader in `lens_adapter.data`.
        name: where they are from.
        folder: names of pictures inside it are given from there on.
    """

    def __init__(self, records: Sequence[Record], name: str, folder: str = ""):
        self.name, self._records, self._folder = name, records, folder
        digest = hashlib.sha256()
        for task in self.read(0, len(records)):
            digest.update(json.dumps([task.image, list(task.prompts), task.error]).encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def read(self, start: int, stop: int) -> Iterator[Task]:
        for index in range(start, min(stop, len(self))):
            try:
                record = self._records[index]
            except InputError as error:  # of readers that look at a record when it is asked for
                yield Task(f"{self.name}#{index}", None, (), str(error))
                continue
            # What has no name of its own has the number of its object, which is another in another process.
            named = isinstance(record.image, str | Path) or record.file
            image = record.image_id if named else f"{self.name}#{index}"
            if self._folder and image.startswith(f"{self._folder}{os.sep}"):
                image = Path(os.path.relpath(image, self._folder)).as_posix()
            yield Task(image, record, record.prompts, "" if record.prompts else "It has no prompt.")


class RowTasks(Tasks):
    """Rows with named columns, such as a `datasets.Dataset`.

    Args:
        rows: a sequence of mappings.
        name: where they are from.
        image: the column of pictures: paths, bytes, `{"bytes": ..., "path": ...}`, URIs, PIL images.
        prompts: the column of prompts, a text or a list of texts; None: "prompt" or "prompts".
        local: whether texts may name files here; those of data from elsewhere may not.
    """

    def __init__(self, rows: Any, name: str, *, image: str = "image", prompts: str | None = None, local: bool = True):
        self.name, self._rows = name, undecoded(rows)  # the bytes of pictures are opened here alone
        self._folder = Path() if local else None
        names = getattr(rows, "column_names", None) or (list(rows[0]) if len(rows) else [])
        found = [column for column in ("prompt", "prompts") if column in names]
        self._columns = {"image": image, **({"prompts": prompts} if prompts else {column: column for column in found})}
        if missing := [column for column in self._columns.values() if column not in names]:
            raise InputError(f"The rows have no column {', '.join(missing)}; they have {', '.join(map(str, names))}.")
        if hasattr(self._rows, "select_columns"):
            self._rows = self._rows.select_columns(list(self._columns.values()))
        self.asks = len(self._columns) > 1
        self.digest = getattr(rows, "_fingerprint", None) or self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for task in self.read(0, len(self)):
            size = len(task.source) if isinstance(task.source, bytes) else getattr(task.source, "size", None)
            digest.update(json.dumps([task.image, brief(list(task.prompts), 4000), str(size)]).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Iterator[Task]:
        for index in range(start, min(stop, len(self))):
            row = self._rows[index]
            cells = {key: row.get(column) for key, column in self._columns.items()}
            yield task_of(cells, f"{self.name}#{index}", self._folder)


def _unreadable(error: OSError) -> None:
    raise InputError(f"The folder {error.filename!r} cannot be read: {error.strerror}.") from error


def task_of(cells: Mapping[str, Any], name: str, folder: Path | None) -> Task:
    """A row of a list -> its task.

    Args:
        cells: "image", and "prompt" (a text) or "prompts" (a list of them, or a text); all else is left alone.
        name: of the row, for a picture without a name.
        folder: where relative paths count from; None: no text may name a file.
    """
    try:
        prompts = _prompts_of(cells)
    except InputError as error:
        return Task(name, None, (), str(error))
    try:
        image, source = _picture_of(cells.get("image"), folder)
    except InputError as error:
        given = cells.get("image")
        named = isinstance(given, str) and len(given) < 300 and is_whole_text(given)
        return Task(given if named else name, None, prompts, str(error))  # type: ignore[arg-type]  # is a str
    return Task(image or name, source, prompts)


def _prompts_of(cells: Mapping[str, Any]) -> Sequence[Any]:
    given = [key for key in ("prompt", "prompts") if cells.get(key) is not None]
    if len(given) > 1:
        raise InputError("It has both a prompt and prompts; give one of them.")
    if not given:
        return ()
    value = cells[given[0]]
    if isinstance(value, np.ndarray | tuple):
        value = list(value)
    return value if isinstance(value, list) and given == ["prompts"] else [value]


def _picture_of(value: Any, folder: Path | None) -> tuple[str, Any]:
    """A picture's name ("" if it has none), and what `load_image` takes for it."""
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        path = value.get("path")
        return path if isinstance(path, str) and is_whole_text(path) else "", value["bytes"]
    if isinstance(value, Mapping):
        value, folder = value.get("path"), folder or Path()
    if isinstance(value, str):
        return _named(value, folder)
    if isinstance(value, Path):
        return _named(str(value), folder)
    if isinstance(value, bytes | bytearray | memoryview | Image.Image | np.ndarray):
        return "", value
    raise InputError(f"Its image must be a path, a URI of file: or data:, or a file's bytes; got {brief(value)}.")


def _named(text: str, folder: Path | None) -> tuple[str, Any]:
    if not text or not is_whole_text(text):
        raise InputError(f"Its image must be a path, got {brief(text)}.")
    scheme = text.partition(":")[0].lower()
    if scheme == "data":
        return "", text
    if re.match(r"[a-z][a-z0-9+.-]+://", text.lower()) and scheme != "file":
        raise InputError(f"Nothing is fetched: {brief(text, 300)}. Download it first, and name the file.")
    if folder is None:
        raise InputError(f"A row from elsewhere must bring its picture, not the name of a file: {brief(text)}.")
    if scheme != "file":
        return text, folder / text
    try:
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"A file URI names a file here, as in file:///pictures/a.jpg; got {brief(text, 300)}.")
        return text, Path(url2pathname(unquote(parts.path)))
    except InputError:
        raise
    except ValueError as error:  # brackets that are no address
        raise InputError(f"The URI {brief(text, 300)} cannot be understood: {error}.") from error


def is_whole_text(value: Any) -> bool:
    """Whether it is a text that can be written down: Python's may hold halves of letters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def opened(task: Task, draft_side: int | None = None) -> Opened | str:
    """What `Task.open` returns, or why there is none."""
    if task.error:
        return task.error
    try:
        return task.open(draft_side)
    except LensError as error:
        return str(error)
