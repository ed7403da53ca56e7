"""Text set in pictures: fonts, shortening, wrapping."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from PIL import ImageFont


def font(size: int, *, bold: bool = False, text: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it; for a text that it lacks letters for, a font of the system that has them."""
    usual = _usual(bold)
    lacking = _lacking(usual, text)
    return _open_font((_font_with(lacking) if lacking else None) or usual, size)


def can_write(text: str) -> bool:
    """Whether there is a font here with all letters of `text`."""
    lacking = _lacking(_usual(bold=True), text)
    return not lacking or _font_with(lacking) is not None


def _usual(bold: bool) -> str:
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


def _lacking(file: str, text: str) -> frozenset[str]:
    return frozenset(letter for letter in text if letter.isprintable() and not _has(file, letter))


@cache
def _open_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=64)
def _font_with(letters: frozenset[str]) -> str | None:
    """The file of a font that has these letters and plain ones; None: there is none here."""
    files = dict.fromkeys(entry.fname for entry in font_manager.fontManager.ttflist if entry.style == "normal")
    for file in files:
        # "Last Resort" has a box for every letter there is.
        if "LastResort" not in file and all(_has(file, letter) for letter in (*letters, "a", "0")):
            return file
    return None


def _has(file: str, letter: str) -> bool:
    return font_manager.get_font(file).get_char_index(ord(letter)) != 0


def shortened(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """`text` on one line, cut with an ellipsis where it would be wider than `width` pixels; "" if nothing fits."""
    text = " ".join(text.split())
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """`text` broken between words into at most `lines` lines, the last one cut."""
    words = text.split()
    wrapped: list[str] = []
    while words and len(wrapped) < lines - 1:
        taken = 1
        while taken < len(words) and face.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        wrapped.append(shortened(" ".join(words[:taken]), face, width))
        words = words[taken:]
    return [*wrapped, shortened(" ".join(words), face, width)] if words else wrapped
