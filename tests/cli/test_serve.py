"""`lens-adapter serve` where the server cannot be."""

from __future__ import annotations

import sys

from lens_adapter.cli import main


def test_serve_without_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "lens_adapter.serving.server", raising=False)
    assert main(["serve", "--model", "builtin"]) == 1
    assert "pip install 'lens_adapter[serve]'" in capsys.readouterr().err
