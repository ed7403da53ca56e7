"""Whether what shortcuts tell about a size is what a measurement finds: `python -m tests.zoo.sizes [SPECIMEN ...]`.

Every specimen's processor meets the same sizes, one after the other. What is known of each by then (measured, or told)
is held against a measurement of its own. It takes half an hour; the suite does it for some (tests/vlm).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lens_adapter.errors import LensError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.layout import tokens
from lens_adapter.vlm.layout.measured import ENOUGH, Sizes
from tests.zoo.checks import noise_image
from tests.zoo.specimens import ZOO, architectures

Extent = tuple[int, int]

PHOTOGRAPHS = ((480, 640), (427, 640), (333, 500), (500, 375), (640, 481), (375, 500), (425, 639), (512, 383))
ODD = ((300, 301), (512, 512), (511, 511), (383, 512), (81, 640), (640, 90), (47, 33), (61, 97), (20, 30))
LARGE = ((768, 1024), (767, 1022), (1067, 1600), (1080, 1920), (1079, 1621), (1500, 1999), (2000, 1333))
SIZES = (*PHOTOGRAPHS, *ODD, *LARGE)


@dataclass(frozen=True)
class Held:
    """What came of it: sizes that were measured, told, refused by the processor, and of these the ones told wrongly."""

    measured: list[Extent]
    told: list[Extent]
    refused: list[Extent]
    wrong: list[Extent]
    by: set[type] = field(default_factory=set)


def hold(name: str, sizes: Sequence[Extent] = SIZES) -> Held:
    """Let a specimen's processor meet `sizes`, in order."""
    model, processor = ZOO[name].build()
    anatomy = find_anatomy(model)
    layout = tokens._known_layout(anatomy)
    read = tokens._reader(layout, anatomy)

    def show(picture):
        return read(tokens._preprocess(processor, picture, layout.from_text))

    known, held = Sizes(), Held([], [], [], [])
    for size in sizes:
        try:
            images = show(noise_image(size))
            measured = Sizes().measured(show, size, None)
        except (LensError, ValueError, IndexError):
            held.refused.append(size)
            continue
        before = known.measurements
        found = known.measured(show, size, images)
        (held.measured if known.measurements > before else held.told).append(size)
        same = (found.pictures, found.grids, found.frames, found.shapes) == (
            *(measured.pictures, measured.grids, measured.frames),
            measured.shapes,
        ) and all(map(torch.equal, found.paddings, measured.paddings))
        if not same:
            held.wrong.append(size)
    held.by.update(type(one) for one in known.shortcuts if known.agreements(one) >= ENOUGH)
    return held


if __name__ == "__main__":
    torch.set_num_threads(1)
    wrong = 0
    for name in sys.argv[1:] or sorted(set(ZOO) & set(architectures())):
        held = hold(name)
        wrong += len(held.wrong)
        counts = f"measured {len(held.measured):2d}, told {len(held.told):2d}, refused {len(held.refused):2d}"
        print(f"{name:24s} {counts}, wrong {held.wrong}", flush=True)
    sys.exit(wrong > 0)
