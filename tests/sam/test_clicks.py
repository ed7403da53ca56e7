"""One mask for every click, united where they are not of one thing."""

from __future__ import annotations

import torch

from lens_adapter.sam.clicks import masks_of_clicks
from lens_adapter.signals import Keypoints, SparsePrompts
from tests.tiny.sam import noise_image, tiny_decoder

SIZES = [(64, 64), (40, 60), (50, 50)]


def prompts(shown: list[list[bool]]) -> SparsePrompts:
    points = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor(shown)
    return SparsePrompts(
        Keypoints(points, torch.ones(3, 2), valid), valid, None, None, torch.zeros(3, 4, 4), torch.tensor([[4, 4]] * 3)
    )


@torch.no_grad()
def test_each_click_is_a_call_of_its_own():
    decoder = tiny_decoder()
    embeddings = decoder.encode_images([noise_image(*size, seed=k) for k, size in enumerate(SIZES)])
    index, given = torch.arange(3), prompts([[True, True], [True, False], [False, False]])
    logits, quality, things = masks_of_clicks(decoder, given, embeddings, index, SIZES)
    assert logits.shape == (3, 32, 32) and quality.shape == (3,)
    for row, k in ((0, 0), (0, 1), (1, 0)):
        sparse = decoder.clicks(given.keypoints.points[row : row + 1, k : k + 1], [SIZES[row]])
        alone, own, _ = decoder(embeddings, index[row : row + 1], sparse)
        if k == 0:
            torch.testing.assert_close(things[row][0], alone[0])
            torch.testing.assert_close(quality[row], own[0])
    torch.testing.assert_close(logits[1], things[1][0])
    assert torch.equal(logits[0], things[0].amax(0)) and len(things[2]) == 0
    assert not (logits[2] > 0).any() and quality[2] == 0  # nothing was clicked on
