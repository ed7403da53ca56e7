"""Two processes share the shards; together they write what one alone writes."""

from __future__ import annotations

from pathlib import Path

from lens_adapter import annotate
from lens_adapter.annotation.rows import shards_in
from tests.annotation.standin import write_pictures
from tests.tiny.adapters import tiny_trio
from tests.tiny.processes import run_two

OPTIONS = {"prompts": ["a dog", "a cat"], "shard_size": 2, "batch_size": 3}


def work(rank: int, pictures: Path, output: Path, resume: bool) -> None:
    report = annotate(tiny_trio()[0], pictures, output, resume=resume, format="coco", preview=2, **OPTIONS)
    assert (report.pictures, report.rows, report.errors) == (7, 14, 2)


def test_two_processes_write_what_one_writes(tmp_path):
    write_pictures(tmp_path / "pictures", 6, (30, 20))
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    annotate(tiny_trio()[0], tmp_path / "pictures", tmp_path / "one", format="coco", preview=2, **OPTIONS)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    run_two(work, tmp_path / "pictures", tmp_path / "two", False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == expected
    for path in shards_in(tmp_path / "two")[:3]:
        path.unlink()
    run_two(work, tmp_path / "pictures", tmp_path / "two", True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == expected
