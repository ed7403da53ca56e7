"""How image tokens tile the preprocessed pixels: one function per family of architectures.

A family reads the processor's outputs and says through which windows the tokens of each image look. Whatever the
processor did before that (resizing, cropping, padding) is measured elsewhere: see frame.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lens_adapter.errors import InputError, UnsupportedModelError


@dataclass(frozen=True)
class Window:
    """A rectangle of preprocessed pixels that a row-major grid of tokens covers.

    Attributes:
        start: index of its first token among the image's tokens.
        grid: (h, w) tokens.
        stride: tokens from one row to the next: more than w where a separator ends each row. Default: w.
        pixels: float (rows, columns), the preprocessed values averaged over channels, at any resolution.
    """

    start: int
    grid: tuple[int, int]
    pixels: Tensor
    stride: int | None = None


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image: how many, and which windows they look through. Tokens of no window see no place."""

    length: int
    windows: tuple[Window, ...]


Family = Callable[..., list[ImageTokens]]  # (inputs, **values of the row's fields) -> one entry per image


def fixed_grid(inputs: Mapping[str, Any], *, patch: int, tower: str, features: str) -> list[ImageTokens]:
    """Every image has the same size in pixels (N, 3, H, W) and one token per patch."""
    if "image_sizes" in inputs:
        raise UnsupportedModelError(
            "The inputs hold image_sizes: this vision tower has a grid of its own for every image, and the fixed grid "
            "does not describe it. Give the model a row of its own with register_layout."
        )
    pixel_values = require_tensor(inputs, "pixel_values")  # (N, 3, H, W)
    if pixel_values.ndim != 4:
        raise InputError(f"pixel_values: expected shape (images, 3, H, W), got {tuple(pixel_values.shape)}.")
    h, w = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
    # A tower's class token stands before the patches unless the feature selection drops it.
    start = int(features == "full" and tower == "clip_vision_model")
    return [
        ImageTokens(start + h * w, (Window(start, (h, w), image[:, : h * patch, : w * patch].float().mean(0)),))
        for image in pixel_values
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
