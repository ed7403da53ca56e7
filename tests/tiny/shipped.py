"""What the package ships, in miniature: the four folders of `lens_adapter.builtin`, tiny and untrained."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_adapter import LensAdapter
from lens_adapter.builtin import names
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import tiny_sam, tiny_sam_model


def ship_tiny(folder: Path) -> None:
    """Write the folders vlm, sam, lens-mirror and lens-lite."""
    model, processor = tiny_pair("llava", "squash")
    model.save_pretrained(folder / "vlm")
    processor.save_pretrained(folder / "vlm")
    sam = tiny_sam()
    tiny_sam_model(sam).save_pretrained(folder / "sam")
    for fusion, width in (("mirror", {}), ("lite", {"fusion_width": 32})):
        settings = {"fusion": fusion, "sam": sam, "num_keypoints": 3, "suppression_radius": 1.0, **width}
        settings["routing_question"] = "{prompt}?"  # it spells words out, and takes 256 tokens
        with LensAdapter.from_model(model, processor, load_sam=False, **settings) as adapter:
            adapter.decoder.load_weights(folder / "sam")
            adapter.save_pretrained(folder / f"lens-{fusion}")


def use_shipped(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let `lens_adapter.builtin` load from `folder`."""
    patch.setattr(names, "VLM", folder / "vlm")
    patch.setattr(names, "SAM", folder / "sam")
    folders = {"mirror": "lens-mirror", "lite": "lens-lite", "lite-sam2": "lens-lite"}
    patch.setattr(names, "HEADS", {name: folder / given for name, given in folders.items()})
