"""Every way to write a region gives the pixels that it means; what is damaged is refused with the reason."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from pycocotools import mask as coco

from lens_adapter.data.masks import ShownSize, decode
from lens_adapter.data.shapes import draw_outlined, fill_polygons
from lens_adapter.errors import InputError
from tests.data.formats import box, corners, runs, write_levels

SHOWN = ShownSize((8, 12))
BOX = box(2, 1, 7, 5)


def compressed(mask: np.ndarray, text: bool = True) -> dict:
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii") if text else rle["counts"]}


def as_png(mask: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


REGIONS = {
    "bool array": BOX,
    "array of 0 and 255": BOX.astype(np.uint8) * 255,
    "rows of bools": BOX.tolist(),
    "rows of numpy bools": list(BOX),
    "rows of 0 and 1": BOX.astype(int).tolist(),
    "rows of 0 and 255": (BOX * 255).tolist(),
    "rows of 0.0 and 1.0": BOX.astype(float).tolist(),
    "rows of 0.0 and 0.3": (BOX * 0.3).tolist(),
    "rows as tuples": tuple(map(tuple, BOX.astype(int).tolist())),
    "rows of numpy numbers": [[np.uint8(value) for value in row] for row in BOX],
    "rows as arrays": list(BOX.astype(np.uint8)),
    "rows as tensors": list(torch.from_numpy(BOX).int()),
    "rows of mixed kinds": [row if k % 2 else row.tolist() for k, row in enumerate(BOX.astype(int))],
    "an array of arrays": np.array([*BOX.astype(np.uint8), None], object)[:-1],
    "a channel behind": BOX.astype(int)[..., None].tolist(),
    "a channel before": [BOX.astype(int).tolist()],
    "a list of one array": [BOX.astype(np.uint8)],
    "array with a channel": BOX[..., None],
    "array of int64": BOX.astype(np.int64) * 7,
    "array of float16": BOX.astype(np.float16),
    "tensor": torch.from_numpy(BOX),
    "tensor (1, H, W)": torch.from_numpy(BOX)[None].to(torch.bfloat16),
    "sized rows of numbers": {"size": [8, 12], "polygons": BOX.astype(int).tolist()},
    "data URI": "data:image/png;base64," + base64.b64encode(as_png(BOX)).decode(),
    "run lengths as tensors": {"size": torch.tensor([8, 12]), "counts": torch.tensor(runs(BOX)["counts"])},
    "run lengths of numpy numbers": {"size": (np.int64(8), 12), "counts": [np.int32(n) for n in runs(BOX)["counts"]]},
    "polygon as a tensor": torch.tensor(corners(2, 1, 7, 5)),
    "polygon as a tuple": tuple(corners(2, 1, 7, 5)),
    "a closed polygon": [[*corners(2, 1, 7, 5), 2, 1]],
    "parts of points": [[[2, 1], [4, 1], [4, 5], [2, 5]], [[4, 1], [7, 1], [7, 5], [4, 5]]],
    "parts as an array of arrays": np.array([np.array(corners(2, 1, 7, 5)), np.array([9.0, 1.0, 9.0])[:2]], object),
    "union with a part smaller than a pixel": [
        {"size": [8, 12], "polygons": corners(2, 1, 7, 5)},
        {"size": [8, 12], "polygons": [[9.1, 1.1, 9.2, 1.1, 9.2, 1.2]]},
    ],
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


def test_a_mask_goes_before_a_polygon():
    """8 numbers a row, on an image 8 pixels wide: rows of numbers as many as the image has are a mask."""
    rows = [corners(0, 0, 8, 3), corners(0, 3, 8, 4)]
    np.testing.assert_array_equal(decode(rows, ShownSize((2, 8))), np.array(rows) != 0)
    assert decode(rows, ShownSize((8, 9))).any(1).sum() == 4


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
    Image.new("L", (12, 8)).save(tmp_path / "pages.tiff", save_all=True, append_images=[Image.new("L", (12, 8))])
    Image.new("L", (12, 8)).save(tmp_path / "lossy.tiff", compression="jpeg")
    Image.new("RGB", (32, 32)).save(tmp_path / "script.png", "EPS")
    Image.new("L", (12, 8)).save(tmp_path / "waves.jp2")
    Image.new("LA", (12, 8)).save(tmp_path / "alpha.png")
    whole = write_levels(tmp_path / "cut.png", BOX).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    reasons = {
        "color.png": "channels RGB",
        "grey.jpg": "JPEG",
        "pages.tiff": "2 page",
        "lossy.tiff": "TIFF",
        "script.png": "it is none of JPEG",
        "waves.jp2": "JPEG2000",
        "alpha.png": "channels LA",
        "text.png": "cannot be read",
        "cut.png": "cannot be read",
    }
    for name, reason in {**reasons, "absent.png": "no mask file"}.items():
        with pytest.raises(InputError, match=reason) as caught:
            decode(Path(tmp_path / name), SHOWN)
        assert name in str(caught.value)


def nested(depth: int, inside: object = 1) -> list:
    for _ in range(depth):
        inside = [inside]
    return inside


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
    "rows of another size": (
        BOX[:-2].astype(int).tolist(),
        "most of them are the same. A mask for this image is 8 rows",
    ),
    "rows of 255 of another size": ((BOX * 255)[:-2].tolist(), "pixels of an image of 12 x 8"),
    "rows of labels of another size, as an array": (np.arange(60).reshape(6, 10), "10 x 6 pixels; its image"),
    "narrow rows of another size": (BOX[:, 1:7].astype(int).tolist(), "most of them are the same"),
    "odd rows of another size": (BOX[:, :-1].astype(int).tolist(), "pairs of x and y"),
    "a mask in one row": (BOX.astype(int).ravel().tolist(), "most of them are the same"),
    "a mask in one row, as an array": (BOX.astype(np.uint8).ravel(), "most of them are the same"),
    "fractions of the image": ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9]], "all lie between 0 and 1"),
    "rows of three channels": (np.repeat(BOX[..., None], 3, 2).astype(int).tolist(), "one channel"),
    "rows of four channels": (np.ones((8, 12, 4)), "one channel"),
    "two masks in one": (np.stack([BOX, BOX]), "Expected a mask"),
    "two lists of rows in one": ([BOX.astype(int).tolist()] * 2, "one channel"),
    "numbers below zero": (-BOX.astype(int), "below zero"),
    "rows below zero": ((-BOX.astype(float)).tolist(), "below zero"),
    "NaN": (np.where(BOX, np.nan, 0.0), "NaN"),
    "endless numbers": (np.where(BOX, np.inf, 0.0), "NaN"),
    "complex numbers": (BOX.astype(complex), "Expected a mask"),
    "rows of texts": ([["0", "1"] * 6] * 8, "as numbers"),
    "rows of boolean texts": ([["false", "true"] * 6] * 8, "as numbers"),
    "rows with null": ([[None] * 12] * 8, "as numbers"),
    "ragged rows": ([[0, 1]] * 7 + [[0, 1, 1]], "."),
    "no row": ([[]], "pairs of x and y"),
    "huge numbers": ([[1, 1, 10**400, 1, 5, 5]], "as numbers"),
    "very huge numbers": ([1, 1, 10**5000, 1, 5, 5], "as numbers"),
    "a tiny polygon": ([[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]], "cover no pixel"),
    "a union beside the image": ([{"size": [8, 12], "polygons": corners(20, 20, 25, 25)}], "cover no pixel"),
    "deep nesting": (nested(900), "."),
    "deep nesting of nothing": (nested(900, None), "as numbers"),
    "a size of bools": ({"size": [True, True], "counts": [1]}, r"\[height, width\]"),
    "runs of bools": ({"size": [8, 12], "counts": [True] * 96}, "whole numbers"),
    "null for runs": ({"size": [8, 12], "counts": None}, "whole numbers"),
    "a long text": ("A" * 5000, "no mask file"),
    "a broken data URI": ("data:image/png;base64,####", "no valid base64"),
    "an object": (object(), "Expected a mask"),
    "a dict": ({"mask": 1}, "Expected a mask"),
    "text in an array": (np.full((8, 12), "x"), "Expected a mask"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_refused(name):
    region, reason = DAMAGED[name]
    with pytest.raises(InputError, match=reason) as caught:
        decode(region, SHOWN)
    assert len(str(caught.value)) < 500


def test_outlines_to_and_fro_far_outside_the_picture_are_refused_before_they_are_drawn():
    size = (400, 600)
    far = [((-2300 if k % 2 else 2300), 2300 - k) for k in range(1000)]
    for draw in (draw_outlined, fill_polygons):
        with pytest.raises(InputError, match=r"outlines of 4\d{6} pixels on an image of 600 x 400"):
            draw(far, size)
    square = [(-2300, -2300), (2300, -2300), (2300, 2300), (-2300, 2300)]
    assert draw_outlined(square, size).all() and fill_polygons(square, size).all()
