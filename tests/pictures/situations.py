"""Twenty pictures with masks as users have them, to be looked at after every change of what is drawn.

python -m tests.pictures.situations sheet.png
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from lens_adapter.builtin.world import sample_scene
from lens_adapter.output import Instances, LensOutput
from lens_adapter.pictures.text import font

Mask = np.ndarray  # bool (H, W)


def output_of(image: Image.Image, masks: dict[str, Mask], scores: Iterable[float] = (), absent: int = 0) -> LensOutput:
    """Prompts and their masks; the last `absent` ones were not found. A keypoint in the middle of every mask."""
    count = len(masks)
    shapes = torch.from_numpy(np.stack([*masks.values()]))
    found = torch.arange(count) < count - absent
    points = [_middle(mask) for mask in masks.values()]
    return LensOutput(
        prompts=[*masks],
        image_size=image.size[::-1],
        masks=shapes,
        scores=torch.tensor([*scores] or [0.95 - 0.05 * index for index in range(count)]),
        keypoints=points,
        keypoint_scores=[torch.ones(len(each)) for each in points],
        heatmaps=torch.zeros(count, 8, 8),
        image=image,
        found=found,
    )


def _middle(mask: Mask) -> torch.Tensor:
    """The pixel of a mask nearest to its mean."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return torch.zeros(0, 2)
    nearest = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
    return torch.tensor([[columns[nearest] + 0.5, rows[nearest] + 0.5]], dtype=torch.float32)


def scene(index: int, side: int, *, only: int | None = None) -> LensOutput:
    """A scene of the built-in world with every thing that it holds."""
    world = sample_scene(index, "test")
    masks = world.masks(side)
    named = {
        f"the {thing.name} ({number})": mask
        for number, (thing, mask) in enumerate(zip(world.objects, masks, strict=True))
    }
    return output_of(world.draw(side), dict([*named.items()][:only]))


def disc(size: tuple[int, int], x: float, y: float, radius: float, stretch: float = 1.0) -> Mask:
    """An ellipse; x, y and radius in fractions of the picture and of its smaller side."""
    width, height = size
    rows, columns = np.ogrid[:height, :width]
    radius *= min(size)
    return ((columns - x * width) / stretch) ** 2 + (rows - y * height) ** 2 < radius**2


