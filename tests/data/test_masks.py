"""Every way to write a region gives the pixels that it means; what is damaged is refused with the reason."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from pycocotools import mask as coco

from lens_adapter.data.masks import ShownSize, decode
from lens_adapter.data.shapes import draw_outlined
from lens_adapter.errors import InputError
from tests.data.formats import box, corners, runs, write_levels

SHOWN = ShownSize((8, 12))
BOX = box(2, 1, 7, 5)


def compressed(mask: np.ndarray, text: bool = True) -> dict:
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii") if text else rle["counts"]}


REGIONS = {
    "bool array": BOX,
    "array of 0 and 255": BOX.astype(np.uint8) * 255,
    "rows of bools": BOX.tolist(),
    "rows of numpy bools": list(BOX),
    "uncompressed run lengths": runs(BOX),
    "run lengths as an array": {"size": np.array([8, 12]), "counts": np.array(runs(BOX)["counts"])},
    "compressed run lengths": compressed(BOX),
    "compressed run lengths as bytes": compressed(BOX, text=False),
    "polygon": corners(2, 1, 7, 5),
    "polygon as an array": np.array(corners(2, 1, 7, 5), np.float32),
    "points": [[2, 1], [7, 1], [7, 5], [2, 5]],
    "parts": [corners(2, 1, 4, 5), corners(4, 1, 7, 5)],
    "parts that overlap": [corners(2, 1, 6, 5), corners(3, 1, 7, 5)],
    "parts with a line and a point": [corners(2, 1, 7, 5), [9, 1, 9, 6], [11, 7]],
    "sized polygons": {"size": [8, 12], "polygons": [corners(2, 1, 7, 5)]},
    "union": [runs(box(2, 1, 5, 5)), {"size": [8, 12], "polygons": [corners(4, 1, 7, 5)]}],
    "callable": lambda: runs(BOX),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_is_the_pixels_it_means(name):
    mask = decode(REGIONS[name], SHOWN)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, BOX)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_a_png_is_what_is_not_zero(tmp_path, mode):
    path = write_levels(tmp_path / "mask.png", BOX * 255, mode)
    for region in (path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(decode(region, SHOWN), BOX)
    np.testing.assert_array_equal(decode(write_levels(path, BOX, "P"), SHOWN), BOX)


def test_nothing_is_empty():
    for region in (None, np.zeros((8, 12)), runs(np.zeros((8, 12), bool)), [None, None]):
        assert decode(region, SHOWN).shape == (8, 12) and not decode(region, SHOWN).any()


def test_run_lengths_agree_with_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        for size in ((1, 1), (1, 7), (640, 3), (37, 53)):
            mask = rng.random(size) < density
            for rle in (compressed(mask), runs(mask)):
                np.testing.assert_array_equal(decode(rle, ShownSize(size)), mask)
    tall = box(0, 0, 40, 500, 50, 700)  # differences of more than one digit, also negative ones
    np.testing.assert_array_equal(decode(compressed(tall), ShownSize((700, 50))), tall)


def test_polygons_agree_with_pycocotools():
    rng = np.random.default_rng(1)
    for _ in range(30):
        parts = [rng.uniform(-9, 40, 2 * rng.integers(3, 9)).tolist() for _ in range(rng.integers(1, 4))]
        drawn = coco.decode(coco.merge(coco.frPyObjects(parts, 30, 20))) == 1
        if drawn.any():
            np.testing.assert_array_equal(decode(parts, ShownSize((30, 20))), drawn)
        else:
            with pytest.raises(InputError, match="cover no pixel"):
                decode(parts, ShownSize((30, 20)))


def test_a_polygon_beyond_the_image_is_cut_off():
    np.testing.assert_array_equal(decode(corners(-5, -3, 4, 30), SHOWN), box(0, 0, 4, 8))
    with pytest.raises(InputError, match="cover no pixel"):
        decode(corners(20, 20, 25, 25), SHOWN)
    np.testing.assert_array_equal(draw_outlined([[-5, -3], [4, -3], [4, 30], [-5, 30]], (8, 12)), box(0, 0, 5, 8))
    assert not draw_outlined([[20, 20], [25, 20], [25, 25]], (8, 12)).any()


def test_an_outlined_polygon_holds_its_outline():
    np.testing.assert_array_equal(draw_outlined([[2.9, 1.9], [6, 1], [6, 4], [2, 4]], (8, 12)), BOX)
    np.testing.assert_array_equal(draw_outlined([[3, 2], [3, 6]], (8, 12)), box(3, 2, 4, 7))
    np.testing.assert_array_equal(draw_outlined([[3, 2]], (8, 12)), box(3, 2, 4, 3))


# As OpenCV 5.0 draws it, with polylines and fillPoly.
OPENCV = """
......................
......................
..XXXX................
..XXXXXXXXXXXX........
..XXXXXXXXXXXXXXXX....
...XXXXXXXXXXXXXX.....
...XXXXXXXXXXXXXX.....
...XXXXXXXXXXXXX......
...XXXXXXXXXXXXX......
....XXXXXXXXXXX.......
....XXXXXXXXXXX.......
....XXXXXXXXXX........
......XXXXXXXX........
.........XXXX.........
...........XX.........
......................
"""


def test_an_outlined_polygon_is_as_opencv_draws_it():
    drawn = draw_outlined([(2, 2), (17, 4), (12, 14), (4, 11)], (16, 22))
    assert ["".join(".X"[x] for x in row) for row in drawn.astype(int)] == OPENCV.split()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_masks_and_images_share_the_upright_frame(orientation, format):
    """A mask drawn on the image as shown stays; one in the size that is stored is turned as the image is."""
    stored = Image.fromarray(BOX.astype(np.uint8) * 255)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = BytesIO()
    stored.convert("RGB").save(file, format, exif=exif, quality=100)
    with Image.open(BytesIO(file.getvalue())) as opened:
        size, upright = ShownSize.of(opened), ImageOps.exif_transpose(opened)
    assert size.size == upright.size[::-1] == ((8, 12) if orientation < 5 else (12, 8))
    shown = np.asarray(upright.convert("L")) > 127
    np.testing.assert_array_equal(decode(shown, size), shown)
    if orientation >= 5 and format != "TIFF":  # Pillow turns TIFF by itself, and keeps no trace of it
        for region in (BOX, runs(BOX), {"size": [8, 12], "polygons": corners(2, 1, 7, 5)}):
            np.testing.assert_array_equal(decode(region, size), shown)


def test_a_picture_of_another_kind_is_refused(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "color.png")
    Image.new("L", (12, 8)).save(tmp_path / "grey.jpg")
    (tmp_path / "text.png").write_text("no picture")
    whole = write_levels(tmp_path / "cut.png", BOX).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    reasons = {
        "color.png": "channels RGB",
        "grey.jpg": "JPEG",
        "text.png": "cannot be read",
        "cut.png": "cannot be read",
    }
    for name, reason in {**reasons, "absent.png": "no mask file"}.items():
        with pytest.raises(InputError, match=reason) as caught:
            decode(Path(tmp_path / name), SHOWN)
        assert name in str(caught.value)


DAMAGED = {
    "another size": (BOX[:-1], "12 x 7 pixels; its image.*12 x 8"),
    "turned though the image is not": (BOX.T, "8 x 12 pixels"),
    "run lengths of another size": ({"size": [8, 13], "counts": [104]}, "13 x 8 pixels"),
    "a huge size": ({"size": [10**6, 10**6], "counts": [10**12]}, "1000000 x 1000000"),
    "runs too short": ({"size": [8, 12], "counts": [5, 2]}, "add up to 7"),
    "runs too long": ({"size": [8, 12], "counts": [90, 20]}, "add up to 110"),
    "negative runs": ({"size": [8, 12], "counts": [100, -4]}, "whole numbers"),
    "broken runs": ({"size": [8, 12], "counts": [95.5, 0.5]}, "whole numbers"),
    "no runs": ({"size": [8, 12], "counts": ""}, "add up to 0"),
    "runs cut off": ({"size": [8, 12], "counts": compressed(BOX)["counts"][:-1]}, "add up to"),
    "runs with a stray character": ({"size": [8, 12], "counts": "5!2"}, "whole numbers"),
    "a number without end": ({"size": [8, 12], "counts": "P" * 100_000}, "whole numbers"),
    "runs without end": ({"size": [8, 12], "counts": "P"}, "whole numbers"),
    "no size": ({"size": [8], "counts": [96]}, r"\[height, width\]"),
    "a size in words": ({"size": "8x12", "counts": [96]}, r"\[height, width\]"),
    "neither runs nor polygons": ({"size": [8, 12]}, "Expected polygons, got None"),
    "no polygon": ([], "Expected a mask, run lengths or polygons"),
    "a line": ([[1, 1, 5, 5]], "at least 3 corners"),
    "an odd number": ([[1, 1, 5, 1, 5]], "pairs of x and y"),
    "not a number": ([1, 1, 5, float("nan"), 5, 5], "pairs of x and y"),
    "endless": ([1, 1, 5, float("inf"), 5, 5], "pairs of x and y"),
    "far off": ([1, 1, 1e9, 1, 5, 5], "pairs of x and y in pixels of an image of 12 x 8"),
    "numbers and lists": ([[1, 1, 5, 1, 5, 5], 7], "as lists of numbers"),
    "lists and numbers": ([1, [1, 1, 5, 1, 5, 5]], "as numbers"),
    "words": ([["a", "b", "c", "d", "e", "f"]], "as numbers"),
    "a number": (7, "Expected a mask"),
    "a row": (np.zeros(12, bool), "Expected"),
    "three dimensions": (np.zeros((8, 12, 3)), "Expected a mask"),
    "text in an array": (np.full((8, 12), "x"), "Expected a mask"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_refused(name):
    region, reason = DAMAGED[name]
    with pytest.raises(InputError, match=reason):
        decode(region, SHOWN)
