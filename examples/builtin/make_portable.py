"""Bring the shipped base and SAM into the layout that both transformers 4 and 5 read.

transformers 5 reads what transformers 4 wrote, but not the other way round: its names for the tower's weights and its
processor files are new. So run this under the oldest version supported, after the training scripts.

    PYTHONPATH=.oldest python examples/builtin/make_portable.py
"""

from __future__ import annotations

from pathlib import Path

import transformers
from recipe import SHIPPED, build_processor
from safetensors.torch import load_file, save_file
from train_sam import SIDE
from transformers import SamImageProcessor, SamProcessor

TOWER, OLD_TOWER = "vision_tower.", "vision_tower.vision_model."


def rename_tower(path: Path) -> None:
    """Give the tower's weights in a safetensors file the names of transformers 4."""
    weights = load_file(path)
    renamed = {
        OLD_TOWER + name.removeprefix(TOWER)
        if name.startswith(TOWER) and not name.startswith(OLD_TOWER)
        else name: tensor
        for name, tensor in weights.items()
    }
    save_file(renamed, path, metadata={"format": "pt"})


def main() -> None:
    if int(transformers.__version__.partition(".")[0]) > 4:
        raise SystemExit(f"transformers {transformers.__version__}: use 4.57, which `make .oldest/.ready` installs.")
    rename_tower(SHIPPED / "vlm" / "model.safetensors")
    build_processor().save_pretrained(SHIPPED / "vlm")
    square = {"height": SIDE, "width": SIDE}
    SamProcessor(SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)).save_pretrained(SHIPPED / "sam")


if __name__ == "__main__":
    main()
