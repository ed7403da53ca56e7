"""Data sets of the Hugging Face Hub, or any rows with named columns; the package `datasets` need not be installed.

rows = datasets.load_dataset("Ricky06662/ReasonSeg_val", split="test")
records = read_hub(rows, "Ricky06662/ReasonSeg_val")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lens_adapter.data.breakage import OnError, collect
from lens_adapter.data.files import as_label
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError, brief
from lens_adapter.reading import only_our_errors


@dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: as `Record.image`, or a dict with `bytes` or `path` (of a column that is not decoded).
        prompts: a text, or a list of texts.
        mask: one region for all prompts of the row, in any form that `lens_adapter.data.masks` knows.
        ignored: as in `Record`; None: there is no such column.
        id: likewise.
        subset: likewise.
    """

    image: str
    prompts: str
    mask: str
    ignored: str | None = None
    id: str | None = None
    subset: str | None = None


_LMMS_LAB = Columns(image="image", prompts="answer", mask="segmentation", id="question_id")
_SEG_ZERO = Columns(image="image", prompts="text", mask="mask", id="ann_id")
# By repository. lmms-lab's rows keep one polygon of an object, and their "val" joins the unc and the google split.
SCHEMAS = {
    "lmms-lab/RefCOCO": _LMMS_LAB,
    "lmms-lab/RefCOCOplus": _LMMS_LAB,
    "lmms-lab/RefCOCOg": _LMMS_LAB,
    "Ricky06662/ReasonSeg_val": _SEG_ZERO,
    "Ricky06662/ReasonSeg_test": _SEG_ZERO,
}


@only_our_errors
def read_hub(rows: Any, columns: Columns | str, on_error: OnError = "raise") -> list[Record]:
    """A record per row. Texts are read now, images and masks when asked for.

    Args:
        rows: a `datasets.Dataset` (one split), or any sequence of dicts.
        columns: a mapping of one's own, or a repository that `SCHEMAS` knows.
        on_error: "raise" over a broken record, or "skip" it with a warning.
    """
    if isinstance(columns, str):
        if columns not in SCHEMAS:
            raise InputError(f"No schema of {columns!r} is known; pass Columns(...) or one of {', '.join(SCHEMAS)}.")
        columns = SCHEMAS[columns]
    names = _names(rows)
    wanted = [name for name in astuple(columns) if name is not None]
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"The rows have no column {', '.join(missing)}; they have {', '.join(map(str, names))[:300]}.")
    rows = undecoded(rows)
    texts = _select(rows, [name for name in (columns.prompts, columns.id, columns.subset) if name])
    cell = {name: _select(rows, [name]) for name in wanted}

    def build(entry: tuple[int, Mapping[str, Any]]) -> dict[str, Any]:
        index, text = entry
        prompts = text[columns.prompts]
        if not isinstance(prompts, str | list | tuple | np.ndarray):
            raise InputError(f"{columns.prompts!r} must be a text or a list of texts, got {brief(prompts)}.")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        return {
            "image": partial(_cell, cell[columns.image], index, columns.image),
            "prompts": [prompt.strip() if isinstance(prompt, str) else prompt for prompt in prompts],
            "regions": [partial(_cell, cell[columns.mask], index, columns.mask)] * len(prompts),
            "ignored": partial(_cell, cell[columns.ignored], index, columns.ignored) if columns.ignored else None,
            "id": as_label(text[columns.id], columns.id) if columns.id else "",
            "subset": as_label(text[columns.subset], columns.subset) if columns.subset else "",
        }

    return collect(
        getattr(rows, "builder_name", None) or "rows", ((k, (k, text)) for k, text in enumerate(texts)), build, on_error
    )


@only_our_errors
def load_hub(
    repository: str,
    split: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_error: OnError = "raise",
) -> list[Record]:
    """Download a split with the package `datasets`, and read it.

    Args:
        repository: on the Hub, or a folder that `datasets.load_dataset` takes.
        split: its name.
        name: of the configuration, if there are several.
        revision: branch, tag or commit.
        columns: the fields of `Columns`; None: those that `SCHEMAS` knows.
        on_error: as for `read_hub`.

    Raises:
        InputError: `datasets` is not installed, there is no such data set or split, or the columns do not fit.
    """
    try:
        chosen = repository if columns is None else Columns(**columns)
    except TypeError as error:
        raise InputError(f"columns must name image, prompts and mask: {error}.") from error
    return read_hub(load_rows(repository, split, name=name, revision=revision), chosen, on_error)


def load_rows(repository: str, split: str, *, name: str | None = None, revision: str | None = None) -> Any:
    """The `datasets.Dataset` of a split; arguments and errors are those of `load_hub`."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("Data of the Hub need the package datasets: pip install 'lens_adapter[datasets]'.") from error
    try:
        return load_dataset(repository, name, split=split, revision=revision)
    except Exception as error:  # of many kinds, also of other libraries
        raise InputError(f"{repository!r}, split {split!r}, cannot be loaded: {error}") from error


def _names(rows: Any) -> Sequence[str]:
    """Of a DatasetDict, the columns are a dict by split."""
    if isinstance(getattr(rows, "column_names", None), dict):
        raise InputError(f"Expected the rows of one split, got those of {', '.join(rows)}. Choose one: rows['test'].")
    if not hasattr(rows, "__len__") or not len(rows):
        raise InputError("Expected at least one row, in a sequence; a streamed data set must be downloaded first.")
    names: Sequence[str] | None = getattr(rows, "column_names", None)
    if names:
        return names
    if not hasattr(rows, "__getitem__") or not isinstance(rows[0], Mapping):
        raise InputError(f"Expected a sequence of dicts, one per row, got {brief(rows)}.")
    return list(rows[0])


def _select(rows: Any, names: list[str]) -> Any:
    """The rows with these columns alone, if they can be selected: `datasets` would decode all columns of a row."""
    return rows.select_columns(names) if hasattr(rows, "select_columns") else rows


def undecoded(rows: Any) -> Any:
    """The rows with the bytes of their pictures: `datasets` would open files of any format."""
    for name, feature in dict(getattr(rows, "features", None) or {}).items():
        closed = _closed(feature)
        if closed != feature:
            rows = rows.cast_column(name, closed)
    return rows


def _closed(feature: Any) -> Any:
    """A feature of `datasets` whose pictures are not decoded, wherever in it they are."""
    if isinstance(feature, Mapping):
        return {name: _closed(part) for name, part in feature.items()}
    if isinstance(feature, list | tuple):
        return [_closed(part) for part in feature]
    if hasattr(feature, "feature"):  # a list of them
        return replace(feature, feature=_closed(feature.feature))
    if type(feature).__name__ == "Image" and getattr(feature, "decode", False):
        return replace(feature, decode=False)
    return feature


def _cell(rows: Any, index: int, name: str) -> Any:
    return _bare(rows[index][name])


def _bare(cell: Any) -> Any:
    """A picture that is not decoded is a dict with its bytes, or with its path; a list may hold several."""
    if isinstance(cell, Mapping) and not cell.keys().isdisjoint(("bytes", "path")):
        return cell.get("bytes") or cell.get("path")
    if isinstance(cell, list) and any(isinstance(part, Mapping) for part in cell):
        return [_bare(part) for part in cell]
    return cell
