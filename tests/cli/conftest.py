"""Folders that commands read, and the local Hub that some of them talk to."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_adapter import LensAdapter
from tests.hub.conftest import hub, naps, saved
from tests.tiny.models import tiny_language_model
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, tiny_sam

__all__ = ["folders", "hub", "naps", "saved"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """A picture, a base and a head on disk, and a base that is none."""
    folder = tmp_path_factory.mktemp("cli")
    model, processor = tiny_pair("llava")
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    with LensAdapter.from_model(model, processor, load_sam=False, sam=tiny_sam(), mask_threshold=0.5) as adapter:
        adapter.save_pretrained(folder / "head")
    tiny_language_model().save_pretrained(folder / "text-only")
    noise_image(45, 60).save(folder / "photo.png")
    (folder / "broken.png").write_bytes(b"no picture at all")
    return folder
