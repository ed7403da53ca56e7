"""`lens-adapter app` where the page cannot be."""

from __future__ import annotations

import sys

from lens_adapter.cli import main


def test_app_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "lens_adapter.app.page", raising=False)
    monkeypatch.delitem(sys.modules, "lens_adapter.app.looks", raising=False)
    assert main(["app"]) == 1
    assert "pip install 'lens_adapter[app]'" in capsys.readouterr().err
