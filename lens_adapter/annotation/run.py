"""`annotate`: every picture of some data, shard by shard, into a folder that can be gone on with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from tqdm import tqdm

from lens_adapter.adapter import LensAdapter
from lens_adapter.annotation.cluster import ClusterJob, look_at, write_shards
from lens_adapter.annotation.folder import (
    COCO_FILE,
    AnnotationReport,
    Job,
    counted,
    held,
    missing_shards,
    pictures_in,
    remove_leftovers,
    shard_count,
    with_words,
    write_views,
)
from lens_adapter.annotation.inputs import common_prompts, tasks_of
from lens_adapter.annotation.local import BATCH_SIZE, WORKERS, Annotator, ErrorPolicy, Segmenter
from lens_adapter.annotation.provenance import (
    MANIFEST,
    facts_of,
    plan_of,
    read_manifest,
    require_same_run,
    write_manifest,
)
from lens_adapter.annotation.rows import judge_anew, shard_facts, shard_name, shards_in
from lens_adapter.annotation.tasks import Tasks
from lens_adapter.errors import InputError
from lens_adapter.evaluation import this_process
from lens_adapter.writing import require_here

SHARD_SIZE = 512  # pictures
FORMATS = ("parquet", "coco")
ENGINES = ("local", "ray")
_PATIENCE = 0.5  # seconds between two looks at what other processes have finished


def annotate(
    segmenter: LensAdapter | Segmenter | Callable[[], LensAdapter | Segmenter],
    data: Any,
    output: str | os.PathLike[str],
    *,
    prompts: Sequence[str] | str | None = None,
    format: str = "parquet",
    engine: str = "local",
    actors: int | None = None,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    mask_threshold: float | None = None,
    score_threshold: float | None = None,
    resume: bool = False,
    on_error: ErrorPolicy = "record",
    preview: int = 0,
    workers: int = WORKERS,
    draft_side: int | None = None,
) -> AnnotationReport:
    """Masks for every (picture, prompt) of some data, written as rows to a folder: see `lens_adapter.annotation`.

    Inputs are read bit by bit and rows written shard by shard, so memory does not grow with the data. A run that was
    stopped in whatever way goes on by `resume=True`, and gives the same rows: a shard is there whole or not at all, and
    no batch runs across shards. Started by `accelerate launch` or `torchrun`, processes share the shards; each needs
    the whole base. All return the same.

    Args:
        segmenter: an attached adapter. Or any function `(images, prompts) -> outputs`, which gets a list of RGB
            pictures and a list of prompts for each, and returns a `LensOutput` for each, with a mask for every prompt.
            With `engine="ray"`: a function without arguments that returns one of these, called once in every actor.
        data: a folder of pictures, a list of them (.jsonl, .csv, .parquet), a labelled data set as
            `lens_adapter.data.formats` describes it, a `datasets.Dataset`, or a sequence of mappings or `Record`s.
        output: a folder, made if there is none.
        prompts: asked about every picture, in the place of those that the data have.
        format: "parquet", or "coco": also one COCO file, `annotations.json`, of what was found.
        engine: "local": this process, or those of the launcher; "ray": actors of a cluster (see
            `lens_adapter.annotation.cluster`).
        actors: with "ray", at most so many; default: one for each GPU, or for each CPU where there is none.
        batch_size: prompts that run together, of several pictures too.
        shard_size: pictures per Parquet file: what is lost at most when a run is killed.
        mask_threshold: as for `LensAdapter.segment`.
        score_threshold: likewise. It decides `found` alone: masks below it are kept, see `rethreshold`.
        resume: go on with what the folder holds. What it was begun with must be the same.
        on_error: "record": a picture that cannot be read, or a prompt that cannot be asked, is a row with its error;
            "stop": it raises, and what was finished stays.
        preview: so many found masks, the least sure first, and as many of those just not found go to a page for the
            eye, `_preview.html`.
        workers: threads that open the next pictures while the model works.
        draft_side: decode JPEG files at a half, a quarter or an eighth of their size, the smallest of which both sides
            still have so many pixels; 1024 is what most SAMs see. Masks are drawn at full size all the same, and
            differ a little: docs/annotate.md says how much. For adapters alone. Default: everything at full size.

    Raises:
        NotAttachedError: the adapter has no base.
        InputError: data, prompts or options that cannot be used; a folder that holds other annotations, or some, and
            `resume` is False; with `on_error="stop"`, what is wrong with a picture or a prompt.
        OSError: the disk is full, or the folder cannot be written.
    """
    require_here(output)
    began, folder = time.monotonic(), Path(output).absolute()
    counts = {"batch_size": batch_size, "shard_size": shard_size, "workers": workers}
    _check_options(format, on_error, **counts, **({} if draft_side is None else {"draft_side": draft_side}))
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}.")
    if preview < 0:
        raise InputError(f"preview must be a number of at least 0; got {preview!r}.")
    wanted, tasks = common_prompts(prompts), tasks_of(data)
    require_asked(tasks, wanted)
    judge = partial(thresholds_of, mask=mask_threshold, score=score_threshold)
    facts, (mask, score) = (
        look_at(_loader(segmenter), judge) if engine == "ray" else (facts_of(segmenter), judge(segmenter))
    )
    if draft_side is not None and "segmenter" in facts:
        raise InputError(
            "draft_side is for adapters: a function of your own draws its masks at the size of the picture that it is "
            "given, and that is to be the picture's own."
        )
    both: dict[str, Any] = {"mask_threshold": mask, "score_threshold": score, "draft_side": draft_side}
    plan = plan_of(facts, tasks, wanted, shard_size=shard_size, **both)
    options = {**both, "batch_size": batch_size, "on_error": on_error, "workers": workers}
    process = None
    if engine == "local":
        process = this_process(segmenter.device if isinstance(segmenter, LensAdapter) else None)
    with held(folder, process):
        missing = missing_shards(folder, plan, resume, process)
        if engine == "local":
            annotator = Annotator(cast(LensAdapter | Segmenter, segmenter), **options)
            _work(Job(tasks, wanted, folder, plan, annotator), missing, process)
        elif missing:
            job = ClusterJob(_loader(segmenter), _absolute(data), wanted, folder, plan, options)
            write_shards(job, missing, actors)
        if process is not None and not process.is_main_process:
            return _told_by_main(folder, began)
        shards = _when_all_are_there(folder, plan)
        remove_leftovers(folder)
        report = counted(folder, shards, plan, began)
        if isinstance(segmenter, LensAdapter):
            report = with_words(report, shards, segmenter.base)
        write_views(folder, shards, plan, format=format, preview=preview, tasks=tasks, prompts=wanted)
        write_manifest(folder, plan, report.counts())
    return report


def require_asked(tasks: Tasks, prompts: Sequence[str] | None) -> None:
    """Refuse pictures about which nothing is asked.

    Raises:
        InputError: the data have no prompts, and none are given.
    """
    if prompts is None and not tasks.asks:
        raise InputError(
            f"{tasks.name} brings no prompts; say what to look for by prompts=[...] (--prompt TEXT, --prompts FILE)."
        )


def rethreshold(
    folder: str | os.PathLike[str],
    score_threshold: float,
    *,
    format: str = "parquet",
    preview: int = 0,
    data: Any = None,
) -> AnnotationReport:
    """Judge finished annotations by another score threshold, without any model: only `found` changes.

    Masks were cut at their mask threshold when they were drawn; to change that one, annotate anew. Stopped half-way, it
    is to be called again: each shard says which threshold it was judged by.

    Args:
        folder: that `annotate` filled.
        score_threshold: a prompt whose score is below it names nothing.
        format: as for `annotate`; a COCO file that is there is written anew in any case.
        preview: as for `annotate`.
        data: what was annotated, for the preview.

    Raises:
        InputError: the folder is not complete, or a threshold that no score can be compared with.
    """
    began, where = time.monotonic(), Path(folder)
    _check_options(format, "record")
    thresholds_of(None, None, score_threshold)
    with held(_existing(where)):
        manifest = read_manifest(where)
        if manifest is None or manifest["summary"] is None:
            raise InputError(
                f"{where} holds no finished annotations. Finish them first, by annotate(..., resume=True)."
            )
        plan = {**manifest["plan"], "score_threshold": float(score_threshold)}
        tasks = None if data is None else tasks_of(data)
        if tasks is not None:
            require_same_run(where, plan, {**plan, "data_sha256": tasks.digest})
        elif preview:
            raise InputError("A preview shows the pictures: say where they are, by data=....")
        shards = shards_in(where)
        for path in shards:
            facts = shard_facts(path)
            require_same_run(path, {**facts, "score_threshold": None}, {**plan, "score_threshold": None})
            if facts["score_threshold"] != plan["score_threshold"]:
                judge_anew(path, plan["score_threshold"], {**facts, "score_threshold": plan["score_threshold"]})
        known = {
            key: manifest["summary"][key] for key in ("not_understood", "unknown_words") if key in manifest["summary"]
        }
        report = replace(counted(where, shards, plan, began), **known)
        format = "coco" if (where / COCO_FILE).exists() else format
        write_views(where, shards, plan, format=format, preview=preview, tasks=tasks, prompts=plan["prompts"])
        write_manifest(where, plan, report.counts())
    return report


def _work(job: Job, missing: Sequence[int], process: PartialState | None) -> None:
    """Write this process's share of the missing shards, with a bar that counts pictures."""
    mine = missing if process is None else missing[process.process_index :: process.num_processes]
    todo, whole = pictures_in(mine, job.plan), pictures_in(missing, job.plan)
    done = job.plan["pictures"] - whole if process is None else 0
    quiet = process is not None and not process.is_main_process
    with tqdm(total=done + todo, initial=done, desc="pictures", unit="picture", disable=quiet) as bar:
        for number in mine:
            job.write(number, bar.update)


