"""`lens-adapter env`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lens_adapter
from lens_adapter.cli import main


def test_env_names_versions_and_no_secrets(capsys, monkeypatch):
    secret = "hf_thisisnobodysbusiness"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("HF_ENDPOINT", f"https://me:{secret}@hub.example")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    packages = ("torch", "transformers", "huggingface-hub", "segment-anything", "gradio")
    for name in ("lens_adapter", "python", "platform", *packages, "accelerator", "cuda", "threads"):
        assert f"\n{name} " in f"\n{printed}" and name in facts
    assert facts["lens_adapter"] == lens_adapter.__version__ and facts["HF_HUB_OFFLINE"] == "1"
    assert facts["shipped_models"] == ["lens-lite", "lens-lite-sam2", "lens-mirror", "sam", "sam2", "vlm"]
    assert secret not in printed and str(Path.home()) not in printed and str(Path.cwd()) not in printed


def test_env_where_torch_is_broken(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["env"]) == 0
    assert "accelerator unknown, torch cannot be imported (ModuleNotFoundError)" in capsys.readouterr().out
