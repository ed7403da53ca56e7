"""How image tokens tile the preprocessed pixels: one function per family of architectures.

A family reads the processor's outputs and says through which windows the tokens of each image look. Whatever the
processor did before that (resizing, cropping, padding) is measured elsewhere: see frames.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isqrt, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lens_adapter.errors import InputError, UnsupportedModelError


class TiledCanvas(NamedTuple):
    """A preprocessed picture, of one size or another, of which a window shows a part.

    Attributes:
        size: its (rows, columns), in pixels.
        rows: (n,) indices of those that the window shows, from the top.
        columns: as well, from the left.
    """

    size: tuple[int, int]
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Window:
    """A rectangle of preprocessed pixels that a row-major grid of tokens covers.

    Attributes:
        start: index of its first token among the image's tokens.
        grid: (h, w) tokens.
        stride: tokens from one row to the next: more than w where a separator ends each row. Default: w.
        pixels: float (rows, columns), the preprocessed values averaged over channels, at any resolution. None: they
            cannot tell what they show, and it is the whole image.
        canvas: what the pixels were cut from, if the inputs tell.
    """

    start: int
    grid: tuple[int, int]
    pixels: Tensor | None
    stride: int | None = None
    canvas: TiledCanvas | None = None


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image: how many, and which windows they look through. Tokens of no window see no place."""

    length: int
    windows: tuple[Window, ...]


Family = Callable[..., list[ImageTokens]]  # (inputs, **values of the row's fields) -> one entry per image


