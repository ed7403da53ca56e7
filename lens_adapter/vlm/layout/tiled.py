"""How image tokens tile the preprocessed pixels where an image is shown in several pictures: tiles, or two resolutions.

Families as in single.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import isqrt, sqrt
from typing import Any

import torch
from torch import Tensor

from lens_adapter.errors import InputError
from lens_adapter.vlm.layout.single import ImageTokens, TiledCanvas, Window, require_tensor


def any_resolution(
    inputs: Mapping[str, Any],
    *,
    pinpoints: Sequence[Sequence[int]],
    patch: int,
    downsample: str | int = 1,
    limit: str | None = None,
) -> list[ImageTokens]:
    """The whole image in one tile; then again, finer, over several tiles in one grid, a newline token after each row.

    `pixel_values` (N, tiles, 3, S, S), the whole image first; `image_sizes` (N, 2). Rows and columns of the grid that
    are padding are cut off.

    Args:
        pinpoints: (H, W) of the canvases that an image may be tiled over.
        patch: pixels of a patch of the tower.
        downsample: tokens per patch along a side, "1/2" say.
        limit: "anyres_max_9": a grid of clearly more tokens than 9 tiles have is shrunk to that. None: never.
    """
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    pixel_values = require_tensor(inputs, "pixel_values")
    if pixel_values.ndim != 5:
        raise InputError(f"pixel_values: expected shape (images, tiles, 3, S, S), got {tuple(pixel_values.shape)}.")
    if max(inputs.get("batch_num_images", [1])) > 1:
        raise InputError("This model does not tile several images of one prompt. Give it one image per prompt.")
    size = pixel_values.shape[-1]
    seen = size // patch * patch  # pixels of a tile, along a side, that its patches cover
    side = int(size // patch * Fraction(downsample))  # tokens of a tile
    images = []
    sizes = require_tensor(inputs, "image_sizes").tolist()
    for original, tiles in zip(sizes, pixel_values[..., :seen, :seen].float().mean(2), strict=True):
        rows, columns = (length // size for length in select_best_resolution(original, list(pinpoints)))
        cells = torch.arange(rows * side * columns * side).reshape(1, rows * side, columns * side)
        kept = unpad_image(cells, original)[0]
        top, left = divmod(int(kept[0, 0]), columns * side)
        h, w = kept.shape
        y0, y1, x0, x1 = (round(edge * seen / side) for edge in (top, top + h, left, left + w))
        pixels = _stitched(tiles[1 : 1 + rows * columns], rows)[y0:y1, x0:x1]
        shown = (_seen(rows, size, seen)[y0:y1], _seen(columns, size, seen)[x0:x1])
        canvas = TiledCanvas((rows * size, columns * size), *shown)
        if limit is not None:
            shrink = sqrt(h * w / (int(limit.removeprefix("anyres_max_")) * side**2))
            if shrink > 1.1:
                h, w = int(h // shrink), int(w // shrink)
        whole = Window(0, (side, side), tiles[0])
        images.append(ImageTokens(side**2 + h * (w + 1), (whole, Window(side**2, (h, w), pixels, w + 1, canvas))))
    return images


def tiles_then_whole(inputs: Mapping[str, Any], *, patch: int, merge: int, newlines: bool) -> list[ImageTokens]:
    """Tiles of the image, if it has any, and then the whole of it in one tile, a token per merge x merge patches.

    `pixel_values` (N, 3, S, S) shows whole images, `pixel_values_local` (all tiles, 3, s, s) the `num_local_patches`
    (N) tiles of each.

    Args:
        newlines: the tiles make one grid, of `patches_grid` (columns, rows) tiles; each row of either grid ends with a
            newline token, and one more separator ends the image.
    """
    whole = require_tensor(inputs, "pixel_values").float().mean(1)  # (N, S, S)
    counts = [int(count) for count in inputs["num_local_patches"]]
    local = require_tensor(inputs, "pixel_values_local").float().mean(1) if any(counts) else whole[:0]
    images = []
    for index, (picture, tiles) in enumerate(zip(whole, local.split(counts), strict=True)):
        pictures = list(tiles)
        if newlines and pictures:
            pictures = [_stitched(tiles, rows=int(inputs["patches_grid"][index][1]))]
        windows, start = [], 0
        for pixels in (*pictures, picture):
            h, w = (length // (patch * merge) for length in pixels.shape)
            stride = w + newlines
            windows.append(Window(start, (h, w), pixels, stride))
            start += h * stride
        images.append(ImageTokens(start + newlines, tuple(windows)))
    return images


def tiled(inputs: Mapping[str, Any], *, image_token: int, patch: int | Sequence[int] = 1) -> list[ImageTokens]:
    """Square tiles of one size and with as many tokens, and nothing in the inputs says which make an image: each counts
    as one. Which of them shows the image as a whole, if any does, and where the others lie, is for the frames to say.

    `pixel_values` (tiles, 3, S, S); or (rows, most tiles, 3, S, S), of which `pixel_attention_mask` (rows, most tiles,
    ...), if there is one, marks what is no padding.

    Args:
        image_token: its id in `input_ids`.
        patch: pixels of a patch of the tower. Pixels of a tile that fill no patch are seen by no token.
    """
    tiles = require_tensor(inputs, "pixel_values")
    if tiles.ndim == 5:
        real = inputs.get("pixel_attention_mask", tiles.new_ones(tiles.shape[:2]))
        tiles = tiles[real.reshape(*tiles.shape[:2], -1)[..., 0].bool()]  # what is shown begins in the top left corner
    count = int((require_tensor(inputs, "input_ids") == image_token).sum())
    tokens = isqrt(count // max(len(tiles), 1))  # of a tile, along a side
    patch = patch if isinstance(patch, int) else patch[0]
    patches = tiles.shape[-1] // patch
    if tiles.ndim != 4 or tokens == 0 or tokens**2 * len(tiles) != count or patches % tokens:
        raise InputError(
            f"pixel_values: expected tiles with a square of tokens each; got shape {tuple(tiles.shape)}, patches of "
            f"{patch} pixels, and {count} image tokens (id {image_token}). Were the texts truncated?"
        )
    sides = (tiles.shape[-2], tiles.shape[-1])
    seen = torch.arange(patches * patch)
    canvas = None if sides == (len(seen), len(seen)) else TiledCanvas(sides, seen, seen)
    shown = tiles[..., : len(seen), : len(seen)].float().mean(1)
    return [ImageTokens(tokens**2, (Window(0, (tokens, tokens), tile, canvas=canvas),)) for tile in shown]


def padded_tiles(inputs: Mapping[str, Any], *, merge: int) -> list[ImageTokens]:
    """Tiles of any size, and nothing in the inputs says which make an image: each counts as one.

    `pixel_values` (tiles, most patches, values of a patch), `spatial_shapes` (tiles, 2) in patches.
    """
    shapes = require_tensor(inputs, "spatial_shapes").tolist()
    patches = require_tensor(inputs, "pixel_values").float().mean(-1)
    return [_sized_tile(values[: h * w], (h, w), merge) for values, (h, w) in zip(patches, shapes, strict=True)]


def packed_tiles(inputs: Mapping[str, Any], *, mode: str) -> list[ImageTokens]:
    """Tiles of any size, and nothing in the inputs says which make an image: each counts as one.

    `pixel_values` (1, 3, P, all patches x P), `target_sizes` (tiles, 2) in patches of P pixels.

    Args:
        mode: "16x" or "4x": how many patches make a token.
    """
    shapes = require_tensor(inputs, "target_sizes").tolist()
    pixel_values = require_tensor(inputs, "pixel_values")
    patches = pixel_values.float().unflatten(-1, (-1, pixel_values.shape[-2])).mean((0, 1, 2, 4))
    merge = {"16x": 4, "4x": 2}[mode]
    tiles = patches.split([h * w for h, w in shapes])
    return [_sized_tile(values, (h, w), merge) for values, (h, w) in zip(tiles, shapes, strict=True)]


def pooled_grids(inputs: Mapping[str, Any]) -> list[ImageTokens]:
    """The whole image in one grid and then in a finer one, whose crops overlap.

    `image_grids` (N, 4): (h, w) of either grid; `image_token_pooling` (tokens, patches of a token): which of the
    patches of `pixel_values` (crops, patches, values of a patch) each token sees, -1 for none.
    """
    patches = require_tensor(inputs, "pixel_values").float().mean(-1).flatten()
    pooling = require_tensor(inputs, "image_token_pooling")
    side = int(sqrt(pooling.shape[-1]))
    seen = torch.where(pooling < 0, 0, patches[pooling.long()]).unflatten(-1, (side, side))  # (tokens, side, side)
    images, first = [], 0
    for h, w, fine_h, fine_w in require_tensor(inputs, "image_grids").tolist():
        middle, end = first + h * w, first + h * w + fine_h * fine_w
        whole = Window(0, (h, w), _stitched(seen[first:middle], h))
        fine = Window(h * w, (fine_h, fine_w), _stitched(seen[middle:end], fine_h))
        images.append(ImageTokens(end - first, (whole, fine)))
        first = end
    return images


def class_led_tiles(inputs: Mapping[str, Any], *, patch: int) -> list[ImageTokens]:
    """Tiles, `pixel_values` (B, 1, tiles, 3, S, S), of which `aspect_ratio_mask` (B, 1, tiles) says which are real.

    The tokens of each tile are its class token and one per patch; those of tiles that are not real are there too.
    """
    pixel_values, real = require_tensor(inputs, "pixel_values"), require_tensor(inputs, "aspect_ratio_mask")
    if pixel_values.shape[1] != 1:
        raise InputError(f"pixel_values: expected one image per sequence, got {pixel_values.shape[1]}.")
    side = pixel_values.shape[-1] // patch
    length = 1 + side**2
    images = []
    for tiles, count in zip(pixel_values[:, 0].float().mean(2), real.sum((1, 2)).tolist(), strict=True):
        seen = tiles[:count, : side * patch, : side * patch]
        windows = [Window(1 + length * index, (side, side), tile) for index, tile in enumerate(seen)]
        images.append(ImageTokens(length * len(tiles), tuple(windows)))
    return images


def joined(parts: Sequence[ImageTokens]) -> ImageTokens:
    """The tokens of several pictures that make one image, one after the other."""
    windows, length = [], 0
    for part in parts:
        windows += [replace(window, start=length + window.start) for window in part.windows]
        length += part.length
    return ImageTokens(length, tuple(windows))


def _sized_tile(patches: Tensor, shape: tuple[int, int], merge: int) -> ImageTokens:
    """Of the row-major patches of a tile; merge x merge of them make a token."""
    h, w = (length // merge for length in shape)
    return ImageTokens(h * w, (Window(0, (h, w), patches.reshape(shape)),))


def _seen(tiles: int, size: int, seen: int) -> Tensor:
    """Indices of the first `seen` pixels of each of so many tiles, along a side of the picture that they make."""
    return (torch.arange(tiles)[:, None] * size + torch.arange(seen)).flatten()


def _stitched(tiles: Tensor, rows: int) -> Tensor:
    """Row-major tiles (rows * columns, y, x) -> the picture (rows * y, columns * x)."""
    return tiles.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
