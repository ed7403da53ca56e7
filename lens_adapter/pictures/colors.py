"""The colors of prompts and of pages, and the ink that reads on each."""

from __future__ import annotations

RGB = tuple[int, ...]  # red, green, blue (and opacity, where it says so), 0 to 255

WHITE, INK, GREY, HAIRLINE = (255, 255, 255), (28, 32, 38), (104, 112, 124), (222, 226, 231)

# Okabe and Ito's colors, told apart by nearly every eye (jfly.uni-koeln.de/color); black is left out.
PALETTE: tuple[RGB, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
    (240, 228, 66),  # yellow
)
_SHADES = ((0, 0.0), (0, 0.45), (255, 0.55))  # towards black or white, and how far
SHADES = len(_SHADES)


def color_of(index: int) -> RGB:
    """The color of the prompt at `index`: of the palette, then darker, then lighter, and so round again."""
    towards, share = _SHADES[index // len(PALETTE) % SHADES]
    return tuple(round(level + share * (towards - level)) for level in PALETTE[index % len(PALETTE)])


def ink_on(color: RGB) -> RGB:
    """White or near-black, whichever reads better on `color` (WCAG's relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if (luminance + 0.05) ** 2 > 1.05 * 0.06 else WHITE
