"""What is no list of whole numbers, no size and no phrase is an `InputError`, whoever is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens_adapter.errors import InputError, LensConfigError
from lens_adapter.signals import whole_numbers
from tests.tiny.adapters import ready_inputs, tiny_trio
from tests.tiny.sam import noise_image

ODD = [5, 0.5, "ab", b"\1", {"a": 1}, {1: 2}, [0.5], ["a"], [None], [[1]], [True], torch.ones(2), np.ones(2), ...]


@pytest.fixture(scope="module")
def trio():
    return tiny_trio()


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_layers_and_queries_are_whole_numbers(trio, odd):
    adapter, _, processor = trio
    inputs = ready_inputs(processor)
    for name in ("layers", "query"):
        with pytest.raises(InputError, match=rf"^{name}\b.* must be"):
            adapter.prefill(inputs, **{name: odd})
        with pytest.raises(InputError, match=rf"^{name}\b.* must be"), adapter.capture(**{name: odd}):
            pass


@pytest.mark.parametrize(
    "odd", [*ODD, [(1,)], [(1, 2, 3)], [("480", "640")], [(0, 5)], [(-1, 5)], [(10**400, 5)], [None]], ids=repr
)
def test_sizes_are_pairs_of_whole_numbers(trio, odd):
    adapter, _, processor = trio
    with pytest.raises(InputError, match=r"^image_sizes"):
        adapter.layout(ready_inputs(processor), odd)


@pytest.mark.parametrize("odd", [5, 0.5, {"a": 1}, [5], [None], [["a"]], b"a", ...], ids=repr)
def test_phrases_are_texts_or_expressions(trio, odd):
    with pytest.raises(InputError, match=r"phrase.* must be"):
        trio[0].ground(noise_image(50, 70), "A dog.", odd)


def test_numbers_in_any_list_are_taken():
    for given in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), [np.int64(1), torch.tensor(2)]):
        assert whole_numbers("layers", given) == (1, 2)


def test_layers_that_the_model_lacks_are_named(trio):
    with pytest.raises(LensConfigError, match="decoder layers from 0 to 3"):
        trio[0].prefill(ready_inputs(trio[2]), layers=[10**400])
