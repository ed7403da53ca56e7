"""The engine ray, on a cluster of two workers here: the rows of the local engine, also where a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from lens_adapter import annotate
from lens_adapter.annotation.rows import shards_in
from lens_adapter.errors import InputError, LensError
from tests.annotation.standin import standin, write_jsonl, write_pictures

OPTIONS = {"prompts": ["a dog", "a cat"], "shard_size": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # of the workers
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_raylet_start_wait_time_s", "240")  # on a busy machine it comes up late
        patch.setenv("RAY_agent_register_timeout_ms", "300000")
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "pictures"
    write_pictures(folder, 20)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def load_standin():
    return standin


def load_mortal(marker: Path):
    """A segmenter that takes its process with it, once, in the middle of a shard."""
    calls = []

    def mortal(images, prompts):
        calls.append(1)
        if len(calls) == 2:
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return standin(images, prompts)
            os.kill(os.getpid(), signal.SIGKILL)
        return standin(images, prompts)

    mortal.__module__, mortal.__qualname__ = standin.__module__, standin.__qualname__
    return mortal


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_rows_are_those_of_the_local_engine_also_where_a_worker_is_killed(cluster, pictures, tmp_path):
    annotate(standin, pictures, tmp_path / "local", format="coco", preview=2, **OPTIONS)
    load = partial(load_mortal, tmp_path / "died")
    report = annotate(load, pictures, tmp_path / "ray", engine="ray", format="coco", preview=2, **OPTIONS)
    assert (tmp_path / "died").exists()
    assert everything_in(tmp_path / "ray") == everything_in(tmp_path / "local")
    assert (report.rows, report.errors) == (42, 2)
    shards_in(tmp_path / "ray")[2].unlink()
    annotate(load_standin, pictures, tmp_path / "ray", engine="ray", actors=1, resume=True, **OPTIONS)
    assert len(shards_in(tmp_path / "ray")) == 7


def test_errors_of_actors_are_ours(cluster, pictures, tmp_path):
    listed = write_jsonl(tmp_path / "list.jsonl", [{"image": "gone.png", "prompt": "a dog"}])
    with pytest.raises(InputError, match=r"gone\.png"):
        annotate(load_standin, listed, tmp_path / "out", engine="ray", on_error="stop")


def test_an_adapter_is_not_sent_along(pictures, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="a function without arguments"):
        annotate(7, pictures, tmp_path / "out", engine="ray", prompts="a dog")


def test_without_ray_it_is_said_what_to_install(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LensError, match=r"pip install 'lens_adapter\[ray\]'"):
        annotate(load_standin, pictures, tmp_path / "out", engine="ray", prompts="a dog")
