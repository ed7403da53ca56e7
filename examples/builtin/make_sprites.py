"""Draw the sheet of pictures of the built-in world's things from Noto Color Emoji.

Needs the font (Debian: fonts-noto-color-emoji) and scipy. The package needs neither: the sheet ships with it.

    python examples/builtin/make_sprites.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lens_adapter.builtin.world.catalog import THINGS
from lens_adapter.builtin.world.sprites import CELL, COLUMNS, SHEET

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAPS = 109  # the only size at which the font holds pictures
SPECK = 0.03  # islands below this share of the largest are no part of the thing: stars around a rocket, say
KEEPS_NOTHING_ELSE = ("racket",)  # comes with a ball; only its largest island stays
PINHOLE = 0.008  # holes below this share of the thing are closed, a little darker than their rim: between strings, say


def clean(picture: Image.Image, only_largest: bool) -> Image.Image:
    """The trimmed picture without glow, steam and specks; glass and wings become solid, edges stay smooth."""
    pixels = np.asarray(picture).astype(np.float32)
    alpha = np.clip((pixels[..., 3] / 255 - 0.3) / 0.4, 0, 1)
    islands, count = ndimage.label(alpha > 0.5, np.ones((3, 3)))
    areas = ndimage.sum_labels(np.ones_like(alpha), islands, np.arange(1, count + 1))
    least = areas.max() * (1.0 if only_largest else SPECK)
    kept = np.isin(islands, 1 + np.flatnonzero(areas >= least))
    alpha *= ndimage.binary_dilation(kept, iterations=2)  # with the smooth edge around it
    pixels[..., 3] = 255 * alpha
    # Under transparent pixels the nearest color, so that no dark fringe appears where the picture is shrunk.
    _, nearest = ndimage.distance_transform_edt(alpha < 0.9, return_indices=True)
    pixels[..., :3] = pixels[..., :3][tuple(nearest)]
    holes, count = ndimage.label(alpha < 0.7)
    areas = ndimage.sum_labels(np.ones_like(alpha), holes, np.arange(1, count + 1))
    closed = np.isin(holes, 1 + np.flatnonzero(areas < PINHOLE * kept.sum()))
    pixels[closed, :3] *= 0.8
    pixels[closed, 3] = 255
    cleaned = Image.fromarray(pixels.astype(np.uint8))
    return cleaned.crop(cleaned.getchannel("A").point(lambda a: 255 * (a > 25)).getbbox())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--output", type=Path, default=SHEET)
    args = parser.parse_args()
    font = ImageFont.truetype(str(args.font), BITMAPS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(THINGS) // COLUMNS) * CELL))
    for k, thing in enumerate(THINGS.values()):
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((8, 8), thing.emoji, font=font, embedded_color=True)
        sprite = clean(glyph, thing.name in KEEPS_NOTHING_ELSE)
        left, top = k % COLUMNS * CELL, k // COLUMNS * CELL
        sheet.paste(sprite, (left + (CELL - sprite.width) // 2, top + (CELL - sprite.height) // 2))
    sheet.save(args.output, lossless=True, method=6)
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
