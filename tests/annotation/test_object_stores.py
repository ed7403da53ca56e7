"""The lines of docs/ten-million-pictures.md about object stores work, with fsspec's own store in memory."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from lens_adapter import annotate
from lens_adapter.annotation.rows import read_rows, shards_in
from tests.annotation.standin import standin, write_pictures

PAGE = Path(__file__).parents[2] / "docs" / "ten-million-pictures.md"


@pytest.mark.once
def test_lists_come_from_a_store_and_annotations_go_there(tmp_path, monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    store = fsspec.filesystem("memory")
    monkeypatch.chdir(tmp_path)
    for stem in ("a", "b"):
        names = write_pictures(tmp_path / stem, 3)
        pictures = [{"bytes": (tmp_path / stem / name).read_bytes(), "path": name} for name in names]
        parquet.write_table(pa.table({"image": pictures}), tmp_path / f"{stem}.parquet", row_group_size=2)
        store.put(str(tmp_path / f"{stem}.parquet"), f"/bucket/lists/{stem}.parquet")
        (tmp_path / f"{stem}.parquet").unlink()
    for _ in range(2):  # once more goes on with what is there
        exec(lines.replace('"s3"', '"memory"'), {"adapter": standin, "prompts": ["a dog"]})
    for stem in ("a", "b"):
        kept = {Path(name).name for name in store.ls(f"/bucket/annotations/{stem}", detail=False)}
        assert kept == {"part-00000.parquet", "_annotations.json", "_annotations.lock"}
        store.get(f"/bucket/annotations/{stem}/", f"back/{stem}/", recursive=True)
        rows = list(read_rows(shards_in(tmp_path / "back" / stem)))
        assert [row["image"] for row in rows] == [f"{k:05d}.png" for k in range(3)] and not any(
            row["error"] for row in rows
        )
        annotate(standin, f"{stem}.parquet", f"back/{stem}", prompts=["a dog"], resume=True)  # on another machine
