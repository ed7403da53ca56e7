"""ReasonSeg: a folder of images, each with a JSON file of the same name that LabelMe might have written.

    {"text": ["..."], "is_sentence": true, "shapes": [{"label": "target", "points": [[x, y], ...]}, ...]}

Shapes are painted over one another, the largest first, so that small ones stay visible. What is left of a shape whose
label holds "ignore" counts neither way; a shape labelled "flag" means nothing. Some files are not UTF-8 but cp1252.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lens_adapter.data.breakage import OnError, collect
from lens_adapter.data.files import IMAGE_SUFFIXES, read_json, require_folder
from lens_adapter.data.records import Record
from lens_adapter.data.shapes import Size, draw_outlined
from lens_adapter.errors import InputError

_IGNORED, _TARGET = 255, 1
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Painting:
    """A region: the pixels that have `value` once all shapes are painted."""

    shapes: tuple[tuple[Points, int], ...]
    value: int

    def draw(self, size: Size) -> np.ndarray:
        drawn: np.ndarray = _paint(self.shapes, size) == self.value
        return drawn


@lru_cache(maxsize=2)  # the target and what to ignore are asked for in turn
def _paint(shapes: tuple[tuple[Points, int], ...], size: Size) -> np.ndarray:
    drawn = [(draw_outlined(points, size), value) for points, value in shapes]
    canvas = np.zeros(size, np.uint8)
    for mask, value in sorted(drawn, key=lambda shape: int(shape[0].sum()))[::-1]:  # of equals, the last comes first
        canvas[mask] = value
    return canvas


def read_reason_seg(folder: str | Path, on_error: OnError = "raise") -> list[Record]:
    """A record per image with all its texts, which name the same; subset "long" (sentences) or "short".

    Args:
        folder: of one split, e.g. "ReasonSeg/val". Its JSON files are read now, images when asked for.
        on_error: "raise" over a broken record (e.g. an image without its JSON file), or "skip" it with a warning.
    """
    require_folder(Path(folder), "the images and JSON files of a split of ReasonSeg")
    images = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return collect(folder, enumerate(images), _read, on_error)


def _read(image: Path) -> Record:
    path = image.with_suffix(".json")
    entry = read_json(path, ("utf-8-sig", "cp1252"))
    try:
        texts = [entry["text"]] if isinstance(entry["text"], str) else list(entry["text"])
        labelled = [(shape["label"].lower(), shape["points"]) for shape in entry["shapes"]]
        shapes = tuple(
            (tuple((float(x), float(y)) for x, y in points), _IGNORED if "ignore" in label else _TARGET)
            for label, points in labelled
            if label != "flag"
        )
        subset = "long" if entry["is_sentence"] else "short"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path.name} is not as ReasonSeg writes it: {error!r}.") from error
    return Record(
        image=image,
        prompts=[text.strip() for text in texts],
        regions=[_Painting(shapes, _TARGET)] * len(texts),
        ignored=_Painting(shapes, _IGNORED) if any(value == _IGNORED for _, value in shapes) else None,
        id=image.stem,
        subset=subset,
    )
