"""Batches are prepared ahead: in order, one at most, and what goes wrong arrives where it belongs."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch
from PIL import Image

from lens_adapter.errors import InputError
from lens_adapter.segmentation import one_ahead, read_sizes
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


# -- masks at the size of what the pictures are copies of --------------------------------------------------------------


def test_masks_and_keypoints_are_at_the_size_of_the_original():
    adapter = tiny_trio(mask_threshold=0.5, dense_prompt=False)[0]  # whose masks have outlines
    small, (height, width) = IMAGES[0], (244, 388)  # four times as large
    own = adapter.segment(small, "a dog", score_threshold=0, instances=True)
    out = adapter.segment(small, "a dog", image_sizes=(height, width), score_threshold=0, instances=True)
    assert out.image_size == (height, width) and out.masks.shape == (1, height, width) and out.image is None
    assert torch.equal(out.scores, own.scores) and torch.allclose(out.keypoints[0], 4 * own.keypoints[0], atol=1e-3)
    expected = torch.nn.functional.interpolate(own.masks[None].float(), (height, width))[0].bool()
    assert 0.1 < own.masks.float().mean() < 0.9 and (out.masks != expected).float().mean() < 0.1  # outlines are finer
    assert torch.equal(out.instances[0].masks.any(0), out.masks[0])
    out.image = small.resize((width, height))
    assert out.plot().width >= width


def test_of_several_images_each_has_its_own():
    adapter = tiny_trio()[0]
    first, second = adapter.segment(IMAGES[:2], ["a dog", ["a", "b"]], image_sizes=[(122, 194), (84, 40)])
    assert first.masks.shape == (1, 122, 194) and second.masks.shape == (2, 84, 40)
    assert first.image is None and second.image.size == (40, 84)


@pytest.mark.parametrize(
    "images, sizes, said",
    [
        (IMAGES[0], (97, 61), "expected the same shape"),  # the wrong way round
        (IMAGES[0], (610, 400), "expected the same shape"),
        (IMAGES[0], [(61, 97)], r"each \(H, W\) must be a list of whole numbers; got \[\(61, 97\)\]"),
        (IMAGES[0], (61.0, 97.0), "must be a list of whole numbers; got"),
        (IMAGES[0], (0, 0), "expected a height and a width from 1 to 65536 pixels, got"),
        (IMAGES[0], (61 * 2**20, 97 * 2**20), "expected a height and a width from 1 to 65536 pixels, got"),
        (IMAGES[:2], [(61, 97)], "for 2 images"),
        (IMAGES[:2], (61, 97), r"each \(H, W\) must be a list of whole numbers; got 61"),
        (IMAGES[:2], 61, r"expected a list of \(H, W\), got 61"),
    ],
)
def test_sizes_that_no_original_has_are_refused(images, sizes, said):
    adapter = tiny_trio()[0]
    with pytest.raises(InputError, match=said):
        adapter.segment(images, ["a dog"] * 2 if isinstance(images, list) else "a dog", image_sizes=sizes)


def test_any_rounding_of_the_same_shape_is_taken():
    for height, width in [(3000, 4000), (3001, 4003), (3007, 4001), (17, 16001)]:
        for scale in (1, 2, 4, 8):
            small = Image.new("RGB", (-(-width // scale), -(-height // scale)))
            assert read_sizes((height, width), [(small, ["a"])], small) == [(height, width)]
