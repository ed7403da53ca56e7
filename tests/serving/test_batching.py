"""Who waits, and with whom."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Event
from time import sleep

import pytest
from PIL import Image

from lens_adapter.errors import InputError
from lens_adapter.serving import batching
from lens_adapter.serving.batching import Batcher
from lens_adapter.serving.requests import AnswerOptions, SegmentationRequest

PATIENCE = 60  # seconds


def request(*prompts):
    return SegmentationRequest(Image.new("RGB", (2, 2)), list(prompts or ["a"]), AnswerOptions())


@pytest.fixture
def batches(monkeypatch):
    """The prompts that were asked about together; each answer is its own prompts."""
    batches = []

    def answer_all(adapter, requests, batch_size):
        assert adapter.wait(PATIENCE)
        batches.append([one.prompts for one in requests])
        return [InputError("bad") if "bad" in one.prompts else {"results": one.prompts} for one in requests]

    monkeypatch.setattr(batching, "answer_all", answer_all)
    return batches


@contextmanager
def loaded(gate):
    yield gate


def test_those_that_wait_go_together_as_far_as_they_fit(batches):
    gate = Event()
    batcher = Batcher(lambda: loaded(gate), batch_size=3, collecting=0)
    batcher.start()
    first = batcher.submit(request("0"))
    while batcher._waiting:  # until it is at work, where the gate holds it
        sleep(0.001)
    others = [batcher.submit(request(*texts)) for texts in ("a", "bc", "defgh", "i", "j")]
    gate.set()
    batcher.close()
    assert batches == [[["0"]], [["a"], ["b", "c"]], [["d", "e", "f", "g", "h"]], [["i"], ["j"]]]
    assert [future.result(0)["results"] for future in (first, *others)][1:3] == [["a"], ["b", "c"]]
    with pytest.raises(RuntimeError, match="no more requests"):
        batcher.submit(request())


def test_the_first_waits_for_others(batches):
    gate = Event()
    gate.set()
    batcher = Batcher(lambda: loaded(gate), batch_size=2, collecting=PATIENCE)
    batcher.start()
    futures = [batcher.submit(request("a")), batcher.submit(request("bad"))]
    assert futures[0].result(PATIENCE) == {"results": ["a"]}
    with pytest.raises(InputError):
        futures[1].result(PATIENCE)
    assert batches == [[["a"], ["bad"]]]
    last = batcher.submit(request("c"))
    batcher.close()  # nobody comes any more
    assert last.result(0) == {"results": ["c"]} and not batcher.ready


def test_who_has_gone_is_not_asked_about(batches):
    gate = Event()
    batcher = Batcher(lambda: loaded(gate), batch_size=1, collecting=0)
    batcher.start()
    batcher.submit(request("0"))
    while batcher._waiting:
        sleep(0.001)
    gone = batcher.submit(request("gone"))
    assert gone.cancel()
    gate.set()
    batcher.close()
    assert batches == [[["0"]], []]


def test_without_a_model_nobody_waits_for_ever():
    failed = Event()

    def load():
        raise InputError("no such head")

    batcher = Batcher(load, failed.set)
    waiting = batcher.submit(request())
    batcher.start()
    with pytest.raises(InputError, match="no such head"):
        waiting.result(PATIENCE)
    assert failed.wait(PATIENCE) and isinstance(batcher.error, InputError) and not batcher.ready
    batcher.close()
