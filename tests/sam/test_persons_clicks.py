"""What a person's clicks mean."""

from __future__ import annotations

import torch

from lens_adapter import LensConfig, builtin
from lens_adapter.builtin.world.scenes import sample_scene
from lens_adapter.evaluation import overlap
from lens_adapter.sam.clicks import clicked_mask
from lens_adapter.sam.segment_anything import SamDecoder
from tests.tiny.sam import noise_image, tiny_decoder

SIDE = 192


def test_background_clicks_are_those_of_sam():
    decoder, points = tiny_decoder(), torch.tensor([[[0.25, 0.5], [0.75, 0.5]]])
    labels = torch.tensor([[True, False]])
    pixels = points * torch.tensor([64.0, 32.0])  # 40 x 80 lies in the upper half of the square
    expected, _ = decoder.prompt_encoder(points=(pixels, labels.int()), boxes=None, masks=None)
    assert torch.equal(decoder.clicks(points, [(40, 80)], labels), expected)
    assert torch.equal(decoder.clicks(points, [(40, 80)]), decoder.clicks(points, [(40, 80)], labels | True))


def test_without_a_foreground_click_nothing_is_drawn():
    decoder = tiny_decoder()
    (embedding,) = decoder.encode_images([noise_image(40, 80)])
    for count in (0, 2):
        logits = clicked_mask(decoder, embedding, torch.rand(count, 2), torch.zeros(count, dtype=torch.bool), (40, 80))
        assert logits.shape == (32, 32) and not decoder.masks(logits[None], (40, 80), 0.5).any()


def test_one_click_is_a_call_of_sam():
    decoder, points = tiny_decoder(), torch.tensor([[0.3, 0.4]])
    (embedding,) = decoder.encode_images([noise_image(64, 64)])
    logits = clicked_mask(decoder, embedding, points, torch.tensor([True]), (64, 64))
    expected, *_ = decoder(embedding[None], torch.zeros(1, dtype=torch.long), decoder.clicks(points[None], [(64, 64)]))
    assert torch.equal(logits, expected[0])


def test_clicks_on_two_things_draw_both():
    decoder = SamDecoder({**LensConfig(sam="builtin").sam, "include_image_encoder": True})
    decoder.load_weights(builtin.SAM)
    values = []
    for index in range(50_000, 50_012):
        scene = sample_scene(index, "test")
        masks, (first, second) = scene.masks(SIDE), scene.objects[:2]
        (embedding,) = decoder.encode_images([scene.draw(SIDE)])
        points = torch.tensor([[first.x, first.y], [second.x, second.y]])
        logits = clicked_mask(decoder, embedding, points, torch.tensor([True, True]), (SIDE, SIDE))
        values.append(overlap(decoder.masks(logits[None], (SIDE, SIDE), 0.5)[0].numpy(), masks[0] | masks[1]).iou)
    assert sum(values) / len(values) > 0.7  # one call with both: 0.26