def textured(size: tuple[int, int], dark: int = 90, light: int = 170) -> Image.Image:
    """Fine stripes and a slope of light: a ground whose texture a fill may hide."""
    rows, columns = np.ogrid[: size[1], : size[0]]
    stripes = (rows // max(size[1] // 60, 1) + columns // max(size[0] // 60, 1)) % 2
    levels = dark + (light - dark) * (0.6 * stripes + 0.4 * columns / size[0])
    return Image.fromarray(np.stack([levels, levels * 0.96, levels * 0.9], -1).astype(np.uint8))


def _many() -> LensOutput:
    size = (640, 480)
    places = [(0.12 + 0.25 * (k % 4), 0.2 + 0.3 * (k // 4)) for k in range(12)]
    return output_of(
        textured(size), {f"thing number {k + 1}": disc(size, *place, 0.09) for k, place in enumerate(places)}
    )


def _twelve_in_a_scene() -> LensOutput:
    out = scene(4918, 480)
    mask, names = (
        out.masks,
        ["what is red", "everything with wheels", "the two cars", "something old", "a way to travel"],
    )
    shapes = {**{p: m.numpy() for p, m in zip(out.prompts, mask, strict=True)}}
    shapes |= {name: (mask[k % len(mask)] | mask[(k + 1) % len(mask)]).numpy() for k, name in enumerate(names)}
    return output_of(out.image, dict([*shapes.items()][:12]))


def _overlaps(size: tuple[int, int] = (480, 360)) -> LensOutput:
    masks = {
        "the crowd": disc(size, 0.45, 0.5, 0.38, 1.5),
        "the man": disc(size, 0.35, 0.45, 0.22),
        "the coat": disc(size, 0.5, 0.6, 0.25),
        "the hat": disc(size, 0.33, 0.32, 0.08, 1.5),
    }
    return output_of(textured(size), masks)


def _same() -> LensOutput:
    out = scene(148846, 480)
    return output_of(
        out.image,
        {
            "the dog": out.masks[1].numpy(),
            "the animal that barks": out.masks[1].numpy(),
            "a pet": out.masks[1].numpy(),
            "the sheep": out.masks[0].numpy(),
        },
    )


def _at_the_border(size: tuple[int, int] = (480, 360)) -> LensOutput:
    places = {
        "top left": (0, 0),
        "top right": (1, 0),
        "bottom": (0.5, 1),
        "right edge": (1, 0.6),
        "left edge": (0, 0.6),
    }
    return output_of(textured(size, 60, 120), {name: disc(size, x, y, 0.2) for name, (x, y) in places.items()})


def _plain(level: int, size: tuple[int, int] = (480, 360)) -> LensOutput:
    masks = {f"colour {k + 1}": disc(size, 0.15 + 0.23 * (k % 4), 0.3 + 0.45 * (k // 4), 0.12) for k in range(7)}
    return output_of(Image.new("RGB", size, (level,) * 3), masks)


def _full(size: tuple[int, int] = (480, 360)) -> LensOutput:
    return output_of(
        textured(size), {"the whole picture": np.ones(size[::-1], bool), "a ball": disc(size, 0.6, 0.5, 0.15)}
    )


def _tiny_things(size: tuple[int, int] = (640, 480)) -> LensOutput:
    masks = {f"bird {k + 1}": disc(size, 0.3 + 0.05 * k, 0.4 + 0.04 * (k % 3), 0.008) for k in range(5)}
    return output_of(textured(size, 150, 200), masks)


def _empty() -> LensOutput:
    out = scene(27603, 400, only=2)
    nothing = np.zeros((400, 400), bool)
    masks = {out.prompts[0]: out.masks[0].numpy(), "a hole in the ground": nothing, "a unicorn": nothing}
    return output_of(out.image, masks, (0.93, 0.61, 0.04), absent=1)


def _instances() -> LensOutput:
    out = scene(4918, 480)
    cars = out.masks[1:3]
    together = output_of(out.image, {"both cars": cars.any(0).numpy(), "the rest": out.masks[3].numpy()})
    parts = [Instances(cars, torch.ones(2)), Instances(out.masks[3:4], torch.ones(1))]
    return replace(together, instances=parts)


def _tattered(size: tuple[int, int] = (480, 360)) -> LensOutput:
    noise = np.random.default_rng(0).random((size[1] // 6, size[0] // 6)) > 0.55
    mask = noise.repeat(6, 0).repeat(6, 1) & disc(size, 0.5, 0.5, 0.35, 1.3)
    return output_of(textured(size), {"leaves in the wind": mask})


def _foreign() -> LensOutput:
    out = scene(148846, 480)
    names = [
        "собака слева",
        "كلب على اليسار",
        "木の左の犬",
        "ο σκύλος",
        "a very long prompt that goes on and on about a dog",
    ]
    return output_of(out.image, {name: mask.numpy() for name, mask in zip(names, out.masks, strict=True)})


SITUATIONS: dict[str, Callable[[], LensOutput]] = {
    "a scene": lambda: scene(148846, 480),
    "a scene of 1024 pixels": lambda: scene(27603, 1024),
    "a crowded scene": lambda: scene(58341, 384),
    "masks that overlap": _overlaps,
    "prompts for the same thing": _same,
    "twelve things": _many,
    "twelve prompts in a scene": _twelve_in_a_scene,
    "tiny things": _tiny_things,
    "all of the picture": _full,
    "at the border": _at_the_border,
    "a dark picture": lambda: _plain(12),
    "a white picture": lambda: _plain(255),
    "a grey picture": lambda: _plain(128),
    "absent and empty": _empty,
    "instances": _instances,
    "a tattered mask": _tattered,
    "other scripts": _foreign,
    "very wide": lambda: _row((1600, 160)),
    "very tall": lambda: _row((160, 1200)),
    "32 pixels": lambda: scene(148846, 32),
    "64 pixels": lambda: scene(148846, 64),
    "24 megapixels": lambda: _overlaps((6000, 4000)),
}


def _row(size: tuple[int, int]) -> LensOutput:
    wide = size[0] > size[1]
    steps = [0.1 + 0.2 * k for k in range(5)]
    masks = {f"stone {k + 1}": disc(size, *((s, 0.5) if wide else (0.5, s)), 0.3) for k, s in enumerate(steps)}
    return output_of(textured(size), masks)


def sheet(width: int = 480, columns: int = 4) -> Image.Image:
    """All of them, smaller ones enlarged pixel by pixel."""
    pictures = {name: made().plot() for name, made in SITUATIONS.items()}
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (width + 12), rows * (width + 36)), "white")
    for place, (name, picture) in enumerate(pictures.items()):
        zoom = width / max(picture.size)
        way = Image.Resampling.LANCZOS if zoom < 1 else Image.Resampling.NEAREST
        shown = (
            picture.resize([max(1, round(zoom * side)) for side in picture.size], way)
            if zoom < 1 or zoom > 2
            else picture
        )
        left, top = place % columns * (width + 12), place // columns * (width + 36)
        page.paste(shown, (left, top + 24))
        ImageDraw.Draw(page).text((left, top + 4), f"{name}, {picture.width} x {picture.height}", "black", font(13))
    return page


if __name__ == "__main__":
    sheet().save(sys.argv[1])