def fixed_grid(
    inputs: Mapping[str, Any],
    *,
    patch: int,
    merge: int = 1,
    tower: str = "",
    features: str = "default",
    row_ends: int = 0,
    key: str = "pixel_values",
) -> list[ImageTokens]:
    """One token per merge x merge patches of a picture, `inputs[key]` (N, 3, H, W), row by row.

    Pictures of several sizes are padded at the bottom and on the right; then `image_sizes` (N, 2) holds the true ones.

    Args:
        tower: the vision tower's `model_type`; `features`: what is selected of its output, "default" or "full".
        row_ends: how many separator tokens end each row.
    """
    pictures = _pictures(inputs, key)
    sizes = inputs["image_sizes"].tolist() if "image_sizes" in inputs else [pictures.shape[-2:]] * len(pictures)
    # A tower's class token stands before the patches unless the feature selection drops it.
    start = int(features == "full" and tower == "clip_vision_model")
    cell = patch * merge  # pixels
    return [
        _whole(
            picture[:, : height // cell * cell, : width // cell * cell],
            (height // cell, width // cell),
            start,
            row_ends,
        )
        for picture, (height, width) in zip(pictures, sizes, strict=True)
    ]


def convolved_grid(inputs: Mapping[str, Any], *, multipliers: Sequence[int], row_ends: int = 0) -> list[ImageTokens]:
    """As `fixed_grid`, for a tower of convolutions that halves the picture after each of its stages but the last."""
    return fixed_grid(inputs, patch=2 ** (len(multipliers) - 1), row_ends=row_ends)


def square_grid(inputs: Mapping[str, Any], *, tokens: int) -> list[ImageTokens]:
    """Every picture, `pixel_values` (N, 3, H, W), has as many tokens: a square of them."""
    side = isqrt(tokens)
    if side**2 != tokens:
        raise UnsupportedModelError(
            f"The config says {tokens} tokens per image, which make no square grid. Give the model a row of its own "
            "(lens_adapter.vlm.architectures.register)."
        )
    return [_whole(picture, (side, side)) for picture in _pictures(inputs, "pixel_values")]


def strided_grid(inputs: Mapping[str, Any], *, strides: Sequence[int], start: int = 0) -> list[ImageTokens]:
    """As `fixed_grid`, for a tower whose stages have these strides; `start` tokens stand before the grid."""
    cell = prod(strides)  # pixels
    return [
        _whole(picture, (picture.shape[1] // cell, picture.shape[2] // cell), start)
        for picture in _pictures(inputs, "pixel_values")
    ]


def variable_grid(
    inputs: Mapping[str, Any],
    *,
    merge: int | tuple[int, int] | str,
    blocks: bool = True,
    channels: int | None = None,
) -> list[ImageTokens]:
    """Every image has its own grid of patches, `image_grid_thw` (N, 3); a block of them makes a token.

    Args:
        inputs: with `pixel_values` (all patches, values of a patch), or 4-D: (all patches, p, p and channels).
        merge: patches along each side of a token: one number, (rows, columns), or the key of an input (N,) that says.
        blocks: the patches of one token follow one another; else all patches are row-major.
        channels: which dimension of 4-D `pixel_values` holds the channels.
    """
    grids = require_tensor(inputs, "image_grid_thw").tolist()
    merges = require_tensor(inputs, merge).tolist() if isinstance(merge, str) else [merge] * len(grids)
    values = require_tensor(inputs, "pixel_values").float()
    values = values.mean(-1)[:, None, None] if channels is None else values.mean(channels)  # (all patches, p, p)
    images = []
    for (t, rows, columns), patches, side in zip(
        grids, values.split([t * h * w for t, h, w in grids]), merges, strict=True
    ):
        if t != 1:
            raise InputError(f"image_grid_thw: expected still images (t = 1), got a grid of {(t, rows, columns)}.")
        high, wide = (side, side) if isinstance(side, int) else side
        h, w = rows // high, columns // wide
        block = (high, wide) if blocks else (1, 1)
        pixels = patches.reshape(rows // block[0], columns // block[1], *block, *patches.shape[1:])
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)  # (rows * p, columns * p)
        images.append(ImageTokens(h * w, (Window(0, (h, w), pixels),)))
    return images


def flat_grid(
    inputs: Mapping[str, Any],
    *,
    merge: int = 1,
    shrink: float = 1.0,
    grids: str = "image_grid_thw",
    start: int = 0,
    row_ends: int = 0,
    ends: int = 0,
) -> list[ImageTokens]:
    """Every image has its own grid of patches, `inputs[grids]` (N, 2 or 3), flattened row by row, not token by token.

    Args:
        merge: merge x merge patches make a token; some configs have the reciprocal, `shrink`.
        shrink: that reciprocal.
        grids: the name of the grids among the inputs.
        start: tokens before the first row.
        row_ends: tokens at the end of every row.
        ends: tokens behind the last row.
    """
    merge = merge * round(1 / shrink)
    sizes = [grid[-2:] for grid in require_tensor(inputs, grids).tolist()]
    patches = require_tensor(inputs, "pixel_values").float().mean(-1).split([rows * columns for rows, columns in sizes])
    return [
        _whole(values.reshape(1, rows, columns), (rows // merge, columns // merge), start, row_ends, ends)
        for values, (rows, columns) in zip(patches, sizes, strict=True)
    ]


def placed_grid(inputs: Mapping[str, Any], *, pool: int = 1) -> list[ImageTokens]:
    """Patches, `pixel_values` (N, patches, values), say where they stand: x and y in `image_position_ids`, -1 for none.

    pool x pool of them make a token.
    """
    patches = require_tensor(inputs, "pixel_values").float().mean(-1)
    images = []
    for values, places in zip(patches, require_tensor(inputs, "image_position_ids"), strict=True):
        columns, rows = (places.max(0).values + 1).tolist()
        real = places[:, 0] >= 0
        picture = values.new_zeros(1, rows, columns)
        picture[0, places[real, 1], places[real, 0]] = values[real]
        images.append(_whole(picture, (rows // pool, columns // pool)))
    return images


def rows_in_text(inputs: Mapping[str, Any], *, image_token: int) -> list[ImageTokens]:
    """Only the text shows the grid: it ends every row of image tokens with another token; one image per sequence.

    The patches of all images follow one another, (patches, values), as `pixel_values` or, a tensor or a list of such,
    as `image_patches`.
    """
    given = inputs.get("image_patches")
    given = given if isinstance(given, list) else [require_tensor(inputs, "pixel_values") if given is None else given]
    values = torch.cat([patches.float().mean(-1).flatten() for patches in given])
    runs = [_runs_of(ids == image_token) for ids in require_tensor(inputs, "input_ids")]
    parts = values.split([sum(run) for run in runs if run])
    return [
        _whole(part.reshape(1, len(run), run[0]), (len(run), run[0]))
        for part, run in zip(parts, (run for run in runs if run), strict=True)
    ]


def padded_columns(inputs: Mapping[str, Any], *, image_token: int) -> list[ImageTokens]:
    """Square cells, `pixel_values` (cells, T, height, width, 3), one token each; no grid is given anywhere.

    The last cell of every row, and no other, is padded on the right, with a value that no image has: that shows where
    rows end. Where images end shows in the text, or in `num_patches` where the image processor made the inputs.
    """
    cells = require_tensor(inputs, "pixel_values")[:, 0].float()  # (cells, height, width, 3)
    if "num_patches" in inputs:
        counts = inputs["num_patches"].tolist()
    else:
        counts = [run for ids in require_tensor(inputs, "input_ids") for run in _runs_of(ids == image_token)]
    images = []
    for image in cells.split(counts):
        corners = image[:, 0, -1]  # (cells, 3), the top right pixels
        w = int((corners == corners[-1]).all(-1).nonzero()[0]) + 1
        h = len(image) // w
        picture = image.mean(-1).reshape(h, w, *image.shape[1:3]).transpose(1, 2).flatten(2).flatten(0, 1)
        images.append(_whole(picture[None], (h, w)))
    return images


def numbered_patches(inputs: Mapping[str, Any]) -> list[ImageTokens]:
    """Patches of the whole image, resized: `flattened_patches` (B, n, 2 + values), which begin with row and column.

    Rows and columns count from 1; 0 is padding. Values are relative to the image's own mean and spread, so that
    they cannot tell what they show.
    """
    patches = require_tensor(inputs, "flattened_patches")
    images = []
    for rows, columns in patches[..., :2].amax(1).int().tolist():
        images.append(ImageTokens(patches.shape[1], (Window(0, (rows, columns), None),)))
    return images


def _whole(picture: Tensor, grid: tuple[int, int], start: int = 0, row_ends: int = 0, ends: int = 0) -> ImageTokens:
    """One window over all of a picture (channels, H, W)."""
    h, stride = grid[0], grid[1] + row_ends
    return ImageTokens(start + h * stride + ends, (Window(start, grid, picture.float().mean(0), stride),))


def _pictures(inputs: Mapping[str, Any], key: str) -> Tensor:
    pictures = require_tensor(inputs, key)  # (N, 3, H, W)
    if pictures.ndim != 4:
        raise InputError(f"{key}: expected shape (images, 3, H, W), got {tuple(pictures.shape)}.")
    return pictures


def _runs_of(here: Tensor) -> list[int]:
    """How long the runs are of what is true in a row, in order."""
    return [len(list(group)) for value, group in groupby(here.tolist()) if value]


def require_tensor(inputs: Mapping[str, Any], key: str) -> Tensor:
    """`inputs[key]`.

    Raises:
        InputError: there is no such tensor.
    """
    if not isinstance(inputs.get(key), Tensor):
        raise InputError(
            f"inputs: expected a tensor {key!r}, got {type(inputs.get(key)).__name__} (keys: {sorted(inputs)}). Build "
            'them with the processor from images and text, return_tensors="pt".'
        )
    return inputs[key]
