"""One thread per process: the models are tiny, and the processes of pytest-xdist would fight over the cores."""

import os

import pytest

# Read when torch and tokenizers are imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _no_precision_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4 leaves the precision of a training in the environment, where the next one would take it up."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
