"""Draw docs/things.png: scenes of the built-in world, each with a prompt and the mask that is its truth.

python examples/builtin/show_things.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from lens_adapter.builtin.world import Scene, sample_scene
from lens_adapter.pictures.colors import GREY, INK, WHITE
from lens_adapter.pictures.overlays import mask_overlay
from lens_adapter.pictures.text import font, wrap

OUTPUT = Path(__file__).parents[2] / "docs" / "things.png"
SIDE, GAP, CAPTION, COLUMNS = 256, 14, 46, 4
OUTLINE = 4  # vermillion, in the palette
NOTHING = "(nothing: there is none)"

# Test scenes behind the 1 000 of the published figures: index, prompt, objects that it names.
SHOWN: tuple[tuple[int, str, tuple[int, ...]], ...] = (
    (2442, "the blue car", (2,)),
    (1226, "the hat between the animal and the vehicle", (3,)),
    (1053, "the second cat from the left", (4,)),
    (1152, "the largest animal", (4,)),
    (1059, "all animals", (3, 4, 5)),
    (2454, "the two dogs", (1, 4)),
    (1229, "the animal left of the cat", (4,)),
    (1222, "something that makes music", ()),
    (1060, "something you can eat", (3,)),
    (1256, "everything that has wheels", (0, 3)),
    (1085, "the animal that gives milk", (3,)),
    (2609, "what you would use to cut paper", (3,)),
)


def panel(scene: Scene, prompt: str, targets: tuple[int, ...]) -> Image.Image:
    """The scene with the mask of what is named, and the prompt below it."""
    picture = scene.draw(2 * SIDE)
    if targets:
        mask = scene.masks(2 * SIDE)[list(targets)].any(0)
        pale = Image.blend(picture, Image.new("RGB", picture.size, WHITE), 0.5)
        picture = Image.composite(picture, pale, Image.fromarray(mask))
        picture = mask_overlay(picture, torch.from_numpy(mask)[None], colors=[OUTLINE], fill=0, unit=3)
    page = Image.new("RGB", (SIDE, SIDE + CAPTION), WHITE)
    page.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (0, 0))
    pen = ImageDraw.Draw(page)
    lines = [(line, INK) for line in wrap(prompt, font(14, bold=True), SIDE, 2)]
    lines += [] if targets else [(NOTHING, GREY)]
    for row, (line, ink) in enumerate(lines):
        pen.text((0, SIDE + 5 + 19 * row), line, ink, font(14, bold=ink == INK))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    rows = -(-len(SHOWN) // COLUMNS)
    size = (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + GAP)
    page = Image.new("RGB", size, WHITE)
    for k, (index, prompt, targets) in enumerate(SHOWN):
        row, column = divmod(k, COLUMNS)
        corner = (GAP + column * (SIDE + GAP), GAP + row * (SIDE + CAPTION + GAP))
        page.paste(panel(sample_scene(index, "test"), prompt, targets), corner)
    palette = page.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)
    page.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(args.output, optimize=True)
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
