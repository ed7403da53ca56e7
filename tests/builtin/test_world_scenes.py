"""Scenes of things: the same for a seed, the same at every size, and with masks that are exactly what is seen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from colorsys import rgb_to_hsv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lens_adapter.builtin.world import SPLITS, Scene, SceneObject, sample_scene
from lens_adapter.builtin.world.backgrounds import BACKGROUNDS
from lens_adapter.builtin.world.catalog import CATEGORIES, COLORFUL, COLORS, THINGS, is_a
from lens_adapter.builtin.world.scenes import SIZES
from lens_adapter.builtin.world.sprites import CELL, COLUMNS, SHEET, proportions, sheet, sprite

SOME = range(6)


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbors."""
    wide = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([wide[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, float)


# -- the sheet --------------------------------------------------------------------------------------------------------


def test_the_sheet_holds_one_picture_for_every_thing():
    assert SHEET.stat().st_size < 300_000
    assert (SHEET.parent / "OFL.txt").is_file()
    rows = -(-len(THINGS) // COLUMNS)
    assert sheet().size == (COLUMNS * CELL, rows * CELL)
    alpha = np.asarray(sheet())[..., 3].reshape(rows, CELL, COLUMNS, CELL).swapaxes(1, 2).reshape(-1, CELL, CELL)
    assert len(alpha) == len(THINGS) == 64
    assert ((alpha > 127).mean(axis=(1, 2)) > 0.1).all()
    assert not alpha[:, [0, -1]].any() and not alpha[:, :, [0, -1]].any()  # nothing runs over from cell to cell
    between = ((alpha > 10) & (alpha < 245)).sum() / (alpha > 10).sum()
    assert between < 0.1  # edges only: no glow, no glass


def test_no_two_pictures_are_alike():
    small = [np.asarray(sprite(name, THINGS[name].color).convert("RGBa").resize((20, 20)), float) for name in THINGS]
    distance = [np.abs(a - b).mean() for i, a in enumerate(small) for b in small[:i]]
    assert min(distance) > 12


def nearest_color(rgb: np.ndarray) -> str:
    return min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - rgb).sum())


def family(rgb: np.ndarray) -> str:
    """The names that a color may have, by hue."""
    hue, saturation, _ = rgb_to_hsv(*rgb / 255)
    if saturation < 0.12:
        return "white gray black"
    ends = (
        (0.1, "red orange brown pink"),
        (0.19, "yellow orange brown"),
        (0.47, "green"),
        (0.7, "blue"),
        (0.87, "purple"),
    )
    return next((names for end, names in ends if hue < end), "red pink")


@pytest.mark.parametrize("name", [name for name, thing in THINGS.items() if thing.is_painted])
def test_paint_is_what_it_is_called(name):
    thing = THINGS[name]
    natural = np.asarray(sprite(name, thing.color), float)
    for color in thing.paints[1:]:
        painted = np.asarray(sprite(name, color), float)
        np.testing.assert_array_equal(painted[..., 3], natural[..., 3])
        changed = (np.abs(painted - natural).max(-1) > 40) & (natural[..., 3] > 250)
        assert changed.sum() > 0.15 * (natural[..., 3] > 250).sum()  # enough to be seen
        assert nearest_color(np.median(painted[changed][:, :3], axis=0)) == color


def test_the_catalog_is_consistent():
    assert {thing.category for thing in THINGS.values()} == set(CATEGORIES)
    assert len({thing.emoji for thing in THINGS.values()}) == len(THINGS)
    for thing in THINGS.values():
        assert {thing.color, *thing.paints, *thing.also} <= {*COLORS, COLORFUL}
        assert thing.color not in thing.also and len(set(thing.paints)) == len(thing.paints)
        assert thing.name in is_a(thing.category).sure
    for category in CATEGORIES:
        members = is_a(category)
        assert not members.sure & members.unclear and members.sure | members.unclear <= set(THINGS)
    assert {"apple", "carrot", "pizza"} <= is_a("food").sure and "rose" in is_a("plant").sure


@pytest.mark.parametrize("name", [name for name, thing in THINGS.items() if thing.color != COLORFUL])
def test_a_picture_has_the_colors_that_the_catalog_gives_it(name):
    picture = np.asarray(sprite(name, THINGS[name].color), float)
    shown = Counter(family(rgb) for rgb in picture[picture[..., 3] > 250][::7, :3]).most_common(1)[0][0]
    assert {THINGS[name].color, *THINGS[name].also} & set(shown.split())


# -- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", SOME)
def test_one_index_is_one_scene(index):
    first, second = sample_scene(index, "test"), sample_scene(index, "test")
    assert first.objects == second.objects
    assert first.draw(64).tobytes() == second.draw(64).tobytes()
    np.testing.assert_array_equal(first.masks(64), second.masks(64))


FINGERPRINT = """
import hashlib
import numpy as np
from lens_adapter.builtin.world import EXPRESSION_KINDS, QUESTION_KINDS, Speaker, sample_scene, words
digest = hashlib.sha256(" ".join(words()).encode())
for index in range(8):
    scene = sample_scene(index, "validation")
    speaker = Speaker(scene, np.random.default_rng(index))
    digest.update(scene.draw(96).tobytes() + scene.masks(96).tobytes())
    digest.update(repr([speaker.expression(kind) for kind in EXPRESSION_KINDS]).encode())
    digest.update(repr([speaker.question(kind) for kind in QUESTION_KINDS]).encode())
print(digest.hexdigest())
"""


def test_another_process_draws_and_says_the_same():
    def run(hash_seed: str) -> str:
        command = [sys.executable, "-c", FINGERPRINT]
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    assert run("1") == run("2") != hashlib.sha256().hexdigest()


def test_splits_share_no_seed_and_no_scene():
    seeds = {split: {sample_scene(index, split).seed for index in range(100)} for split in SPLITS}
    assert len(set.union(*seeds.values())) == 100 * len(SPLITS)
    remainders = {split: {seed % len(SPLITS) for seed in found} for split, found in seeds.items()}
    assert sorted(map(min, remainders.values())) == list(range(len(SPLITS)))  # no index brings them together
    assert all(len(remainder) == 1 for remainder in remainders.values())
    first = [repr(sample_scene(0, split).objects) for split in SPLITS]
    assert len(set(first)) == len(SPLITS)


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", SOME)
def test_a_scene_is_the_same_at_every_size(index):
    scene = sample_scene(index)
    small, large = scene.masks(96), scene.masks(384)
    shrunk = large.reshape(len(large), 96, 4, 96, 4).mean(axis=(2, 4)) > 0.5
    iou = (small & shrunk).sum((1, 2)) / (small | shrunk).sum((1, 2))
    assert iou.min() > 0.85
    resized = pixels(scene.draw(384).resize((96, 96), Image.Resampling.BOX))
    difference = np.abs(pixels(scene.draw(96)) - resized).mean()
    other = np.abs(pixels(sample_scene(index + 1).draw(96)) - resized).mean()
    assert difference < 8 < other  # what is left is grain and edges


@pytest.mark.parametrize("index", SOME)
def test_a_mask_is_exactly_where_the_object_is_seen(index, monkeypatch):
    """Paint one object over: the picture changes by as much as it covers, and nowhere else."""
    from lens_adapter.builtin.world import scenes

    scene = sample_scene(index, count=(5, 8))
    masks, real = scene.masks(128), scenes.lay

    def draw(target: int, value: int) -> np.ndarray:
        def flat(name, color, **where):
            window, laid = real(name, color, **where)
            if where["x"] == scene.objects[target].x * where["canvas"]:
                laid = laid.copy()
                laid[..., :3] = (laid[..., 3:] / 255 * value).astype(np.uint8)
            return window, laid

        monkeypatch.setattr(scenes, "lay", flat)
        return pixels(scene.draw(128))

    for target, mask in enumerate(masks):
        change = (draw(target, 160) - draw(target, 60)).mean(-1)
        change /= np.quantile(change[mask], 0.9)  # about the fraction that is visible, whatever the light of the scene
        assert (change[mask] > 0.4).all() and (change[~mask] < 0.6).all()
        assert (change[~grown(mask)] < 0.5).all()
        certain = mask & ~grown(~mask)
        assert change[certain].mean() > 0.95


def test_masks_share_no_pixel_and_lie_where_objects_are():
    for index in range(40):
        scene = sample_scene(index)
        masks = scene.masks(96)
        assert masks.sum(0).max() <= 1
        for thing, mask in zip(scene.objects, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert np.abs(columns / 96 - thing.x).max() < 0.72 * thing.side + 0.02
            assert np.abs(rows / 96 - thing.y).max() < 0.72 * thing.side + 0.02
            assert mask.mean() == pytest.approx(thing.area, rel=0.5)


def test_every_object_stays_visible():
    shares = []
    for index in range(120):
        scene = sample_scene(index, "test")
        for thing, mask in zip(scene.objects, scene.masks(96), strict=True):
            alone = Scene([thing], seed=0).masks(96)[0]
            shares.append(mask.sum() / alone.sum())
    assert min(shares) > 0.6
    assert 0.05 < np.mean(np.array(shares) < 0.98) < 0.5  # overlap happens, and not too often


def test_in_front_hides_behind():
    book = SceneObject("book", "red", "large", 0.5, 0.5, 0.38, 0.0, False)
    apple = SceneObject("apple", "red", "small", 0.5, 0.5, 0.2, 0.0, False)
    masks = Scene([apple, book], seed=0).masks(64)
    assert not masks[0].any() and masks[1].sum() > 200
    masks = Scene([book, apple], seed=0).masks(64)
    (alone,) = Scene([apple], seed=0).masks(64)
    np.testing.assert_array_equal(masks[1], alone)
    assert masks[0].any() and not (masks[0] & alone).any()


def test_the_mirror_image_is_the_mirror_image():
    (there,) = Scene([SceneObject("dog", "brown", "large", 0.5, 0.5, 0.36, 0.15, False)], seed=0).masks(128)
    (back,) = Scene([SceneObject("dog", "brown", "large", 0.5, 0.5, 0.36, -0.15, True)], seed=0).masks(128)
    overlap = (there[:, ::-1] & back).sum() / (there[:, ::-1] | back).sum()
    assert overlap > 0.95 > (there & back).sum() / (there | back).sum()


def test_a_turn_is_clockwise():
    upright = SceneObject("pencil", "yellow", "large", 0.5, 0.5, 0.38, 0.0, False)
    (mask,) = Scene([replace(upright, angle=np.pi / 4)], seed=0).masks(96)
    rows, columns = np.nonzero(mask)
    assert np.ptp(rows) > 2 * np.ptp(columns)  # from upper left to lower right it comes to stand


# -- what scenes are like ---------------------------------------------------------------------------------------------


def test_counts_sizes_and_room():
    counts: Counter[int] = Counter()
    seen: Counter[str] = Counter()
    for index in range(500):
        scene = sample_scene(index)
        counts[len(scene.objects)] += 1
        for thing in scene.objects:
            seen[thing.name] += 1
            low, high = SIZES[thing.size]
            assert low <= thing.side <= high and thing.color in THINGS[thing.name].paints
            assert THINGS[thing.name].mirrors or not thing.mirrored
            width, height, _ = proportions(thing.name)
            cos, sin = np.cos(thing.angle), abs(np.sin(thing.angle))
            half_x, half_y = (
                (cos * width + sin * height) * thing.side / 2,
                (sin * width + cos * height) * thing.side / 2,
            )
            assert half_x <= min(thing.x, 1 - thing.x) and half_y <= min(thing.y, 1 - thing.y)
    assert set(counts) == set(range(2, 9)) and min(counts.values()) > 25
    assert set(seen) == set(THINGS) and min(seen.values()) > 10
    assert max(high for _, high in SIZES.values()) < 0.4


def test_names_are_repeated_often_enough_to_need_more_than_a_name():
    scenes = [sample_scene(index) for index in range(200)]
    repeated = [len({o.name for o in scene.objects}) < len(scene.objects) for scene in scenes]
    assert 0.3 < np.mean(repeated) < 0.8


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_muted_and_the_same_at_every_size(background):
    for seed in range(3):
        small, large = (background(np.random.default_rng(seed), size) for size in (64, 256))
        shrunk = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - small).mean() < 8
        assert small.std(axis=(0, 1)).max() < 70
        assert 20 < small.mean() < 240
