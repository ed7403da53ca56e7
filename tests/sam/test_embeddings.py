from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from PIL import Image

from lens_adapter import EmbeddingCache
from lens_adapter.errors import InputError
from tests.tiny.adapters import same_output, tiny_trio
from tests.tiny.sam import noise_image, randomize, tiny_decoder, tiny_sam_model

pytestmark = pytest.mark.once  # the decoder here is segment-anything's

IMAGES = [noise_image(61, 97), noise_image(84, 40, seed=1), noise_image(33, 33, seed=2)]
ONE = 32 * 8 * 8 * 4  # bytes of one embedding of the tiny SAM


def count_encoded(decoder) -> list[int]:
    """How many images each run of the image encoder had, from now on."""
    counts: list[int] = []
    decoder.image_encoder.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    return counts


def test_an_image_is_encoded_once_by_its_content():
    decoder, cache = tiny_decoder(), EmbeddingCache()
    counts = count_encoded(decoder)
    first = cache.encode(decoder, IMAGES[:2])
    again = cache.encode(decoder, [IMAGES[2], IMAGES[0].copy(), IMAGES[2]])  # one of them twice in a call
    assert counts == [1, 1, 1] and len(cache) == 3 and cache.nbytes == 3 * ONE
    assert torch.equal(again[1], first[0]) and torch.equal(again[0], again[2])
    for image, embedding in zip(IMAGES, (first[0], first[1], again[0]), strict=True):
        torch.testing.assert_close(embedding, decoder.encode_images([image])[0])
    changed = IMAGES[0].copy()
    changed.putpixel((5, 5), (1, 2, 3))
    turned = IMAGES[0].transpose(2)
    flat = Image.frombytes("RGB", IMAGES[0].size[::-1], IMAGES[0].tobytes())  # the same bytes, other rows
    counts.clear()
    cache.encode(decoder, [changed, turned, flat])
    assert counts == [1] * 3


def test_the_same_picture_at_the_encoders_own_size_is_the_same():
    """All that an embedding depends on; so it is what segment prepares ahead, and it is not resized again."""
    decoder, cache = tiny_decoder(), EmbeddingCache()
    counts = count_encoded(decoder)
    for image in IMAGES:
        shrunk = decoder.shrink(image)
        assert torch.equal(decoder.shrink(shrunk), shrunk) and shrunk.dtype == torch.uint8
        assert torch.equal(decoder.preprocess([shrunk])[0], decoder.preprocess([image])[0])
    (first,) = cache.encode(decoder, IMAGES[:1])
    (again,) = cache.encode(decoder, [decoder.shrink(IMAGES[0])])
    assert torch.equal(first, again) and counts == [1]


def test_the_bound_holds_and_the_oldest_go_first():
    decoder, cache = tiny_decoder(), EmbeddingCache(max_bytes=2 * ONE + 1)
    counts = count_encoded(decoder)
    for index in (0, 1, 0, 2):  # 1 is the one used longest ago
        cache.encode(decoder, [IMAGES[index]])
        assert cache.nbytes <= cache.max_bytes
    cache.encode(decoder, [IMAGES[0]])
    assert counts == [1, 1, 1]
    cache.encode(decoder, [IMAGES[1]])
    assert counts == [1, 1, 1, 1]
    assert len(cache.encode(decoder, IMAGES)) == 3  # more than it holds, all returned
    cache.clear()
    assert len(cache) == cache.nbytes == 0
    none = EmbeddingCache(max_bytes=0)
    none.encode(decoder, IMAGES)
    assert len(none) == 0


def test_an_impossible_bound_is_refused():
    for bound in (-1, 1.5, None):
        with pytest.raises(InputError, match="max_bytes must be an integer of at least 0"):
            EmbeddingCache(bound)


CHANGES = {
    "load_weights": lambda adapter, folder: adapter.decoder.load_weights(folder),
    "load_image_encoder": lambda adapter, folder: adapter.decoder.load_image_encoder(folder),
    "to": lambda adapter, _: adapter.to(torch.float64),
    "state": lambda adapter, _: adapter.load_state_dict({k: v + 1 for k, v in adapter.state_dict().items()}),
    "in place": lambda adapter, _: randomize(adapter.decoder.image_encoder, seed=3),
    "replaced": lambda adapter, _: setattr(adapter.decoder, "image_encoder", tiny_decoder(seed=4).image_encoder),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_empty_the_cache(change, tmp_path):
    adapter, _, _ = tiny_trio()
    tiny_sam_model(adapter.config.sam, seed=5).save_pretrained(tmp_path)
    before = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    CHANGES[change](adapter, tmp_path)
    after = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    adapter.embedding_cache = None
    assert same_output(after, adapter.segment(IMAGES[0], "the cat", return_logits=True))
    assert not same_output(after, before)


def test_there_and_back_again_does_not_bring_old_embeddings_back():
    adapter, _, _ = tiny_trio()
    adapter.segment(IMAGES[0], "the cat")
    assert len(adapter.embedding_cache) == 1
    adapter.to(torch.bfloat16)
    assert len(adapter.embedding_cache) == 0
    adapter.to(torch.float32)
    counts = count_encoded(adapter.decoder)
    adapter.segment(IMAGES[0], "the cat")
    assert counts == [1]


def test_calls_of_segment_share_the_cache_unless_it_is_off():
    adapter, _, _ = tiny_trio()
    counts = count_encoded(adapter.decoder)
    first = adapter.segment(IMAGES, ["the cat"] * 3, return_logits=True)
    again = adapter.segment(IMAGES, [["the cat", "a dog"]] * 3, return_logits=True)
    assert counts == [1, 1, 1]
    for one, two in zip(first, again, strict=True):
        torch.testing.assert_close(one.logits[0], two.logits[0], atol=2e-4, rtol=0)
    adapter.embedding_cache = None
    adapter.segment(IMAGES[0], "the cat")
    assert counts == [1] * 4


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_what_was_made_without_gradients_serves_with_them(context):
    adapter, _, _ = tiny_trio()
    with context():
        adapter.segment(IMAGES[0], "the cat")
    (embedding,) = adapter.embedding_cache.encode(adapter.decoder, IMAGES[:1])
    assert not embedding.is_inference() and not embedding.requires_grad


def test_it_is_in_no_copy_pickle_or_checkpoint(tmp_path):
    adapter, _, _ = tiny_trio()
    adapter.embedding_cache = None
    adapter.segment(IMAGES[0], "the cat")  # from now on it is not asked whether it was trained
    empty = len(pickle.dumps(adapter))
    adapter.embedding_cache = EmbeddingCache(max_bytes=12345)
    adapter.segment(IMAGES[0], "the cat")
    assert len(adapter.embedding_cache) == 1
    assert abs(len(pickle.dumps(adapter)) - empty) < ONE
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert len(twin.embedding_cache) == 0 and twin.embedding_cache.max_bytes == 12345
        assert twin.embedding_cache is not adapter.embedding_cache
    assert not [name for name in adapter.state_dict() if "embedding_cache" in name]
    adapter.save_pretrained(tmp_path)
    assert "embedding_cache" not in (tmp_path / "config.json").read_text()


def test_threads_may_share_one():
    decoder, cache = tiny_decoder(), EmbeddingCache(max_bytes=2 * ONE)
    expected = [decoder.encode_images([image])[0] for image in IMAGES]
    wrong, start = [], threading.Barrier(4)

    def work(seed: int) -> None:
        start.wait()
        for step in range(20):
            index = (seed + step) % 3
            if not torch.equal(cache.encode(decoder, [IMAGES[index]])[0], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.nbytes <= cache.max_bytes
