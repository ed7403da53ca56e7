"""The models that ship with the package: a tiny vision-language model, a tiny SAM, and two LENS heads.

Each is an ordinary folder in Hub layout beside this file, made by `examples/builtin/`. They know one small world of
colored shapes (`lens_adapter.data.scenes`) and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
VLM = FOLDER / "vlm"
SAM = FOLDER / "sam"
HEADS = {"mirror": FOLDER / "lens-mirror", "lite": FOLDER / "lens-lite"}


def load_base() -> tuple[Any, Any]:
    """The frozen vision-language model, in eval mode, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(VLM, local_files_only=True).eval()
    return model, AutoProcessor.from_pretrained(VLM, local_files_only=True)


def load_head(name: str = "mirror") -> Any:
    """One of the two LENS adapters, not attached."""
    from lens_adapter.adapter import LensAdapter

    return LensAdapter.from_pretrained(HEADS[name], local_files_only=True)
