"""Whatever a user calls a picture: as a viewer shows it, or refused with the reason and without its bytes."""

from __future__ import annotations

import base64
import struct
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from lens_adapter.data.masks import read_levels
from lens_adapter.errors import InputError
from lens_adapter.vlm.images import MOST_PIXELS, PICTURE_FORMATS, load_image, open_image, orientation, picture_suffixes

# Four colors, so that every turn and mirror image differs from every other.
QUARTERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype=np.uint8)  # (2, 2, 3)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def test_pil_path_numpy_and_torch_give_the_same_picture(tmp_path):
    image = Image.fromarray(QUARTERS)
    path = tmp_path / "quarters.png"
    image.save(path)
    for given in (image, path, str(path), QUARTERS, torch.from_numpy(QUARTERS).permute(2, 0, 1)):
        assert np.array_equal(pixels(load_image(given)), QUARTERS)
    assert np.array_equal(pixels(load_image(QUARTERS[:, ::-1])), QUARTERS[:, ::-1])  # negative strides


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # How a camera stores what it holds turned: the reverse of what a viewer does to show it upright.
    stored = {
        1: QUARTERS,
        2: QUARTERS[:, ::-1],
        3: QUARTERS[::-1, ::-1],
        4: QUARTERS[::-1],
        5: QUARTERS.transpose(1, 0, 2),
        6: np.rot90(QUARTERS, 1),
        7: QUARTERS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(QUARTERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    shown = load_image(path)
    assert np.array_equal(pixels(shown), QUARTERS)
    assert np.array_equal(pixels(load_image(shown)), QUARTERS)  # not turned twice


def test_the_image_given_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 128))
    image.info["exif"] = exif.tobytes()
    load_image(image)
    assert image.mode == "RGBA"
    assert image.size == (4, 2)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("L", (2, 2), 100), (100, 100, 100)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (200, 100, 0, 255)), (200, 100, 0)),
        (Image.new("RGBA", (2, 2), (200, 100, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("HSV", (2, 2), (0, 255, 255)), (255, 0, 0)),
        (Image.new("I;16", (2, 2), 65535), (255, 255, 255)),
        (Image.new("I;16", (2, 2), 257 * 100), (100, 100, 100)),
        (Image.new("I", (2, 2), 257 * 100), (100, 100, 100)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_what_a_viewer_shows(image, expected):
    assert (pixels(load_image(image)) == expected).all()


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    path = tmp_path / "palette.png"
    image.save(path)
    assert pixels(load_image(path)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    image.save(path, transparency=0)
    assert pixels(load_image(path)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_16_bit_greyscale_files_are_scaled_not_clipped(tmp_path):
    levels = np.array([[0, 257, 257 * 128, 65535]], dtype=np.uint16)
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(levels).save(tmp_path / name)
        assert pixels(load_image(tmp_path / name))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    "image", [Image.new("F", (2, 2), 0.5), Image.new("I", (2, 2), 70000), Image.new("I", (2, 2), -1)]
)
def test_pixels_without_a_white_are_refused(image):
    with pytest.raises(InputError, match="white is not defined"):
        load_image(image)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_no_pixels(size):
    with pytest.raises(InputError, match=f"empty: {size[0]} x {size[1]} pixels"):
        load_image(Image.new("RGB", size))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\).*got shape \(4, 4\) and dtype uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"got shape \(4, 4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), r"got shape \(3, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got shape \(1, 4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int32), "uint8 or floats from 0 to 1.*got .* dtype int32"),
        (np.full((4, 4, 3), 255.0), r"from 0 \(black\) to 1 \(white\); got 255 to 255.*Divide by 255"),
        (np.full((4, 4, 3), -0.1), "got -0.1 to -0.1"),
        (np.full((4, 4, 3), np.nan), "got nan to nan"),
        (np.full((4, 4, 3), np.inf, np.float32), "got inf to inf"),
        (torch.full((3, 4, 4), 1.5), "got 1.5 to 1.5.*normalization"),
        (np.zeros((4, 4), np.float32), r"\(H, W, 3\).*got shape \(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"at least one pixel; got shape \(0, 4, 3\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"\(3, H, W\).*got shape \(4, 4, 3\)"),
        (torch.zeros(3, 4, 4, dtype=torch.long), r"uint8.*got .* dtype torch\.int64"),
        (torch.zeros(3, 4, 0, dtype=torch.uint8), r"at least one pixel; got shape \(3, 4, 0\)"),
        (b"\x89PNG", "image of 4 bytes cannot be read as an image"),
        (None, "got NoneType"),
        ([1, 2], "got list"),
    ],
)
def test_what_is_no_image(given, message):
    with pytest.raises(InputError, match=message):
        load_image(given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_from_0_to_1_are_levels(dtype):
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0]).to(dtype).repeat(3, 2, 1)  # (3, 2, 4)
    assert pixels(load_image(levels))[0, :, 0].tolist() == [0, 64, 128, 255]
    if dtype != torch.bfloat16:
        array = levels.permute(1, 2, 0).numpy()
        assert (pixels(load_image(array)) == pixels(load_image(levels))).all()


def test_uint8_as_floats_is_the_same_picture():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert (pixels(load_image(levels / 255)) == levels).all()
    assert (pixels(load_image((levels / 255).astype(np.float32))) == levels).all()


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"no image file .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is a folder; expected one image file in it"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="URLs are not fetched"):
        load_image("https://example.org/cat.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    load_image(path)
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 3):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"noise\.{suffix}"):
            load_image(path)
    path.write_text("not an image")
    with pytest.raises(InputError, match="cannot be read as an image"):
        load_image(path)


