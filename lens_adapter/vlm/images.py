"""What a user calls a picture -> an RGB image as a viewer shows it. Whatever reads pictures opens them here."""

from __future__ import annotations

import base64
import binascii
import re
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from lens_adapter.errors import InputError, brief

# The formats that are read, by Pillow's names; a file of any other is refused, whatever its name. (Of the others some
# run programs, as Ghostscript, and some know no file of their own by its first bytes.)
PICTURE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")

# A picture of more is refused before it is decoded: a few kilobytes can hold gigabytes of one color. It is where Pillow
# begins to warn of such files.
MOST_PIXELS = 89_478_485

# EXIF orientation -> how a viewer turns what is stored.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)  # of these: what is stored is as wide as what is shown is high
_TELLS_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # in `Image.info`
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SMALLER = "Scale it down, or cut it into parts."
_LONGEST_URL, _LONGEST_PATH = 2000, 300  # letters of them that a message repeats

PictureFile = str | Path | bytes | bytearray | memoryview  # what `open_image` takes
ImageInput = Image.Image | PictureFile | np.ndarray | Tensor  # what `load_image` takes


def picture_suffixes() -> frozenset[str]:
    """Suffixes of the files that are read, in small letters: ".jpg", ".jfif", ..."""
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in PICTURE_FORMATS}
    return frozenset({*known, ".avif", ".heic", ".heif"})  # where Pillow lacks one, the error says what to install


def open_image(source: PictureFile, what: str = "image") -> Image.Image:
    """Open a picture file of one of `PICTURE_FORMATS` and at most `MOST_PIXELS`; it is not decoded yet.

    Args:
        source: a path, a data URI ("data:image/png;base64,..."), or a file's bytes.
        what: it is called in messages.

    Raises:
        InputError: there is no such file, or it is no picture of these formats, or has more pixels; a URL of the web.
    """
    file: Path | BytesIO
    if isinstance(source, str) and source[:5].lower() == "data:":
        name, file = f"The {what} in a data URI", BytesIO(_payload(source))
    elif isinstance(source, str | Path):
        name, file = f"The {what} file {str(source)!r}", _existing(source, what)
    else:
        name, file = f"The {what} of {len(source)} bytes", BytesIO(source)
    Image.init()
    try:
        try:
            opened = Image.open(file, formats=_openable())
        except UnidentifiedImageError:
            if not _is_heif(file) or "HEIF" in Image.OPEN:
                raise
            _register_heif(name)
            opened = Image.open(file, formats=_openable())
        try:
            require_pixels(opened)
        except InputError:
            opened.close()
            raise
        return opened
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error} {_SMALLER}") from error
    except UnidentifiedImageError as error:
        reason = f"it is none of {', '.join(PICTURE_FORMATS)}, or is damaged."
        raise InputError(f"{name} cannot be read as an image: {reason}") from error
    except Exception as error:  # a decoder meets damage with whatever error it runs into first
        raise InputError(f"{name} cannot be read as an image: {error}") from error


def require_pixels(image: Image.Image, most: int = MOST_PIXELS) -> None:
    """Refuse a picture of more than `most` pixels; its header is enough for that.

    Raises:
        InputError: says how large it is.
    """
    if image.width * image.height > most:
        raise InputError(
            f"{_name(image)} is too large: {image.width} x {image.height} pixels; expected at most "
            f"{most / 1e6:.0f} megapixels. {_SMALLER}"
        )


def load_image(image: ImageInput) -> Image.Image:
    """Read an image as a viewer shows it: upright (EXIF orientation applied), 8 bits per channel, on white paper.

    Transparency is composited over white. 16-bit greyscale is scaled (65535 becomes 255). Of an animation, the frame
    that is current: the first, when read from a file. Color profiles are not applied. Metadata that cannot be read
    turn nothing.

    Args:
        image: a PIL image, a path, a file's bytes, a data URI, a numpy array (H, W, 3), or a torch tensor (3, H, W);
            all RGB. Arrays and tensors are uint8, or floats from 0 to 1 (white).

    Returns:
        A PIL image of mode RGB. The one given is left as it was.

    Raises:
        InputError: the file is missing, no image of `PICTURE_FORMATS`, or damaged; the image is empty, or a file or PIL
            image of more than `MOST_PIXELS`; a type, shape or dtype that is none of the above; floats beyond 0 and 1,
            infinite or none; a URL of the web.
    """
    if isinstance(image, np.ndarray):
        known = image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)
        _require_rgb(image, known and image.ndim == 3 and image.shape[2] == 3, "numpy array (H, W, 3)")
        return Image.fromarray(_levels(image))
    if isinstance(image, Tensor):
        known = image.dtype == torch.uint8 or image.is_floating_point()
        _require_rgb(image, known and image.ndim == 3 and image.shape[0] == 3, "torch tensor (3, H, W)")
        pixels = (image if image.dtype == torch.uint8 else image.float()).detach().cpu()  # numpy has no bfloat16
        return Image.fromarray(_levels(pixels.permute(1, 2, 0).numpy()))
    if isinstance(image, Image.Image):
        return _as_shown(image)
    if not isinstance(image, PictureFile):
        raise InputError(
            "An image must be a PIL image, a path, a file's bytes, a data URI, a numpy array (H, W, 3) or a torch "
            f"tensor (3, H, W) of dtype uint8, or of floats from 0 to 1; got {type(image).__name__}."
        )
    with open_image(image) as opened:
        return _as_shown(opened)


