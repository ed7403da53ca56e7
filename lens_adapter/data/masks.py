"""Regions of images, in every way that data sets write them down, as masks of the image as a viewer shows it.

A region is one of

    None                                    nothing: the prompt names what is not there
    H rows of W numbers                     a mask: what is not zero. An array, a tensor or nested lists; also (1, H, W)
                                            and (H, W, 1). Numbers below zero and NaN are refused
    path, data URI, bytes or PIL image      a picture with one channel; what is not zero (of a palette: its index)
    {"size": [H, W], "counts": ...}         COCO's run lengths: a list (uncompressed), or a text (compressed)
    [x, y, x, y, ...] or [[x, y], ...]      a polygon in pixels
    [[x, y, x, y, ...], ...]                a polygon of several parts; their union, which covers at least one pixel
    {"size": [H, W], "polygons": ...}       either of these, drawn on an image of that size
    a list of regions                       their union (None, an array or a polygon without its size cannot be in it)
    an object with `draw(size) -> mask`     draws itself
    a callable without arguments            returns one of these when it is needed

A viewer turns some images, as their EXIF orientation says. A mask of the size as shown stays as it is; one of the size
as stored is turned with its image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lens_adapter.data.files import as_flag
from lens_adapter.data.shapes import NoPixelError, Size, as_numbers, fill_polygons, fill_runs
from lens_adapter.errors import InputError, brief
from lens_adapter.vlm.images import PictureFile, open_image, orientation, require_pixels

Region = Any
_PARTS = (Real, np.generic, list, tuple, np.ndarray, Tensor)  # of masks and polygons; other lists hold regions

# EXIF orientations that lay an image on its side, and how its mask is set upright; the others keep the size.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    5: lambda mask: mask.T,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask.T, 2),
    8: np.rot90,
}
# Pictures that keep every value of a mask.
_LOSSLESS = ("PNG", "BMP", "DIB", "GIF", "TIFF", "PPM", None)


@dataclass(frozen=True)
class ShownSize:
    """Size (H, W) in pixels of an image as shown, and the EXIF orientation that it is stored in."""

    size: Size
    orientation: int = 1

    @classmethod
    def of(cls, image: Image.Image) -> ShownSize:
        """That of an image, which need not be decoded yet."""
        stored = orientation(image)
        width, height = image.size[::-1] if stored in _TURNS else image.size
        return cls((height, width), stored)

    def fits(self, size: Sequence[int]) -> bool:
        """Whether `size` is that of the image, as shown or as stored."""
        return tuple(size) == self.size or (self.orientation in _TURNS and tuple(size) == self.size[::-1])

    def require(self, size: Sequence[int]) -> None:
        """Raise unless `size` is that of the image, as shown or as stored."""
        if not self.fits(size):
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
    try:
        return _decode(region, shown)
    except InputError:
        raise
    except Exception as error:  # what was written by others breaks in whatever way comes first
        raise InputError(f"The mask {brief(region)} is malformed: {brief(error, 300)}.") from error


def _decode(region: Region, shown: ShownSize) -> np.ndarray:
    if callable(region):
        region = region()
    if region is None:
        return np.zeros(shown.size, bool)
    if hasattr(region, "draw"):
        return shown.upright(region.draw(shown.size))
    if isinstance(region, PictureFile | Image.Image):
        return shown.upright(_target(read_levels(region)))
    if isinstance(region, dict) and "size" in region:
        size = _size(region["size"])
        shown.require(size)
        if "counts" in region:
            return shown.upright(fill_runs(region["counts"], size))
        return shown.upright(_drawn(region.get("polygons"), ShownSize(size)))
    if isinstance(region, list | tuple) and region and not any(isinstance(part, _PARTS) for part in region):
        return _union(region, shown)
    if not isinstance(region, list | tuple | np.ndarray | Tensor) or not len(region):
        raise InputError(f"Expected a mask, run lengths or polygons, got {brief(region)}.")
    return shown.upright(_drawn(region, shown))


def _union(regions: Sequence[Region], shown: ShownSize) -> np.ndarray:
    """What any of the regions holds. A part smaller than a pixel does no harm where others have some."""
    union, missed = np.zeros(shown.size, bool), None
    for region in regions:
        try:
            union |= _decode(region, shown)
        except NoPixelError as error:
            missed = error
    if missed is not None and not union.any():
        raise missed
    return union


def _drawn(value: Any, shown: ShownSize) -> np.ndarray:
    """Numbers that are a mask, or polygons, of the size as shown or as stored."""
    numbers = as_numbers(value)
    if numbers is None:
        if isinstance(value, np.ndarray | Tensor) and value.dtype != object:
            raise InputError(f"Expected a mask, run lengths or polygons, got {brief(value)}.")
        return fill_polygons(value, shown.size)
    grid = _without_channel(numbers, shown)
    if shown.fits(grid.shape) or grid.dtype == bool or (isinstance(value, np.ndarray | Tensor) and grid.ndim == 2):
        if grid.ndim != 2:
            raise InputError(f"Expected a mask, run lengths or polygons, got {brief(value)}.")
        shown.require(grid.shape)
        return _target(grid)
    if numbers.ndim > 2 and numbers.shape[2:] != (2,):  # neither a mask nor parts of points
        raise InputError(f"Expected a mask of one channel, or polygons; got numbers of the shape {numbers.shape}.")
    return fill_polygons(value, shown.size)


def _without_channel(numbers: np.ndarray, shown: ShownSize) -> np.ndarray:
    """(1, H, W) and (H, W, 1) as (H, W)."""
    if numbers.ndim == 3 and numbers.shape[0] == 1 and (shown.fits(numbers.shape[1:]) or numbers.shape[2] != 2):
        numbers = numbers[0]
    elif numbers.ndim == 3 and numbers.shape[2] == 1:
        numbers = numbers[..., 0]
    return numbers


def _target(levels: np.ndarray) -> np.ndarray:
    """bool: where a mask is not zero."""
    if levels.dtype.kind in "if" and not ((levels >= 0) & (levels < np.inf)).all():
        raise InputError("A mask has numbers below zero, or NaN; expected zero outside the target, above zero in it.")
    target: np.ndarray = levels != 0
    return target


def annotation_regions(annotation: dict[str, Any], image: dict[str, Any]) -> list[Region]:
    """The regions whose union a COCO annotation is, given the entry of its image.

    Raises:
        InputError: it has none.
    """
    segmentation = annotation["segmentation"]
    if segmentation is None or not len(segmentation):
        raise InputError(f"The annotation {brief(annotation.get('id'))} has no segmentation.")
    if isinstance(segmentation, dict):
        return [segmentation]
    size = (image["height"], image["width"])
    if any(isinstance(part, dict) for part in segmentation):  # run lengths, as refCLEF has them
        return [part if isinstance(part, dict) else {"size": size, "polygons": part} for part in segmentation]
    return [{"size": size, "polygons": segmentation}]


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Whether a COCO annotation is of a crowd, which counts neither way."""
    crowd = annotation.get("iscrowd")
    return False if crowd is None else as_flag(crowd, "iscrowd")


