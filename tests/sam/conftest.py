"""Saved models of every family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny.families import INSTALLED, save_family


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each family that the installed transformers has; read only."""
    return {name: save_family(name, tmp_path_factory.mktemp(name)) for name in INSTALLED}
