"""Batches are prepared ahead: in order, one at most, and what goes wrong arrives where it belongs."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch

from lens_adapter.errors import InputError
from lens_adapter.segmentation import one_ahead
from tests.tiny.adapters import tiny_trio
from tests.tiny.sam import noise_image

IMAGES = [noise_image(61, 97), noise_image(84, 40, seed=1), noise_image(70, 70, seed=2)]


def preparing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_the_next_one_is_made_meanwhile_and_none_beyond_it():
    made, begun = [], threading.Semaphore(0)

    def make(item: int) -> int:
        made.append(item)
        begun.release()
        return item * item

    with closing(one_ahead(make, list(range(5)))) as found:
        begun.acquire(timeout=0)
        for item in range(5):
            assert next(found) == item * item
            while len(made) < min(item + 2, 5):  # the next one, which nobody asked for
                assert begun.acquire(timeout=30)
            assert made == list(range(min(item + 2, 5)))
    assert not preparing()


def test_a_single_one_needs_no_thread():
    assert list(one_ahead(lambda _: threading.current_thread(), [1])) == [threading.main_thread()]
    assert list(one_ahead(str, [])) == []


def test_an_error_arrives_when_its_turn_has_come():
    def make(item: int) -> float:
        return 1 / item

    found = one_ahead(make, [1, 0, 2])
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert not preparing()


def test_who_stops_early_leaves_no_thread():
    with closing(one_ahead(str, [1, 2, 3])) as found:
        assert next(found) == "1"
    assert not preparing()


def test_a_prompt_of_the_second_batch_is_refused_by_name():
    adapter, _, _ = tiny_trio()
    read = []
    forward = adapter.decoder.image_encoder.register_forward_pre_hook(lambda _, args: read.append(len(args[0])))
    with pytest.raises(InputError, match="special tokens"):
        adapter.segment(IMAGES, ["the cat", "<image> dog", "a dog"])
    forward.remove()
    assert read == [1] and not preparing()  # the first batch had its turn
    (first, *_) = adapter.segment(IMAGES, ["the cat", "a dog", "a dog"], return_logits=True)
    torch.testing.assert_close(first.logits, adapter.segment(IMAGES[0], "the cat", return_logits=True).logits)


def test_an_accelerator_encodes_the_picture_while_the_only_batch_is_prepared():
    adapter, _, _ = tiny_trio()
    order: list[str] = []
    forward = adapter.decoder.image_encoder.register_forward_pre_hook(lambda *_: order.append("encode"))
    prepare = adapter.base.prepare
    adapter.base.prepare = lambda *args, **options: (order.append("prepare"), prepare(*args, **options))[1]
    adapter.segment(IMAGES[0], "the cat")
    assert order == ["encode", "prepare"]
    adapter.segment(IMAGES[1:], ["the cat", "a dog"])  # the first of several is prepared by a thread
    forward.remove()
    assert sorted(order[2:]) == ["encode", "encode", "prepare", "prepare"] and order[2] == "prepare"


def test_an_error_of_the_model_arrives_as_it_is():
    adapter, _, _ = tiny_trio()

    def fail(*_):
        raise MemoryError("no memory left")

    adapter.decoder.image_encoder.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="no memory left"):
        adapter.segment(IMAGES, ["the cat"] * 3)
    assert not preparing()
