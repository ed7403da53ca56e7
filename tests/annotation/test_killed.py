"""Killed at any moment, or without room on the disk: the same rows, none lost, none twice, no half file."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path
from signal import SIGKILL

import pytest
from pyarrow import parquet

from lens_adapter import annotate
from lens_adapter.annotation.rows import read_rows, shards_in
from tests.annotation.standin import slow_standin, write_pictures
from tests.tiny.processes import SERVER, run_alone

OPTIONS = {"prompts": ["a dog", "a cat"], "shard_size": 7, "batch_size": 4, "format": "coco", "preview": 2}


def run(pictures: Path, output: Path, resume: bool) -> None:
    annotate(slow_standin, pictures, output, resume=resume, **OPTIONS)


def run_without_room(pictures: Path, output: Path) -> None:
    """No file may become longer than 3000 bytes: the manifest may, as a shard may not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        annotate(slow_standin, pictures, output, **OPTIONS)
    except OSError:
        os._exit(7)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Pictures, and what a run leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("killed")
    write_pictures(folder / "pictures", 100)
    annotate(slow_standin, folder / "pictures", folder / "out", **OPTIONS)
    rows = list(read_rows(shards_in(folder / "out")))
    assert len(rows) == 200 and len(shards_in(folder / "out")) == 15
    return folder / "pictures", everything_in(folder / "out")


def test_killed_at_any_moment_and_gone_on_with(whole, tmp_path):
    pictures, expected = whole
    chance, output, kills = random.Random(5), tmp_path / "out", 0
    while kills < 4:
        process = SERVER.Process(target=run, args=(pictures, output, kills > 0))
        process.start()
        begun = len(shards_in(output))
        while process.is_alive() and len(shards_in(output)) == begun:  # the process imports first
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.06))
        process.kill()
        process.join()
        kills += 1
        for path in shards_in(output):
            assert path.read_bytes() == expected[path.name]  # whole, or not there at all
        assert process.exitcode == -SIGKILL
    assert 4 <= len(shards_in(output)) < 15
    assert run_alone(run, pictures, output, True) == 0
    assert everything_in(output) == expected


def test_a_full_disk_leaves_nothing_under_a_final_name(whole, tmp_path):
    pictures, expected = whole
    output = tmp_path / "out"
    assert run_alone(run_without_room, pictures, output) == 7
    assert {path.name for path in output.iterdir() if path.suffix != ".lock"} <= set(expected)
    for path in shards_in(output):
        parquet.read_table(path)
    run(pictures, output, True)
    assert everything_in(output) == expected