def read_levels(picture: PictureFile | Image.Image) -> np.ndarray:
    """(H, W): the values of a picture with one channel; of a palette, its indices.

    Raises:
        InputError: it cannot be read, is too large, has several channels or pages, or is of a format that changes
            values.
    """
    opened = picture if isinstance(picture, Image.Image) else open_image(picture, "mask")
    file = getattr(opened, "filename", "")
    name = f"The mask {str(file)!r}" if file else "A mask"
    with nullcontext() if opened is picture else opened:
        require_pixels(opened)
        kind, channels, pages = opened.format, opened.getbands(), getattr(opened, "n_frames", 1)
        lossy = kind not in _LOSSLESS or "jpeg" in str(opened.info.get("compression"))
        if len(channels) != 1 or lossy or pages != 1:
            raise InputError(
                f"{name} is a {kind or 'picture'} of {pages} page(s) with the channels {''.join(channels)}; expected a "
                "PNG of one with one channel (greyscale, black and white, or a palette), zero outside the target."
            )
        try:
            return np.asarray(opened)
        except Exception as error:  # a decoder meets damage with whatever error it runs into first
            raise InputError(f"{name} cannot be read as an image: {error}") from error


def _size(size: Any) -> Size:
    numbers = as_numbers(size)
    whole = numbers is not None and numbers.shape == (2,) and numbers.dtype.kind in "iu" and (numbers > 0).all()
    if numbers is None or not whole:
        raise InputError(f"Expected the size of a mask as [height, width], got {brief(size)}.")
    return int(numbers[0]), int(numbers[1])
