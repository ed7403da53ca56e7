"""`lens-adapter probe`."""

from __future__ import annotations

import json

from lens_adapter.cli import main
from tests.data.formats import reference
from tests.data.test_refer import write_set


def test_probe_takes_every_format(folders, tmp_path, capsys):
    root = write_set(tmp_path / "refer_seg", [reference(1, 11, 1, ["a dog", "it"], "val")])
    files = ["-o", str(tmp_path / "layers.png"), "--json", str(tmp_path / "layers.json")]
    data = [str(root), "format=refer", "split=val"]
    assert main(["probe", "--model", str(folders / "base"), "--data", *data, *files]) == 0
    assert json.loads((tmp_path / "layers.json").read_text())["examples"] == 2
