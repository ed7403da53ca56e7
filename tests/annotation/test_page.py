"""The example of docs/annotate.md runs, and its rows are read as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pycocotools import mask as coco

from lens_adapter.annotation.rows import SCHEMA, read_rows, shards_in

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "annotate.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "docs/annotate.md", "exec"), {})
    rows = list(read_rows(shards_in(tmp_path / "annotations")))
    assert capsys.readouterr().out.startswith("pictures 6, rows 12, of these found ")
    assert any(row["found"] for row in rows) and (tmp_path / "annotations" / "_preview.html").exists()
    assert all(coco.decode(row["rle"]).sum() == row["area"] for row in rows)


def test_the_page_names_every_column():
    table = re.findall(r"^\| (`.*?) \|", PAGE.partition("| column |")[2].partition("\n\n")[0], re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(table)) == SCHEMA.names


def test_the_figures_are_those_measured():
    record = json.loads((ROOT / "results" / "annotate_memory.json").read_text())
    said = " ".join(PAGE.partition("## Memory and speed")[2].split())
    for kind, what in (("list", "a list of {pictures} tiny pictures"), ("model", "over {pictures} scenes")):
        found = record[kind]
        assert what.format(**found) in said
        assert (
            f"{found['resident_mib_at_most']} MiB at most and {found['resident_mib_at_the_end']} MiB at the end" in said
        )
