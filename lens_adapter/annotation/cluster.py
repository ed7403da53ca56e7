"""The shards of a run on a cluster, by Ray Data: actors that load base and head once, and write shard after shard.

The rows are those of the local engine, since a shard is made by the same code, and nothing runs across shards. Data and
output lie where every node sees them under the same path. An actor that dies is started anew, and its shard made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lens_adapter.annotation.folder import Job, pictures_in
from lens_adapter.annotation.inputs import tasks_of
from lens_adapter.annotation.local import Annotator
from lens_adapter.annotation.provenance import facts_of
from lens_adapter.annotation.rows import shard_name
from lens_adapter.errors import InputError, LensError

_Thresholds = tuple[float | None, float]


@dataclass(frozen=True)
class ClusterJob:
    """All that an actor needs; it is sent to every one.

    Attributes:
        load: makes the segmenter, once in every actor.
        data: as for `annotate`; read anew by every actor.
        prompts: as in `Job`.
        folder: likewise.
        plan: likewise.
        options: of `Annotator`.
    """

    load: Callable[[], Any]
    data: Any
    prompts: Sequence[str] | None
    folder: Path
    plan: Mapping[str, Any]
    options: Mapping[str, Any]

    def job(self) -> Job:
        """What one process works by.

        Raises:
            InputError: the data are others here.
        """
        tasks = tasks_of(self.data)
        if tasks.digest != self.plan["data_sha256"]:
            raise InputError(f"{tasks.name} holds other data on this node than where the run was started.")
        return Job(tasks, self.prompts, self.folder, self.plan, Annotator(self.load(), **self.options))


class ShardWriter:
    """An actor: loads everything once, and writes the shards that it is given."""

    def __init__(self, cluster_job: ClusterJob):
        self._cluster_job = cluster_job
        self._job: Job | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Numbers of shards -> the same, and why each could not be written ("": it was)."""
        return {"shard": batch["shard"], "error": np.array([self._write(n) for n in batch["shard"].tolist()], object)}

    def _write(self, number: int) -> str:
        try:
            self._job = self._job or self._cluster_job.job()
            if not (self._job.folder / shard_name(number)).exists():  # else one that died wrote it
                self._job.write(number)
        except LensError as error:  # Ray would bring home its text alone, within a traceback
            return str(error) or type(error).__name__
        return ""


def require_ray() -> Any:
    """The package.

    Raises:
        LensError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise LensError("The engine ray needs Ray Data, an extra: pip install 'lens_adapter[ray]'.") from error
    return ray


def look_at(load: Callable[[], Any], judge: Callable[[Any], _Thresholds]) -> tuple[dict[str, Any], _Thresholds]:
    """What the segmenter says of itself, and the thresholds of the run: asked where it can be loaded."""
    ray = require_ray()
    _start(ray)
    asked = ray.remote(num_cpus=1, num_gpus=_gpus(ray))(_facts).remote(load, judge)
    try:
        facts, thresholds = ray.get(asked)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LensError):
            raise error.cause from error
        raise
    return facts, thresholds


def write_shards(job: ClusterJob, missing: Sequence[int], actors: int | None) -> None:
    """Write shards on the cluster that this process is connected to (or a local one), with a bar that counts pictures.

    Args:
        missing: their numbers.
        actors: at most so many; default: one for each GPU, or for each CPU where there is none.

    Raises:
        InputError: what an actor says of its data, or of a picture or a prompt where errors stop the run.
    """
    ray = require_ray()
    _start(ray)
    gpus = _gpus(ray)
    most = actors or max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    shards = ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
    written = shards.map_batches(
        ShardWriter,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(missing))),
        num_cpus=1,
        num_gpus=gpus,
    )
    total = job.plan["pictures"]
    with tqdm(total=total, initial=total - pictures_in(missing, job.plan), desc="pictures", unit="picture") as bar:
        for row in written.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            bar.update(pictures_in([row["shard"]], job.plan))


def _facts(load: Callable[[], Any], judge: Callable[[Any], _Thresholds]) -> tuple[dict[str, Any], _Thresholds]:
    segmenter = load()
    return facts_of(segmenter), judge(segmenter)


def _start(ray: Any) -> None:
    """Connect to the cluster that the environment names, or start one here."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one that counts pictures


def _gpus(ray: Any) -> int:
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
