"""Pictures as files: whole or not at all, in the format that the name says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from PIL import Image

from lens_adapter.errors import InputError, brief
from lens_adapter.writing import written_aside

ANIMATIONS = (".gif", ".webp", ".png")  # what Pillow writes several pictures into, to be shown one after the other
FASTEST = 100  # pictures per second; a GIF counts in hundredths of one


def picture_format(path: str | PathLike[str]) -> str:
    """Pillow's name of the format that a file's suffix stands for, one that it can write.

    Raises:
        InputError: there is none.
    """
    Image.init()
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind is None or not _can_be_written(kind):
        raise InputError(
            f"{brief(fspath(path), 300)} must end like a picture that can be written, e.g. in .png or .jpg."
        )
    return kind


@cache
def _can_be_written(kind: str) -> bool:
    """Some formats are only read here, some know no color, and some need a program that is not there."""
    try:
        Image.new("RGB", (8, 8)).save(BytesIO(), kind)
    except Exception:  # as each of Pillow's writers says it
        return False
    return True


def save_picture(picture: Image.Image, path: str | PathLike[str]) -> None:
    """Write a picture to `path`; what is there is kept until all of the new one is.

    Raises:
        InputError: the suffix is of no picture, the picture does not go into that format, or nothing can be written
            there.
    """
    _write(picture, path, picture_format(path))


def require_animation(path: str | PathLike[str], fps: float) -> None:
    """Refuse what `save_animation` cannot write.

    Raises:
        InputError: another suffix than `ANIMATIONS`, or an impossible `fps`.
    """
    if Path(path).suffix.lower() not in ANIMATIONS:
        raise InputError(f"{brief(fspath(path), 300)} must end in {', '.join(ANIMATIONS)}: the animations of pictures.")
    if not isinstance(fps, int | float) or not 0 < fps <= FASTEST:
        raise InputError(f"fps must be a number above 0 and at most {FASTEST}; got {brief(fps)}.")


def save_animation(pictures: Sequence[Image.Image], path: str | PathLike[str], fps: float) -> None:
    """Write pictures of one size to `path` as an animation that begins anew at its end, as `save_picture` writes one.

    Equal pictures that follow each other may be stored as one that stays longer.

    Args:
        pictures: at least one.
        path: ends in one of `ANIMATIONS`.
        fps: pictures per second.

    Raises:
        InputError: as `require_animation`; or they do not go into that format, or nothing can be written there.
    """
    require_animation(path, fps)
    first, *others = pictures
    moving = {"save_all": True, "append_images": others, "duration": 1000 / fps, "loop": 0}
    _write(first, path, picture_format(path), **moving)


def _write(picture: Image.Image, path: str | PathLike[str], kind: str, **settings: Any) -> None:
    with written_aside(path) as aside:
        try:
            picture.save(aside, kind, **settings)
        except OSError as error:
            raise InputError(f"{brief(fspath(path), 300)} cannot be written: {error}.") from error
        except Exception as error:  # such as more pixels along a side than the format has numbers for
            raise InputError(
                f"A picture of {picture.width} x {picture.height} pixels cannot be written as {kind}: {error}. Choose "
                "another format, .png say."
            ) from error
