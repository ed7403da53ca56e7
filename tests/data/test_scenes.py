"""Scenes: the same for a seed, the same at every size, and with masks that are exactly what is seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.scenes import SPLITS, Scene, sample_scene
from lens_adapter.data.vocabulary import SHAPES_WORLD, Vocabulary

SOME = range(6)


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbors."""
    wide = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([wide[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


@pytest.mark.parametrize("index", SOME)
def test_one_index_is_one_scene(index):
    first, second = sample_scene(index, "test"), sample_scene(index, "test")
    assert first.objects == second.objects
    assert first.draw(64).tobytes() == second.draw(64).tobytes()
    np.testing.assert_array_equal(first.masks(64), second.masks(64))


def test_splits_share_no_seed_and_no_scene():
    seeds = {split: {sample_scene(index, split).seed for index in range(200)} for split in SPLITS}
    assert len(set.union(*seeds.values())) == 600
    remainders = {split: {seed % len(SPLITS) for seed in found} for split, found in seeds.items()}
    assert sorted(remainders.values(), key=min) == [{0}, {1}, {2}]  # so no index whatever brings them together
    first = [sample_scene(0, split).objects for split in SPLITS]
    assert first[0] != first[1] != first[2] != first[0]


@pytest.mark.parametrize("index", SOME)
def test_a_scene_is_the_same_at_every_size(index):
    scene = sample_scene(index)
    small, large = scene.masks(96), scene.masks(384)
    shrunk = large.reshape(len(large), 96, 4, 96, 4).mean(axis=(2, 4)) >= 0.5
    iou = (small & shrunk).sum((1, 2)) / (small | shrunk).sum((1, 2))
    assert iou.min() > 0.85
    resized = scene.draw(384).resize((96, 96), Image.Resampling.BOX)
    difference = np.abs(np.asarray(scene.draw(96), float) - np.asarray(resized, float))
    other = np.abs(np.asarray(scene.draw(96), float) - np.asarray(sample_scene(index + 1).draw(96), float))
    assert difference.mean() < 8 < other.mean()  # what is left is grain and edges


@pytest.mark.parametrize("index", SOME)
def test_a_mask_is_exactly_where_the_object_is_seen(index):
    """Repaint one object: the picture changes by as much as the object covers, and nowhere else."""
    scene = sample_scene(index, count=(5, 8))
    masks = scene.masks(128)
    for target in range(len(scene.objects)):
        dark, bright = (recolored(scene, target, value) for value in (60.0, 160.0))
        change = (np.asarray(bright.draw(128), float) - np.asarray(dark.draw(128), float)).mean(-1)
        seen = change > 35  # 100 where fully covered, 25 a quarter
        in_front = masks[target + 1 :].any(axis=0)  # has the pixels that both cover half
        np.testing.assert_array_equal(seen & ~in_front, masks[target])
        assert not change[~grown(masks[target])].any()


def recolored(scene: Scene, target: int, value: float) -> Scene:
    objects = list(scene.objects)
    objects[target] = replace(objects[target], rgb=(value, value, value), texture="plain")
    return replace(scene, objects=objects)


@pytest.mark.parametrize("index", SOME)
def test_an_object_has_its_color_where_its_mask_is(index):
    scene = sample_scene(index)
    picture = np.asarray(scene.draw(192), float)
    for thing, mask in zip(scene.objects, scene.masks(192), strict=True):
        pixels, rgb = picture[mask], np.array(thing.rgb)
        brightness = pixels @ rgb / (rgb @ rgb)
        off = np.linalg.norm(pixels - brightness[:, None] * rgb, axis=1) / np.linalg.norm(rgb)
        assert np.median(off) < 0.08
        assert np.abs(rgb - SHAPES_WORLD.colors[thing.color]).max() < 45
        marked = (brightness < 0.7).mean()
        assert (marked < 0.1) if thing.texture == "plain" else (0.1 < marked < 0.75)


def test_masks_share_no_pixel():
    for index in range(40):
        assert sample_scene(index).masks(96).sum(0).max() <= 1


def test_in_front_hides_behind():
    behind, front = sample_scene(0).objects[:2]
    behind = replace(behind, x=0.5, y=0.5, radius=0.1)
    front = replace(front, x=0.5, y=0.5, radius=0.2, shape="square")
    masks = Scene([behind, front], seed=0).masks(64)
    assert not masks[0].any() and masks[1].sum() > 200
    masks = Scene([front, behind], seed=0).masks(64)
    (alone,) = Scene([behind], seed=0).masks(64)
    np.testing.assert_array_equal(masks[1], alone)
    assert masks[0].any() and not (masks[0] & ~grown(~alone)).any()


def test_counts_sizes_and_room():
    counts: Counter[int] = Counter()
    for index in range(400):
        scene = sample_scene(index)
        counts[len(scene.objects)] += 1
        looks = [(o.size, o.texture, o.color, o.shape) for o in scene.objects]
        assert len(looks) == len(set(looks))
        for i, a in enumerate(scene.objects):
            low, high = SHAPES_WORLD.sizes[a.size]
            assert low <= a.radius <= high
            assert a.radius < min(a.x, a.y, 1 - a.x, 1 - a.y)  # inside the picture
            for b in scene.objects[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) >= 0.85 * (a.radius + b.radius) - 1e-9
    assert set(counts) == set(range(2, 9)) and min(counts.values()) > 30
    assert {len(sample_scene(index, count=(3, 3)).objects) for index in range(50)} == {3}


def test_objects_do_overlap_now_and_then():
    def touching(scene: Scene) -> bool:
        pairs = [(a, b) for i, a in enumerate(scene.objects) for b in scene.objects[:i]]
        return any(np.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius for a, b in pairs)

    share = np.mean([touching(sample_scene(index)) for index in range(200)])
    assert 0.3 < share < 0.9


def test_every_object_stays_visible():
    for index in range(30):
        scene = sample_scene(index)
        for thing, mask in zip(scene.objects, scene.masks(96), strict=True):
            alone = Scene([thing], seed=0).masks(96)[0]
            assert (mask & alone).sum() > 0.6 * alone.sum()


def test_a_vocabulary_is_data():
    square = np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    world = Vocabulary(
        shapes={"box": [square], "frame": [square, square * 0.5]},
        plurals={"box": "boxes", "frame": "frames", "object": "objects"},
        colors={"grey": (200, 200, 200)},
        sizes={"only": (0.2, 0.2)},
        textures={"flat": None, "dim": lambda u, v: np.full_like(u, 0.5)},
        cells=2,
    )
    scenes = [sample_scene(index, count=(1, 1), vocabulary=world) for index in range(12)]
    seen = set()
    for scene in scenes:
        (thing,), (mask,) = scene.objects, scene.masks(240)
        area = 1.6**2 * 0.2**2 * (0.75 if thing.shape == "frame" else 1)
        assert mask.mean() == pytest.approx(area, rel=0.05)
        shown = np.median(np.asarray(scene.draw(240), float)[mask])
        assert shown == pytest.approx(200 * (0.5 if thing.texture == "dim" else 1), abs=15)
        seen.add((thing.shape, thing.texture))
    assert len(seen) == 4
