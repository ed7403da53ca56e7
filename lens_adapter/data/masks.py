"""Regions of images, in every way that data sets write them down, as masks of the image as a viewer shows it.

A region is one of

    None                                    nothing: the prompt names what is not there
    array (H, W)                            what is not zero; also nested lists of bools
    path, bytes or PIL image                a picture with one channel; what is not zero (of a palette: its index)
    {"size": [H, W], "counts": ...}         COCO's run lengths: a list (uncompressed), or a text (compressed)
    [x, y, x, y, ...] or [[x, y], ...]      a polygon in pixels
    [[x, y, x, y, ...], ...]                a polygon of several parts; their union
    {"size": [H, W], "polygons": ...}       either of these, drawn on an image of that size
    a list of regions                       their union (None, an array or a polygon without its size cannot be in it)
    an object with `draw(size) -> mask`     draws itself
    a callable without arguments            returns one of these when it is needed

A viewer turns some images, as their EXIF orientation says. A mask of the size as shown stays as it is; one of the size
as stored is turned with its image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from lens_adapter.data.shapes import Size, brief, fill_polygons, fill_runs
from lens_adapter.errors import InputError

Region = Any

# EXIF orientations that lay an image on its side, and how its mask is set upright; the others keep the size.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    5: lambda mask: mask.T,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask.T, 2),
    8: np.rot90,
}


@dataclass(frozen=True)
class ShownSize:
    """Size (H, W) in pixels of an image as shown, and the EXIF orientation that it is stored in."""

    size: Size
    orientation: int = 1

    @classmethod
    def of(cls, image: Image.Image) -> ShownSize:
        """That of an image, which need not be decoded yet."""
        if image.format == "TIFF":
            image.load()  # Pillow turns these itself
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = image.size[::-1] if orientation in _TURNS else image.size
        return cls((height, width), orientation)

    def require(self, size: Sequence[int]) -> None:
        """Raise unless `size` is that of the image, as shown or as stored."""
        allowed = [self.size, self.size[::-1]] if self.orientation in _TURNS else [self.size]
        if tuple(size) not in allowed:
            raise InputError(
                f"A mask is {size[1]} x {size[0]} pixels; its image, as a viewer shows it, {self.size[1]} x "
                f"{self.size[0]}. Masks are drawn on the image at full size."
            )

    def upright(self, mask: np.ndarray) -> np.ndarray:
        """`mask`, bool (H, W), as shown."""
        self.require(mask.shape)
        return mask if mask.shape == self.size else np.ascontiguousarray(_TURNS[self.orientation](mask))


def decode(region: Region, shown: ShownSize) -> np.ndarray:
    """bool (H, W): the mask of a region on an image that a viewer shows at this size.

    Raises:
        InputError: no region, a damaged one, or one of another size than the image.

    Examples:
        >>> decode({"size": [2, 3], "counts": [2, 2, 2]}, ShownSize((2, 3))).astype(int)  # down columns, as COCO
        array([[0, 1, 0],
               [0, 1, 0]])
        >>> decode([[1, 0, 3, 0, 3, 2, 1, 2]], ShownSize((2, 3))).astype(int)  # x, y, x, y, ...
        array([[0, 1, 1],
               [0, 1, 1]])
    """
    if callable(region):
        region = region()
    if region is None:
        return np.zeros(shown.size, bool)
    if hasattr(region, "draw"):
        return shown.upright(region.draw(shown.size))
    if isinstance(region, str | Path | bytes | Image.Image):
        return shown.upright(read_levels(region) != 0)
    if isinstance(region, dict) and "size" in region:
        size = _size(region["size"])
        shown.require(size)
        mask = fill_runs(region["counts"], size) if "counts" in region else fill_polygons(region.get("polygons"), size)
        return shown.upright(mask)
    if isinstance(region, np.ndarray) and region.ndim == 1:
        region = region.tolist()
    if isinstance(region, list | tuple) and region and not _holds_bools(region):
        if isinstance(region[0], Real | list | tuple | np.ndarray):
            return fill_polygons(region, shown.size)
        union: np.ndarray = np.logical_or.reduce([decode(part, shown) for part in region])
        return union
    array = np.asarray(region) if isinstance(region, np.ndarray | list | tuple) else None
    if array is None or array.ndim != 2 or array.dtype.kind not in "biuf":
        raise InputError(f"Expected a mask, run lengths or polygons, got {brief(region)}.")
    return shown.upright(array != 0)


def annotation_regions(annotation: dict[str, Any], image: dict[str, Any]) -> list[Region]:
    """The regions whose union a COCO annotation is, given the entry of its image.

    Raises:
        InputError: it has none.
    """
    segmentation = annotation["segmentation"]
    if not segmentation:
        raise InputError(f"The annotation {annotation.get('id')!r} has no segmentation.")
    if isinstance(segmentation, dict):
        return [segmentation]
    if isinstance(segmentation[0], dict):  # run lengths, as refCLEF has them
        return list(segmentation)
    return [{"size": (image["height"], image["width"]), "polygons": segmentation}]


def read_levels(picture: str | Path | bytes | Image.Image) -> np.ndarray:
    """(H, W): the values of a picture with one channel; of a palette, its indices.

    Raises:
        InputError: it cannot be read, has several channels, or is a JPEG, which changes values.
    """
    name = f"The mask {str(picture)!r}" if isinstance(picture, str | Path) else "A mask"
    try:
        if not isinstance(picture, Image.Image):
            picture = Image.open(BytesIO(picture if isinstance(picture, bytes) else Path(picture).read_bytes()))
        channels, lossy, levels = picture.getbands(), picture.format == "JPEG", np.asarray(picture)
    except Exception as error:  # a decoder meets damage with whatever error it runs into first
        raise InputError(f"{name} cannot be read as an image: {error}") from error
    if len(channels) != 1 or lossy:
        raise InputError(
            f"{name} is a {'JPEG' if lossy else 'picture'} with the channels {''.join(channels)}; expected a PNG with "
            "one (greyscale, black and white, or a palette), zero outside the target."
        )
    return levels


def _size(size: Any) -> Size:
    numbers = np.ravel(np.asarray(size, object)).tolist()
    if len(numbers) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in numbers):
        raise InputError(f"Expected the size of a mask as [height, width], got {brief(size)}.")
    return int(numbers[0]), int(numbers[1])


def _holds_bools(rows: Sequence[Any]) -> bool:
    first = rows[0]
    if isinstance(first, list | tuple | np.ndarray) and len(first):
        first = first[0]
    return isinstance(first, bool | np.bool_)