def test_a_damaged_image_opened_by_the_caller(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as opened, pytest.raises(InputError, match="damaged or cut off"):
        load_image(opened)


# files, bytes, data URIs


def stored(kind: str = "PNG", image: Image.Image | None = None, **options) -> bytes:
    buffer = BytesIO()
    (image or Image.fromarray(QUARTERS)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_bytes_and_data_uris_are_pictures():
    raw = stored()
    encoded = base64.b64encode(raw).decode()
    lines = "\n".join(encoded[k : k + 40] for k in range(0, len(encoded), 40))
    percent = "".join(f"%{byte:02x}" for byte in raw)
    uris = [f"data:image/png;base64,{encoded}", f"DATA:;Base64,{lines}", f"data:image/png,{percent}"]
    for given in (raw, bytearray(raw), memoryview(raw), *uris):
        assert np.array_equal(pixels(load_image(given)), QUARTERS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("data:image/png;base64,####", "no valid base64"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/svg+xml,<svg/>", "cannot be read as an image"),
        ("data:image/png;base64," + "A" * 100_000, "cannot be read as an image"),
        ("A" * 100_000, "no image file"),
        ("a\0b.png", "no image file"),
        ("\ud800.png", "no image file"),
        (Path("x" * 300), "no image file"),
        (b"x" * 100_000, "of 100000 bytes cannot be read as an image"),
        ("", "no image file"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_no_message_repeats_a_payload(given, message):
    with pytest.raises(InputError, match=message) as caught:
        load_image(given)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("url", ["https://example.org/a.png?x=1&y=" + "k" * 900, "http://a/b", "s3://bucket/a.png"])
def test_urls_are_refused_as_they_are(url):
    for given in (url, Path(url)):
        with pytest.raises(InputError, match="URLs are not fetched") as caught:
            load_image(given)
        assert url in str(caught.value)


def test_files_are_read_by_what_they_hold(tmp_path):
    for name in ("a.PNG", "a.jfif", "a.gif", "noise", "a.txt"):
        (tmp_path / name).write_bytes(stored())
        assert np.array_equal(pixels(load_image(tmp_path / name)), QUARTERS)
    assert {".png", ".jfif", ".gif", ".avif", ".jpe", ".webp", ".heic", ".mpo"} <= picture_suffixes()
    assert not {".eps", ".ps", ".pdf", ".psd", ".wmf", ".svg"} & picture_suffixes()


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA", "PDF"])
def test_formats_off_the_list_are_refused_under_any_name(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was run"))
    (tmp_path / "a.png").write_bytes(stored(kind, Image.new("RGB", (32, 32), "red")))
    for given in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        with pytest.raises(InputError, match="it is none of JPEG, MPO, PNG"):
            load_image(given)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small picture file whose header claims another size."""
    raw = bytearray(stored(kind, Image.new("RGB", (16, 16), "red")))
    if kind == "PNG":
        raw[16:24] = struct.pack(">II", width, height)
        raw[29:33] = struct.pack(">I", crc32(raw[12:29]))
    elif kind == "GIF":
        raw[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        raw[18:26] = struct.pack("<ii", width, height)
    elif kind == "JPEG":
        start = raw.index(b"\xff\xc0") + 5
        raw[start : start + 4] = struct.pack(">HH", height, width)
    elif kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            start = raw.index(struct.pack("<HH", tag, 4 if struct.pack("<HH", tag, 4) in raw else 3))
            raw[start : start + 12] = struct.pack("<HHII", tag, 4, 1, value)
    else:
        raw[:] = b"P6 %d %d 255\n" % (width, height) + bytes(300)
    return bytes(raw)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG", "TIFF", "PPM"])
@pytest.mark.parametrize("side", [9_460, 13_500, 60_000])  # a little too large, beyond what Pillow opens, a bomb
def test_too_large_a_picture_is_refused_by_its_header(tmp_path, kind, side, monkeypatch):
    assert 9_459**2 <= MOST_PIXELS < 9_460**2
    raw = claiming(kind, side, side)
    (tmp_path / "a.png").write_bytes(raw)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    for given in (tmp_path / "a.png", raw, f"data:image/png;base64,{base64.b64encode(raw).decode()}"):
        with pytest.raises(InputError, match=r"too large.*Scale it down"):
            load_image(given)
        with pytest.raises(InputError, match=r"too large.*Scale it down"):
            read_levels(given)
    if side == 9_460:
        with Image.open(BytesIO(raw)) as opened:  # by the caller
            for read in (load_image, read_levels):
                with pytest.raises(InputError, match="9460 x 9460 pixels; expected at most 89 megapixels"):
                    read(opened)


def test_as_large_a_picture_as_may_be():
    with open_image(claiming("PNG", 9_459, 9_459)) as opened:
        assert opened.size == (9_459, 9_459)


def test_heic_says_what_to_install(tmp_path, monkeypatch):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    (tmp_path / "a.HEIC").write_bytes(heic)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for given in (heic, tmp_path / "a.HEIC"):
        with pytest.raises(InputError, match="pip install pillow-heif"):
            load_image(given)

    def register() -> None:
        Image.register_open("HEIF", lambda *_: Image.fromarray(QUARTERS), lambda head: head[4:8] == b"ftyp")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert np.array_equal(pixels(load_image(heic)), QUARTERS)


def test_the_first_frame_and_every_color_space(tmp_path):
    first, second = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (4, 2), "blue")
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        shown = pixels(load_image(stored(kind, first, save_all=True, append_images=[second])))
        assert (shown.astype(int) - [255, 0, 0]).__abs__().max() < 4, kind
    cmyk = Image.new("RGB", (8, 8), "red").convert("CMYK")
    assert (pixels(load_image(stored("JPEG", cmyk))).astype(int) - [255, 0, 0]).__abs__().max() < 8


# metadata


def exif(*entries: tuple[int, int, int, int], start: bytes = b"II*\0\x08\0\0\0", after: bytes = b"") -> bytes:
    table = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return start + struct.pack("<H", len(entries)) + table + bytes(4) + after


TURNED = (0x0112, 3, 1, 6)
MALFORMED = {
    "a rational of -1/0": (exif(TURNED, (0x011A, 10, 1, 38), after=struct.pack("<ll", -1, 0)), 6),
    "a sub-table that leads nowhere": (exif(TURNED, (0x8769, 4, 1, 0xFFFFFFF0)), 6),
    "a sub-table within itself": (exif(TURNED, (0x8769, 4, 1, 8)), 6),
    "a header that is no TIFF": (b"garbage!" * 4, 1),
    "nothing": (b"", 1),
    "a header alone": (b"II*\0", 1),
    "an orientation of 9": (exif((0x0112, 3, 1, 9)), 1),
    "an orientation in words": (exif((0x0112, 2, 4, 0x00363636)), 1),
    "an orientation of 6/0": (exif((0x0112, 5, 1, 26), after=struct.pack("<LL", 6, 0)), 1),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the damage
def test_an_intact_picture_is_shown_whatever_its_metadata(name, kind):
    raw, turn = MALFORMED[name]
    if kind == "JPEG":
        plain = stored("JPEG", quality=100, subsampling=0)
        part = b"Exif\0\0" + raw
        file = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + plain[2:]
    else:
        file = stored(kind, exif=raw or b"II")
    shown = load_image(file)
    expected = load_image(stored(kind, quality=100, subsampling=0) if kind == "JPEG" else stored(kind))
    assert np.array_equal(pixels(shown), np.rot90(pixels(expected), -1) if turn == 6 else pixels(expected))
    assert np.array_equal(pixels(load_image(shown)), pixels(shown))
    with open_image(file) as opened:
        assert orientation(opened) == turn


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_of_metadata_is_survived():
    rng = np.random.default_rng(0)
    plain, turned = stored("JPEG"), MALFORMED["a rational of -1/0"][0]
    for _ in range(300):
        part = bytearray(b"Exif\0\0" + turned)
        for place in rng.integers(6, len(part), rng.integers(1, 8)):
            part[place] = rng.integers(256)
        file = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + plain[2:]
        with open_image(file) as opened:
            assert orientation(opened) in range(1, 9)
        assert load_image(file).size == (2, 2)


def test_the_list_of_formats_is_pillows():
    Image.init()
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"} <= set(PICTURE_FORMATS) & set(Image.OPEN)
    assert "EPS" not in PICTURE_FORMATS
