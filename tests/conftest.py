"""What holds for every test: one thread, a cheap garbage collector, no precision left behind."""

from __future__ import annotations

import gc
import os

import pytest

# One thread per process: the models are tiny, and the processes of pytest-xdist would fight over the cores.
# Read when torch and tokenizers are imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="module")
def _cheap_garbage_collection() -> None:
    """The collector passes over what was there before the module: a million objects of torch and transformers, while
    every training and some tests collect garbage by name. What the tests make is collected as ever."""
    gc.set_threshold(20_000)  # objects that a tiny model and a forward or two are made of
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_precision_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4 leaves the precision of a training in the environment, where the next one would take it up."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
