"""The folder of a run: who writes to it, what it was begun with, what is missing, and what is made of it in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from lens_adapter.annotation.coco import write_coco
from lens_adapter.annotation.local import Annotator
from lens_adapter.annotation.provenance import MANIFEST, read_manifest, require_same_run, write_manifest
from lens_adapter.annotation.review import write_preview
from lens_adapter.annotation.rows import read_rows, shard_facts, shard_name, shards_in, write_shard
from lens_adapter.annotation.tasks import Task, Tasks
from lens_adapter.errors import InputError
from lens_adapter.vlm.base import FrozenBase

COCO_FILE = "annotations.json"
PREVIEW_FILE = "_preview.html"  # readers of Parquet folders leave out what begins so
MOST_WORDS = 100  # that a report names
LOCK = "_annotations.lock"


@dataclass(frozen=True)
class AnnotationReport:
    """What a folder of annotations holds.

    Attributes:
        output: the folder.
        pictures: all of them.
        rows: (picture, prompt) pairs, those with an error included.
        found: of these, how many name something in their picture.
        errors: of these, how many could not be annotated.
        broken_pictures: pictures with at least one error.
        seconds: that this run took; what an earlier one did is not in it.
        not_understood: rows whose prompt holds words that the model has no token for: where it is not found, that says
            nothing about the picture. With an engine's cluster, or a function of one's own, this is not counted.
        unknown_words: these words, at most `MOST_WORDS` of them.
    """

    output: Path
    pictures: int
    rows: int
    found: int
    errors: int
    broken_pictures: int
    seconds: float
    not_understood: int = 0
    unknown_words: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Two or three lines for people."""
        lines = [f"pictures {self.pictures}, rows {self.rows}, of these found {self.found}"]
        if self.errors:
            lines += [f"rows with an error instead of a mask {self.errors}, of {self.broken_pictures} pictures"]
        if self.not_understood:
            words = ", ".join(self.unknown_words)
            lines += [f"rows with words that the model has no token for {self.not_understood}: {words}"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "output": str(self.output)}

    def counts(self) -> dict[str, Any]:
        """What stands in the folder's manifest: all but where it is and how long it took."""
        return {key: value for key, value in asdict(self).items() if key not in ("output", "seconds")}


@dataclass(frozen=True)
class Job:
    """All that one process needs to write any shard.

    Attributes:
        tasks: of all shards.
        prompts: asked about every picture in the place of its own; None: its own.
        folder: where shards go.
        plan: what they are made of and with.
        annotator: makes rows.
    """

    tasks: Tasks
    prompts: Sequence[str] | None
    folder: Path
    plan: Mapping[str, Any]
    annotator: Annotator

    def write(self, number: int, seen: Callable[[int], Any] = lambda _: None) -> None:
        """Write one shard: it is there when it is whole."""
        rows = list(self.annotator.rows(shard_tasks(self.tasks, self.prompts, number, self.plan), seen))
        write_shard(self.folder / shard_name(number), rows, self.plan)


def shard_tasks(tasks: Tasks, prompts: Sequence[str] | None, number: int, plan: Mapping[str, Any]) -> Iterator[Task]:
    """The tasks of one shard.

    Raises:
        InputError: the data have become shorter meanwhile.
    """
    start = number * plan["shard_size"]
    stop = min(start + plan["shard_size"], plan["pictures"])
    count = 0
    for task in tasks.read(start, stop):
        count += 1
        yield task if prompts is None else replace(task, prompts=prompts)
    if count != stop - start:
        raise InputError(
            f"{tasks.name} has changed: expected {stop - start} pictures from number {start}, got {count}."
        )


@contextmanager
def held(folder: Path, process: PartialState | None = None) -> Iterator[None]:
    """Inside, no other run writes to the folder; the main process of several claims it for all.

    Raises:
        InputError: another one does.
    """
    if process is not None and not process.is_main_process:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"Another run writes to {folder} at this moment. Wait for its end, or name another."
        ) from error
    try:
        yield
    finally:
        lock.release()


