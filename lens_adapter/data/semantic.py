"""Semantic segmentation as label maps: a PNG per image whose values are indices into a list of classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from lens_adapter.data.breakage import reason
from lens_adapter.data.files import listed, read_json, read_text, require_folder, say_left_out
from lens_adapter.data.masks import read_levels
from lens_adapter.data.records import Record
from lens_adapter.data.shapes import Size
from lens_adapter.errors import BrokenRecordError, InputError, brief
from lens_adapter.reading import only_our_errors
from lens_adapter.vlm.images import picture_suffixes


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
    levels = read_levels(path)
    if levels.dtype.kind not in "biu":
        raise InputError(f"The label map {str(path)!r} holds {levels.dtype} numbers; expected whole ones.")
    return levels


class LabelMaps(Sequence[Record]):
    """A record per image: each class that its label map shows is a prompt.

    Pictures without a label map, and label maps that are no PNG, are left out with a warning that names them. Which
    classes an image shows is read off its label map when a record is asked for; images stay closed even then.

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

    @only_our_errors
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
        maps = listed(require_folder(Path(labels), "label maps (PNG)"), below=True)
        self.labels = [path for path in maps if path.suffix.lower() == ".png"]
        if not self.labels:
            raise InputError(f"There is no label map (PNG) in {str(labels)!r}.")
        self.classes, self.first, self.ignore = list(classes), first, ignore
        self._names = [path.relative_to(labels).with_suffix("") for path in self.labels]
        self._counts = Counter(self._names)
        self._files: dict[Path, list[Path]] = {}  # all pictures of one name
        suffixes = picture_suffixes()
        for path in listed(self.images, below=True):
            if path.suffix.lower() in suffixes:
                name = path.relative_to(images)
                self._files.setdefault(name.with_suffix(""), []).append(name)
        same = self.images.resolve() == Path(labels).resolve()
        others = [path.name for path in maps if path.suffix.lower() != ".png"]
        say_left_out([] if same else others, f"files in {str(labels)!r} are no label maps (PNG), and left out")
        say_left_out(
            sorted(self._files.keys() - set(self._names)),
            f"pictures in {str(images)!r} have no label map, and are left out",
        )

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
            return self._record(path, name, index)
        except Exception as error:  # what others wrote breaks in whatever way comes first
            raise BrokenRecordError(reason(error), str(path), index) from error

    def _record(self, path: Path, name: Path, index: int) -> Record:
        images = [image for image in self._files.get(name, ()) if self.images / image != path]
        if self._counts[name] > 1:
            raise InputError("Another label map has its name, but for capitals in the suffix. Take one of them out.")
        if not images:
            raise InputError(f"There is no image {str(self.images / name)!r} of any format.")
        if len(images) > 1:
            raise InputError(f"Several images have its name: {', '.join(map(str, images))}. Take out all but one.")
        values = np.unique(_levels(path)).tolist()
        named = {value: self._name(value) for value in values if value != self.ignore}
        shown = {value: said for value, said in named.items() if said is not None}
        return Record(
            image=self.images / images[0],
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


@only_our_errors
def read_classes(path: str | Path) -> list[str]:
    """Names of classes, in the order of the file: the first of its synonyms each.

    JSON: a list of names, or Mapillary's config (`labels`, `readable`). Text: a name per line, also "12: street sign"
    (COCO-Stuff) or the last column of a table with tabs under a line of titles (ADE20K's objectInfo150.txt).
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        found = read_json(path)
        try:
            names = [entry["readable"] for entry in found["labels"]] if isinstance(found, dict) else list(found)
        except Exception as error:  # whatever else the file holds
            raise InputError(
                f"{str(path)!r} names no classes: {brief(error, 300)}. Expected a list of names."
            ) from error
    else:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        table = [line.split("\t")[-1] for line in lines if "\t" in line][1:]
        names = table or [re.sub(r"^\d+\s*:", "", line) for line in lines]
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise InputError(f"{str(path)!r} must name every class with a text, got {brief(wrong[0])}.")
    return [re.split("[;,]", name)[0].strip() for name in names]
