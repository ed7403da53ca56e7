"""What a user calls data -> tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lens_adapter.annotation.lists import LISTS
from lens_adapter.annotation.tasks import FolderTasks, RecordTasks, RowTasks, Tasks
from lens_adapter.data.files import is_file
from lens_adapter.data.formats import DataSource
from lens_adapter.data.hub import load_rows
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError, brief


def tasks_of(data: Any) -> Tasks:
    """The pictures and prompts of some data.

    Args:
        data: a folder of pictures; a list of them (see `lens_adapter.annotation.lists`); a labelled data set, as
            `lens_adapter.data.formats` describes it; `{"path": ..., "format": "hub", "split": ...}`, for which
            `columns` may name image and prompts alone; a `datasets.Dataset`, or a sequence of mappings or `Record`s;
            `Tasks`, which stay as they are.

    Raises:
        InputError: none of these, or nothing in it.
    """
    if isinstance(data, Tasks):
        return data
    tasks = _of_source(data) if isinstance(data, str | Path | Mapping) else _of_rows(data)
    if not len(tasks):
        raise InputError(f"There is nothing to annotate: {tasks.name!r} has no rows.")
    return tasks


def _of_source(data: str | Path | Mapping[str, Any]) -> Tasks:
    source = dict(data) if isinstance(data, Mapping) else {"path": data}
    given = source.get("path")
    if isinstance(given, str | Path) and str(given) and "format" not in source:
        path = Path(given)
        if path.suffix.lower() in LISTS and is_file(path):
            _require_alone(source)
            return LISTS[path.suffix.lower()](path)
        if not is_file(path / "prompts.jsonl"):
            _require_alone(source)
            if not _is_folder(path):
                raise InputError(
                    f"Expected a folder of pictures, or a list of them ({', '.join(LISTS)}), at "
                    f"{brief(str(path), 300)}; there is none. Other data need format=..., see `lens-adapter annotate "
                    "--help`."
                )
            return FolderTasks(path)
    columns = source.get("columns")
    if source.get("format") == "hub" and (columns is None or (isinstance(columns, Mapping) and "mask" not in columns)):
        return _of_hub({key: value for key, value in source.items() if key != "format"})
    read = DataSource.of(source)
    return RecordTasks(read.records(), str(read.path), str(read.path))


def _of_hub(options: dict[str, Any]) -> Tasks:
    """Rows of the Hub without masks; those of a labelled data set that is known are read as such."""
    from lens_adapter.data.hub import SCHEMAS

    repository, columns = options.pop("path", None), options.pop("columns", None)
    if columns is None and repository in SCHEMAS:
        return RecordTasks(DataSource.of({"path": repository, "format": "hub", **options}).records(), str(repository))
    known, texts = {"split", "name", "revision"}, {key: str(value) for key, value in options.items()}
    if not isinstance(repository, str) or not repository or not texts.keys() <= known or "split" not in texts:
        raise InputError(
            f"Data of the Hub need a repository and split=..., and may have name, revision and columns; got {texts}."
        )
    if unknown := set(columns or {}) - {"image", "prompts"}:
        raise InputError(f"columns may name image, prompts and mask; got {brief(sorted(map(str, unknown)))}.")
    return RowTasks(load_rows(repository, **texts), repository, **{**(columns or {}), "local": False})


def _of_rows(data: Any) -> Tasks:
    if isinstance(getattr(data, "column_names", None), dict):
        raise InputError(f"Expected the rows of one split, got those of {', '.join(data)}. Choose one: data['test'].")
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(
            "Data must be a path, a mapping, or a sequence whose rows can be read again, to go on after a stop; got "
            f"{type(data).__name__}."
        )
    if not len(data):
        raise InputError("There is nothing to annotate: the data have no rows.")
    first = data[0]
    if isinstance(first, Record):
        return RecordTasks(data, "records")
    if not isinstance(first, Mapping):
        raise InputError(f"Expected rows that are mappings with image and prompt, or Records; got {brief(first)}.")
    return RowTasks(data, getattr(data, "builder_name", None) or "rows")


def common_prompts(prompts: Sequence[str] | str | None) -> list[str] | None:
    """The prompts that are asked about every picture; None: those of the data.

    Raises:
        InputError: one that is no text or says nothing, or none at all.
    """
    if prompts is None:
        return None
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or any(not isinstance(text, str) or not text.strip() for text in texts):
        raise InputError(f"Prompts must be at least one text that says what to find; got {brief(texts)}.")
    return texts


def _require_alone(source: Mapping[str, Any]) -> None:
    if len(source) > 1:
        raise InputError(f"{source['path']} takes no options without format=...; got {sorted(set(source) - {'path'})}.")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no name that a folder can have
        return False