def require_free(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds annotations, unless they are to be gone on with.

    Raises:
        InputError: it does.
    """
    there = shards_in(folder)
    if not resume and (there or (folder / MANIFEST).exists()):
        raise InputError(
            f"{folder} holds annotations already ({len(there)} shards). Go on with them by resume=True (--resume), or "
            "name another folder."
        )


def missing_shards(
    folder: Path, plan: Mapping[str, Any], resume: bool, process: PartialState | None = None
) -> list[int]:
    """Check that the folder may be written to, and write down of which run it is.

    Returns:
        The numbers of the shards that are not there yet.

    Raises:
        InputError: it holds annotations and `resume` is False, or those of another run.
    """
    if process is None or process.is_main_process:
        require_free(folder, resume)
        if manifest := read_manifest(folder):
            require_same_run(folder, manifest["plan"], plan)
        for path in shards_in(folder):
            require_same_run(path, shard_facts(path), plan)
        remove_leftovers(folder)
        write_manifest(folder, plan, None)
    if process is not None:
        process.wait_for_everyone()
    present = {path.name for path in shards_in(folder)}
    missing = [number for number in range(shard_count(plan)) if shard_name(number) not in present]
    if process is not None:
        process.wait_for_everyone()  # nobody writes before all have seen what is missing
    return missing


def remove_leftovers(folder: Path) -> None:
    """Delete what processes left that were killed while they wrote; nobody may write now."""
    for leftover in folder.glob(".*.part"):
        leftover.unlink()


def counted(folder: Path, shards: Sequence[Path], plan: Mapping[str, Any], began: float) -> AnnotationReport:
    """The report of a folder whose shards are all there; `began`: by `time.monotonic()`."""
    rows = found = errors = broken = 0
    last = None
    for row in read_rows(shards, ["image", "found", "error"]):
        rows, found = rows + 1, found + row["found"]
        if row["error"] is not None:
            errors, broken, last = errors + 1, broken + (row["image"] != last), row["image"]
    return AnnotationReport(folder, plan["pictures"], rows, found, errors, broken, time.monotonic() - began)


def with_words(report: AnnotationReport, shards: Sequence[Path], base: FrozenBase) -> AnnotationReport:
    """The report with what the model's tokenizer has no token for in the prompts of all rows."""
    of = lru_cache(2**16)(lambda prompt: base.unknown_words([prompt])[0])
    rows, words = 0, dict[str, None]()
    for row in read_rows(shards, ["prompt", "error"]):
        if row["error"] is None and (unknown := of(row["prompt"])):
            rows += 1
            words |= dict.fromkeys(unknown[: MOST_WORDS - len(words)])
    return replace(report, not_understood=rows, unknown_words=list(words))


def write_views(
    folder: Path,
    shards: Sequence[Path],
    plan: Mapping[str, Any],
    *,
    format: str,
    preview: int,
    tasks: Tasks | None,
    prompts: Sequence[str] | None,
) -> None:
    """Write what is made of all rows: the COCO file, and the page of `preview` masks of each kind."""
    if format == "coco":
        write_coco(folder / COCO_FILE, shards, plan)
    if preview and tasks is not None:
        read = partial(shard_tasks, tasks, prompts, plan=plan)
        write_preview(folder / PREVIEW_FILE, shards, plan, read, preview)


def shard_count(plan: Mapping[str, Any]) -> int:
    """How many shards a run has."""
    return -(-int(plan["pictures"]) // int(plan["shard_size"]))


def pictures_in(numbers: Iterable[int], plan: Mapping[str, Any]) -> int:
    """How many pictures some shards have together; the last one may have fewer."""
    size, all_of_them = plan["shard_size"], plan["pictures"]
    return sum(min(size, all_of_them - number * size) for number in numbers)
