"""What ships with the package: folders and names. Imports nothing heavy, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
VLM = FOLDER / "vlm"
SAM = FOLDER / "sam"
SAM2 = FOLDER / "sam2"  # `sam="builtin-sam2"`
# "mirror" and "lite" decode with the tiny SAM of segment-anything, "lite-sam2" with the tiny SAM 2.
HEADS = {name: FOLDER / f"lens-{name}" for name in ("mirror", "lite", "lite-sam2")}
DEFAULT_HEAD = "lite-sam2"  # of the demo and the page, and where "builtin" is asked for
# What `LensAdapter.from_pretrained` and every command take in the place of a head's folder or repository.
HEAD_NAMES = {"builtin": DEFAULT_HEAD} | {f"builtin-{name}": name for name in HEADS}

ONLY_ITS_WORLD = (
    "The built-in model knows one small world only: 64 everyday things as lens_adapter.builtin.world draws them, and "
    "the words for them. On other pictures its masks and answers mean little. For real photographs attach a head to a "
    "real model (see README)."
)


def head_folder(name: Any) -> Any:
    """The folder of the shipped head that `name` stands for (see `HEAD_NAMES`); any other name as it is."""
    return HEADS[HEAD_NAMES[name]] if isinstance(name, str) and name in HEAD_NAMES else name
