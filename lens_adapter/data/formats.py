"""Data sets by the name of their format: what `lens-adapter train`, `evaluate` and `probe` take as data.

A source is the path of a plain folder, or a mapping with `path`, `format` and the options of that format:

    {"path": "refer_seg", "format": "refer", "dataset": "refcoco+", "split": "val"}

The options are the arguments of the format's function in `FORMATS` after its first, which is the path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_adapter.data.breakage import OnError
from lens_adapter.data.coco import read_coco
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.data.hub import load_hub
from lens_adapter.data.lisa import read_lisa
from lens_adapter.data.reason_seg import read_reason_seg
from lens_adapter.data.records import Record
from lens_adapter.data.refer import read_refer
from lens_adapter.data.semantic import LabelMaps, read_classes
from lens_adapter.errors import InputError, brief, did_you_mean
from lens_adapter.reading import only_our_errors


def _reason_seg(folder: str, split: str | None = None, on_error: OnError = "raise") -> Sequence[Record]:
    return read_reason_seg(Path(folder, split or ""), on_error)


def _coco(annotations: str, images: str, on_error: OnError = "raise") -> Sequence[Record]:
    return read_coco(annotations, images, on_error=on_error)


def _label_maps(
    labels: str,
    images: str,
    classes: str | Sequence[str | None],
    first: int = 0,
    ignore: int | None = 255,
    on_error: OnError = "raise",
) -> Sequence[Record]:
    """A label map is read when its record is asked for, so `Examples` sees to `on_error`."""
    names = read_classes(classes) if isinstance(classes, str) else classes
    return LabelMaps(images, labels, names, first=first, ignore=ignore)


FORMATS: dict[str, Callable[..., Sequence[Record]]] = {
    "folder": read_folder,
    "refer": read_refer,
    "reason_seg": _reason_seg,
    "coco": _coco,
    "label_maps": _label_maps,
    "lisa": read_lisa,
    "hub": load_hub,
}
_NAMED_BY = {"refer": "dataset", "lisa": "name"}  # the option that says which data set of several lies there


@dataclass(frozen=True)
class DataSource:
    """Where a data set lies and how to read it; `DataSource.of` makes one and checks it."""

    path: str
    format: str
    options: Mapping[str, Any]

    @classmethod
    @only_our_errors
    def of(cls, source: str | Path | Mapping[str, Any]) -> DataSource:
        """Of the path of a plain folder, or of a mapping with `path`, `format` and the options of that format.

        Nothing is read yet.

        Raises:
            InputError: no path, an unknown format, an option that it does not have, or one that is missing.

        Examples:
            >>> refcoco = {"path": "refer_seg", "format": "refer", "dataset": "refcoco+", "split": "val"}
            >>> DataSource.of(refcoco).describe()
            {'name': 'refcoco+', 'split': 'val', 'revision': None}
        """
        options = dict(source) if isinstance(source, Mapping) else {"path": source}
        path, form = options.pop("path", None), options.pop("format", "folder")
        if not isinstance(path, str | Path) or not str(path):
            raise InputError(
                f"Data need a path: a text, or a mapping with `path` and `format`; got {brief(source, 200)}."
            )
        if not isinstance(form, str) or form not in FORMATS:
            meant = did_you_mean(form, FORMATS)
            raise InputError(f"There is no data format {brief(form)}; expected one of {', '.join(FORMATS)}.{meant}")
        _, *known = inspect.signature(FORMATS[form]).parameters.values()
        names = [entry.name for entry in known]
        unknown = sorted(set(options) - set(names), key=str)
        missing = [entry.name for entry in known if entry.default is entry.empty and entry.name not in options]
        if unknown or missing:
            problem = (
                f"has no option {', '.join(map(str, unknown))[:200]}" if unknown else f"needs {', '.join(missing)} too"
            )
            meant = did_you_mean(unknown, names)
            raise InputError(f"The data format {form!r} {problem}; its options are {', '.join(names)}.{meant}")
        texts = {key: str(options[key]) for key in ("split", "revision") if options.get(key) is not None}
        return cls(str(path), form, options | texts)  # YAML takes the split 2017 for a number

    @only_our_errors
    def records(self) -> Sequence[Record]:
        """What the format's reader makes of it."""
        return FORMATS[self.format](self.path, **self.options)

    def examples(self) -> Examples:
        """One per prompt; pictures are read when asked for."""
        return Examples(self.records(), self.options.get("on_error", "raise"))

    @only_our_errors
    def describe(self) -> dict[str, str | None]:
        """Its "name", "split" and "revision", for the record of an evaluation; a folder goes by its last name."""
        given = {key: entry.default for key, entry in inspect.signature(FORMATS[self.format]).parameters.items()}
        given |= self.options
        name = self.path if self.format == "hub" else Path(self.path).resolve().name
        name = given[_NAMED_BY[self.format]] if self.format in _NAMED_BY else name
        return {"name": name, **{key: given.get(key) for key in ("split", "revision")}}
