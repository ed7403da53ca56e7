"""JPEG files decoded smaller: the same picture, the size that it has at full size, and nothing else changed."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image

from lens_adapter.data.records import Record
from lens_adapter.errors import BrokenRecordError, InputError
from lens_adapter.vlm.images import load_draft, load_image

# No side is a multiple of two, and quarters of different colors tell turns apart.
WIDTH, HEIGHT = 333, 221
COLORS = np.array([[[200, 0, 0], [0, 180, 0]], [[0, 0, 190], [200, 200, 0]]], np.uint8)
SHOWN = Image.fromarray(COLORS).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
# Orientation -> how a camera stores it.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def saved(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def off(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures, the first at the other's size, in levels."""
    small = one.resize(other.size, Image.Resampling.BOX)
    return float(np.abs(np.asarray(small, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("side, scale", [(100, 2), (110, 2), (111, 1), (55, 4), (27, 8), (1, 8), (222, 1)])
def test_it_is_the_smallest_that_is_large_enough_and_upright(orientation, side, scale):
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = saved(SHOWN if turn is None else SHOWN.transpose(turn), quality=95, exif=exif)
    picture, size = load_draft(file, side)
    assert picture.size == (-(-WIDTH // scale), -(-HEIGHT // scale)) and size == (HEIGHT, WIDTH)
    assert picture.mode == "RGB" and off(load_image(file), picture) < 5
    assert load_image(picture).size == picture.size  # not turned twice


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_colors_stay_however_they_are_stored(subsampling, options):
    file = saved(SHOWN, quality=95, subsampling=subsampling, **options)
    for side in (100, 50, 25):
        assert off(load_image(file), load_draft(file, side)[0]) < 5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printed_ones(mode):
    file = saved(SHOWN.convert(mode), quality=95)
    picture, size = load_draft(file, 50)
    assert (picture.mode, picture.size, size) == ("RGB", (84, 56), (HEIGHT, WIDTH))
    assert off(load_image(file), picture) < 5


def test_of_several_pictures_in_a_file_it_is_the_first():
    file = saved(SHOWN, "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), "white")], quality=95)
    assert Image.open(BytesIO(file)).format == "MPO"
    picture, size = load_draft(file, 50)
    assert (picture.size, size) == ((84, 56), (HEIGHT, WIDTH)) and off(load_image(file), picture) < 5


@pytest.mark.parametrize("side", [1000, None])
def test_what_is_small_or_wanted_whole_is_as_without(side):
    file = saved(SHOWN)
    picture, size = load_draft(file, side)
    assert picture.tobytes() == load_image(file).tobytes() and size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_are_as_without(kind):
    file = saved(SHOWN, kind)
    picture, size = load_draft(file, 20)
    assert picture.tobytes() == load_image(file).tobytes() and size == (HEIGHT, WIDTH)


def test_a_turned_tiff_is_measured_as_it_is_shown():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture, size = load_draft(saved(SHOWN.transpose(Image.Transpose.ROTATE_90), "TIFF", exif=exif), 20)
    assert picture.size == (WIDTH, HEIGHT) and size == (HEIGHT, WIDTH)


def test_what_is_no_file_is_not_touched(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(SHOWN))
    with Image.open(tmp_path / "a.jpg") as given:  # not decoded yet: a draft would be for good
        assert load_draft(given, 20)[0].size == given.size == (WIDTH, HEIGHT)
    assert load_draft(np.asarray(SHOWN), 20)[0].size == (WIDTH, HEIGHT)


def test_damaged_and_missing_files_are_refused_as_without(tmp_path):
    noise = Image.effect_noise((WIDTH, HEIGHT), 60)
    cut = saved(noise)[:-2000]
    for side in (None, 50):
        with pytest.raises(InputError, match="damaged or cut off"):
            load_draft(cut, side)
        with pytest.raises(InputError, match="There is no image file"):
            load_draft(tmp_path / "gone.jpg", side)


def test_records_say_which_one_it_was(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(SHOWN))
    picture, size = Record(tmp_path / "a.jpg", [], []).load_draft(50)
    assert (picture.size, size) == ((84, 56), (HEIGHT, WIDTH))
    assert Record(lambda: tmp_path / "a.jpg", [], []).load_draft(50)[0].size == (84, 56)
    with pytest.raises(BrokenRecordError, match="the one: There is no image file"):
        Record(tmp_path / "gone.jpg", [], [], id="the one").load_draft(50)