def _when_all_are_there(folder: Path, plan: Mapping[str, Any]) -> list[Path]:
    """All shards. A launcher ends all processes when one fails, so that nobody waits in vain."""
    shards = [folder / shard_name(number) for number in range(shard_count(plan))]
    while not all(path.exists() for path in shards):
        time.sleep(_PATIENCE)
    return shards


def _told_by_main(folder: Path, began: float) -> AnnotationReport:
    """What the main process has counted, when it has."""
    while True:
        manifest = read_manifest(folder)
        if manifest and manifest["summary"]:
            return AnnotationReport(output=folder, seconds=time.monotonic() - began, **manifest["summary"])
        time.sleep(_PATIENCE)


def thresholds_of(segmenter: Any, mask: float | None, score: float | None) -> tuple[float | None, float]:
    """Those of a call: of an adapter its own, where none are given; of a function 0, which finds everything."""
    if isinstance(segmenter, LensAdapter):
        return segmenter.config.thresholds(mask, score)
    if mask is not None:
        raise InputError("A mask threshold is for adapters; a function of your own draws the masks itself.")
    if score is not None and not (isinstance(score, Real) and 0 <= float(score) < 1):
        raise InputError(f"score_threshold must be a number in [0, 1); got {score!r}.")
    return None, float(score or 0)


def _check_options(format: str, on_error: str, **counts: int) -> None:
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}; got {format!r}.")
    if on_error not in ("record", "stop"):
        raise InputError(f'on_error must be "record" or "stop"; got {on_error!r}.')
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be an integer of at least 1; got {value!r}.")


def _existing(folder: Path) -> Path:
    if not (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds no annotations; expected a folder that annotate filled.")
    return folder


def _loader(segmenter: Any) -> Callable[[], Any]:
    """What every actor calls.

    Raises:
        InputError: it is a segmenter itself, which cannot be sent along with its base.
    """
    if isinstance(segmenter, LensAdapter) or not callable(segmenter):
        raise InputError(
            'With engine="ray" give a function without arguments that loads and attaches an adapter, which every actor '
            f"calls once; got {type(segmenter).__name__}."
        )
    return cast(Callable[[], Any], segmenter)


def _absolute(data: Any) -> Any:
    """Data whose path does not depend on the folder that a process works in."""
    if isinstance(data, Mapping):
        given = data.get("path")
        return {**data, "path": _absolute(given)} if isinstance(given, str | Path) and Path(given).exists() else data
    return os.path.abspath(data) if isinstance(data, str | Path) else data
