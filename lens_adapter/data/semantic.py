"""Semantic segmentation as label maps: a PNG per image whose values are indices into a list of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from lens_adapter.data.files import IMAGE_SUFFIXES, read_json, read_text, require_folder
from lens_adapter.data.masks import read_levels
from lens_adapter.data.records import Record
from lens_adapter.data.shapes import Size
from lens_adapter.errors import BrokenRecordError, InputError


@dataclass(frozen=True)
class ClassRegion:
    """A region: the pixels of a label map that have one value."""

    label_map: Path
    value: int

    def draw(self, _: Size) -> np.ndarray:
        drawn: np.ndarray = _levels(self.label_map) == self.value
        return drawn


def _levels(path: Path) -> np.ndarray:
    return _levels_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # the classes of an image are asked for in turn
def _levels_of(path: Path, _: int) -> np.ndarray:
    return read_levels(path)


class LabelMaps(Sequence[Record]):
    """A record per image: each class that its label map shows is a prompt.

    Which classes those are is read off the label map when a record is asked for; images stay closed even then.

    Args:
        images: folder of the images.
        labels: folder with the same tree; a label map is a PNG, and its image has the same name but for the suffix.
        classes: names; None: a class that is not asked for.
        first: the value of the first class.
        ignore: the value of pixels that count neither way.

    Raises:
        InputError: there is no such folder, or no label map in it; at `[index]` a BrokenRecordError: the label map
            cannot be read, or holds a value beyond the classes.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        classes: Sequence[str | None],
        *,
        first: int = 0,
        ignore: int | None = 255,
    ):
        self.images = require_folder(Path(images), "images")
        self.labels = sorted(require_folder(Path(labels), "label maps (PNG)").rglob("*.png"))
        if not self.labels:
            raise InputError(f"There is no label map (PNG) in {str(labels)!r}.")
        self.classes, self.first, self.ignore = list(classes), first, ignore
        found = (path.relative_to(images) for path in self.images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        self._names = [path.relative_to(labels).with_suffix("") for path in self.labels]
        self._files = {path.with_suffix(""): path for path in found}

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        path, name = self.labels[index], self._names[index]
        try:
            if name not in self._files:
                raise InputError(f"There is no image {str(self.images / name)!r} of any format.")
            values = np.unique(_levels(path)).tolist()
            named = {value: self._name(value) for value in values if value != self.ignore}
        except InputError as error:
            raise BrokenRecordError(str(error), str(path), index) from error
        shown = {value: said for value, said in named.items() if said is not None}
        return Record(
            image=self.images / self._files[name],
            prompts=list(shown.values()),
            regions=[ClassRegion(path, value) for value in shown],
            ignored=ClassRegion(path, self.ignore) if self.ignore is not None and self.ignore in values else None,
            id=name.as_posix(),
            file=str(path),
            index=index,
        )

    def _name(self, value: int) -> str | None:
        position = value - self.first
        if not 0 <= position < len(self.classes):
            raise InputError(
                f"It holds the value {value}; the {len(self.classes)} classes have the values {self.first} to "
                f"{self.first + len(self.classes) - 1}. Check `classes`, `first` and `ignore`."
            )
        return self.classes[position]


def read_classes(path: str | Path) -> list[str]:
    """Names of classes, in the order of the file: the first of its synonyms each.

    JSON: a list of names, or Mapillary's config (`labels`, `readable`). Text: a name per line, also "12: street sign"
    (COCO-Stuff) or the last column of a table with tabs under a line of titles (ADE20K's objectInfo150.txt).
    """
    path = Path(path)
    if path.suffix == ".json":
        found = read_json(path)
        names = [entry["readable"] for entry in found["labels"]] if isinstance(found, dict) else found
    else:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        table = [line.split("\t")[-1] for line in lines if "\t" in line][1:]
        names = table or [re.sub(r"^\d+\s*:", "", line) for line in lines]
    return [re.split("[;,]", name)[0].strip() for name in names]