def load_draft(image: ImageInput, side: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """As `load_image`; but a JPEG file is decoded at a half, a quarter or an eighth of its size, which takes less time.

    It is the smallest of these of which both sides still have `side` pixels. Where the size is no multiple of it, the
    outermost pixels reach beyond the picture: by less than one of theirs.

    Args:
        image: as for `load_image`. What is no JPEG file (a PIL image is no file) is loaded at full size.
        side: in pixels, at least 1; None: everything at full size.

    Returns:
        A PIL image of mode RGB, and the (H, W) that it has at full size, upright.

    Raises:
        InputError: as `load_image`, of the size in the file.
    """
    if side is None or not isinstance(image, PictureFile):
        shown = load_image(image)
        return shown, (shown.height, shown.width)
    with open_image(image) as opened:
        stored = opened.size
        opened.draft(None, (side, side))  # changes nothing where the format knows no smaller sizes
        is_smaller = opened.size != stored
        shown = _as_shown(opened)
        if not is_smaller:
            return shown, (shown.height, shown.width)
        width, height = stored[::-1] if orientation(opened) in ON_ITS_SIDE else stored
        return shown, (height, width)


def orientation(image: Image.Image) -> int:
    """How `image` is stored, as EXIF has it: 1 (upright) to 8; 1 where it does not say, or cannot be understood.

    Raises:
        InputError: a TIFF, which has to be decoded for that, is damaged.
    """
    if image.format == "TIFF":
        _decode(image)  # Pillow turns these itself
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
        return int(found) if found in TURNS else 1
    except Exception:  # damaged metadata, met in whatever way; the picture itself is intact
        return 1


def _payload(uri: str) -> bytes:
    head, comma, data = uri.partition(",")
    if not comma:
        raise InputError(f"A data URI is data:TYPE;base64,DATA; this one has no comma: {brief(uri)}.")
    raw = unquote_to_bytes(data)
    if not head.lower().rstrip().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as error:
        raise InputError(f"The data URI {brief(uri)} holds no valid base64: {error}.") from error


def _existing(path: str | Path, what: str) -> Path:
    is_folder = False
    try:
        if Path(path).is_file():
            return Path(path)
        is_folder = str(path) != "" and Path(path).is_dir()
    except (OSError, ValueError):  # no name that a file can have, or none that may be asked for
        pass
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path), re.DOTALL)
    if url:  # a Path has lost one of its slashes
        where = brief(f"{url[1]}://{url[2]}", _LONGEST_URL)
        raise InputError(f"There is no image file {where}. Download it first: URLs are not fetched.")
    if is_folder:
        raise InputError(f"{brief(str(path), _LONGEST_PATH)} is a folder; expected one {what} file in it.")
    raise InputError(f"There is no {what} file {brief(str(path), _LONGEST_PATH)}.")


def _openable() -> list[str]:
    return [kind for kind in PICTURE_FORMATS if kind in Image.OPEN]


def _is_heif(file: Path | BytesIO) -> bool:
    with BytesIO(file.getvalue()) if isinstance(file, BytesIO) else file.open("rb") as opened:
        head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


def _register_heif(name: str) -> None:
    """Let Pillow read HEIC, if pillow-heif is there."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError(
            f"{name} is a HEIC picture, which cannot be read as an image without pillow-heif: pip install pillow-heif."
        ) from error
    register_heif_opener()


def _require_rgb(array: np.ndarray | Tensor, good: bool, expected: str) -> None:
    if not good or 0 in array.shape:
        raise InputError(
            f"Expected a {expected} of RGB values, dtype uint8 or floats from 0 to 1, with at least one pixel; "
            f"got shape {tuple(array.shape)} and dtype {array.dtype}."
        )


def _levels(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is; floats from 0 to 1 -> uint8."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):  # nor where one of them is no number
        raise InputError(
            f"An image of floats must have values from 0 (black) to 1 (white); got {low:g} to {high:g}. Divide by 255 "
            "what goes up to that, and undo a processor's normalization."
        )
    return (pixels * 255).round().astype(np.uint8)


def _name(image: Image.Image) -> str:
    file = getattr(image, "filename", "")
    return f"The image file {str(file)!r}" if file else f"The {image.mode} image"


def _decode(image: Image.Image) -> None:
    require_pixels(image)
    try:
        image.load()
    except Exception as error:  # a decoder meets damage with whatever error it runs into first
        raise InputError(f"{_name(image)} cannot be decoded; it may be damaged or cut off: {error}") from error


def _as_shown(image: Image.Image) -> Image.Image:
    """Decode, turn upright and convert to RGB."""
    name = _name(image)
    if 0 in image.size:
        raise InputError(f"{name} is empty: {image.width} x {image.height} pixels.")
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels, whose white is not defined. Convert it to 8 bits first.")
    _decode(image)
    try:
        turn = TURNS.get(orientation(image))
        upright = image if turn is None else image.transpose(turn)
        if upright.mode.startswith("I"):
            return _from_16_bits(upright, name)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        # A copy of what was given; where it was turned or laid on white it is one already.
        shown = upright if upright is not image and upright.mode == "RGB" else upright.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # such as a palette that is cut off
        raise InputError(f"{name} cannot be shown as RGB: {error}") from error
    shown.info = {key: value for key, value in shown.info.items() if key not in _TELLS_ORIENTATION}
    return shown


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    levels: Any = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise InputError(
            f"{name} has 32-bit pixels from {levels.min()} to {levels.max()}, whose white is not defined "
            "(16-bit greyscale: 0 to 65535). Convert it to 8 bits first."
        )
    return Image.fromarray(((levels.astype(np.int32) + 128) // 257).astype(np.uint8)).convert("RGB")  # rounded
