"""Where in the original image each image token looks.

What differs between models is data: a row of `LAYOUTS` names a family (how tokens tile the preprocessed pixels) and the
config fields that it needs. What differs between processors (resizing, cropping, padding) is not written down anywhere
but measured: pictures whose brightness is a coordinate go through the user's own image processor, and what comes out
says which part of the original every pixel shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lens_adapter.errors import InputError, UnsupportedModelError
from lens_adapter.signals import TokenLayout
from lens_adapter.vlm.anatomy import find_anatomy


@dataclass(frozen=True)
class Window:
    """A rectangle of preprocessed pixels that a row-major grid of tokens covers.

    Attributes:
        start: index of its first token among the image's tokens.
        grid: (h, w) tokens.
        pixels: float (rows, columns), the preprocessed values averaged over channels, at any resolution; None where
            only the tokens are asked for.
    """

    start: int
    grid: tuple[int, int]
    pixels: Tensor | None


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image: how many, and which windows they look through. Tokens of no window see no place."""

    length: int
    windows: tuple[Window, ...]


Family = Callable[..., list[ImageTokens]]  # (inputs, **values of the row's fields) -> one entry per image
Frame = tuple[
    tuple[float, float], tuple[float, float]
]  # per axis (y, x): fraction of original = a * fraction of window + b
WHOLE: Frame = ((1.0, 0.0), (1.0, 0.0))


def _fixed_grid(inputs: Mapping[str, Any], *, patch: int, tower: str, features: str) -> list[ImageTokens]:
    """Every image has the same size in pixels (N, 3, H, W) and one token per patch."""
    if "image_sizes" in inputs:
        raise UnsupportedModelError(
            "The inputs hold image_sizes: this vision tower has a grid of its own for every image, and the fixed grid "
            "does not describe it. Give the model a row of its own with register_layout."
        )
    pixel_values = _require(inputs, "pixel_values")  # (N, 3, H, W)
    if pixel_values.ndim != 4:
        raise InputError(f"pixel_values: expected shape (images, 3, H, W), got {tuple(pixel_values.shape)}.")
    h, w = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
    # A tower's class token stands before the patches unless the feature selection drops it.
    start = int(features == "full" and tower == "clip_vision_model")
    return [
        ImageTokens(start + h * w, (Window(start, (h, w), image[:, : h * patch, : w * patch].float().mean(0)),))
        for image in pixel_values
    ]


def _variable_grid(inputs: Mapping[str, Any], *, merge: int) -> list[ImageTokens]:
    """Every image has its own grid of patches, `image_grid_thw` (N, 3); merge x merge of them make a token.

    `pixel_values` (all patches, values of a patch): the patches of one token follow one another.
    """
    grids = _require(inputs, "image_grid_thw").tolist()
    patches = _require(inputs, "pixel_values").float().mean(-1).split([t * h * w for t, h, w in grids])
    images = []
    for (t, rows, columns), values in zip(grids, patches, strict=True):
        if t != 1:
            raise InputError(f"image_grid_thw: expected still images (t = 1), got a grid of {(t, rows, columns)}.")
        h, w = rows // merge, columns // merge
        pixels = values.reshape(h, w, merge, merge).transpose(1, 2).reshape(rows, columns)
        images.append(ImageTokens(h * w, (Window(0, (h, w), pixels),)))
    return images


@dataclass(frozen=True)
class LayoutRow:
    """A model's layout: its family and where in the model's config the family's values stand (dotted paths)."""

    family: Family
    fields: Mapping[str, str]


_FIXED = LayoutRow(
    _fixed_grid,
    {
        "patch": "vision_config.patch_size",
        "tower": "vision_config.model_type",
        "features": "vision_feature_select_strategy",
    },
)
_VARIABLE = LayoutRow(_variable_grid, {"merge": "vision_config.spatial_merge_size"})

LAYOUTS: dict[str, LayoutRow] = {
    "llava": _FIXED,
    "qwen2_vl": _VARIABLE,
    "qwen2_5_vl": _VARIABLE,
    "qwen3_vl": _VARIABLE,
    "qwen3_vl_moe": _VARIABLE,
}


def register_layout(architecture: str, row: LayoutRow) -> None:
    """Teach `token_layouts` the layout of another architecture (its `config.model_type`), or replace a row."""
    LAYOUTS[architecture] = row


def token_layouts(
    model: PreTrainedModel,
    processor: Any,
    inputs: Mapping[str, Any],
    image_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[TokenLayout]:
    """Find the image tokens of a processed batch, and what each of them sees.

    A token sees its own patch (for Qwen: its merge x merge patches); what attention mixes into it is not counted.

    Args:
        model: as `LensAdapter.attach` takes it.
        processor: the processor (or image processor) that made `inputs`, with its settings of then.
        inputs: what the processor returned: `input_ids` (B, T), `pixel_values`, grids.
        image_sizes: (H, W) of every original image, in the batch's order. Without them, or without a processor, boxes
            are fractions of the preprocessed picture instead.

    Returns:
        One layout per image, in order; of several images in one sequence, the first comes first.

    Raises:
        UnsupportedModelError: the architecture's layout is not known.
        InputError: the image tokens do not fit the images (text cut off, say), or `image_sizes` are not theirs.
    """
    anatomy = find_anatomy(model)
    if anatomy.image_token_id is None:
        raise UnsupportedModelError(f"{anatomy.architecture}: its config names no image token, so none can be found.")
    read = _reader(anatomy.architecture, anatomy.config)
    images = read(inputs)
    runs = _token_runs(_require(inputs, "input_ids"), anatomy.image_token_id, [image.length for image in images])
    if processor is None or image_sizes is None:
        frames = [[WHOLE] * len(image.windows) for image in images]
    else:
        if len(image_sizes) != len(images):
            raise InputError(f"image_sizes: expected one (H, W) for each of {len(images)} images, got {image_sizes}.")
        image_processor = getattr(processor, "image_processor", processor)
        frames = [
            _frames(image_processor, read, (int(size[0]), int(size[1])), image)
            for size, image in zip(image_sizes, images, strict=True)
        ]
    return [_layout(*parts) for parts in zip(images, runs, frames, strict=True)]


def _reader(architecture: str, config: PretrainedConfig) -> partial[list[ImageTokens]]:
    """The family's function with this model's values filled in."""
    row = LAYOUTS.get(architecture)
    if row is None:
        raise UnsupportedModelError(
            f"{architecture}: how its image tokens lie in the image is not known. Known: {sorted(LAYOUTS)}. If it is "
            "laid out as one of these, register_layout(architecture, row) with that one's row teaches it."
        )
    values = {}
    for name, path in row.fields.items():
        value: Any = config
        for part in path.split("."):
            if not hasattr(value, part):
                raise UnsupportedModelError(f"{architecture}: its layout needs config.{path}, which is not there.")
            value = getattr(value, part)
        values[name] = value
    return partial(row.family, **values)


def _token_runs(input_ids: Tensor, image_token_id: int, lengths: Sequence[int]) -> list[Tensor]:
    """Positions (n,) of every image's tokens; a sequence holds any number of whole images."""
    counts = (input_ids == image_token_id).sum(1).tolist()
    runs: list[Tensor] = []
    for row, ids in enumerate(input_ids):
        positions = (ids == image_token_id).nonzero().flatten()
        while len(positions) and len(runs) < len(lengths) and lengths[len(runs)] <= len(positions):
            length = lengths[len(runs)]
            runs.append(positions[:length])
            positions = positions[length:]
        if len(positions):
            break
    if len(runs) < len(lengths) or sum(counts) != sum(lengths):
        raise InputError(
            f"input_ids: expected {sum(lengths)} image tokens (id {image_token_id}), {list(lengths)} for the images in "
            f"order, each whole in one sequence; got {counts} per sequence. Were the texts truncated, or written "
            "without the image token?"
        )
    return runs


def _layout(image: ImageTokens, run: Tensor, frames: Sequence[Frame]) -> TokenLayout:
    """Cut every window into its tokens' boxes; leave out those that see only padding."""
    positions, boxes, grids = [], [], []
    for window, (y_line, x_line) in zip(image.windows, frames, strict=True):
        h, w = window.grid
        top, bottom, rows = _cells(h, y_line)
        left, right, columns = _cells(w, x_line)
        y0, x0 = torch.meshgrid(top, left, indexing="ij")
        y1, x1 = torch.meshgrid(bottom, right, indexing="ij")
        boxes.append(torch.stack([x0, y0, x1, y1], dim=-1).reshape(-1, 4))
        positions.append(run[(window.start + rows[:, None] * w + columns).flatten().to(run.device)])
        grids.append((len(rows), len(columns)))
    grid = grids[0] if len(grids) == 1 else None
    return TokenLayout(torch.cat(positions), torch.cat(boxes).to(run.device), grid)


def _cells(count: int, line: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: starts and ends of the cells that hold any of the image, in its fractions, and their indices."""
    scale, offset = line
    edges = scale * torch.arange(count + 1) / count + offset
    clipped = edges.clamp(0, 1)
    # A hundredth of a cell is less than a pixel: measuring noise, not image.
    kept = (clipped.diff() > 0.01 * edges.diff()).nonzero().flatten()
    return clipped[kept], clipped[kept + 1], kept


def _require(inputs: Mapping[str, Any], key: str) -> Tensor:
    if not isinstance(inputs.get(key), Tensor):
        raise InputError(
            f"inputs: expected a tensor {key!r}, got {type(inputs.get(key)).__name__} (keys: {sorted(inputs)}). Build "
            'them with the processor from images and text, return_tensors="pt".'
        )
    return inputs[key]


# Measuring the frame.

MIN_SIDE = 24  # pixels; a ramp over fewer says little, because interpolation bends its ends
MAX_SIDE = 16384  # pixels; what no thin image is enlarged beyond
MAX_CACHED = 1024  # image sizes per processor

_cache: WeakKeyDictionary[Any, dict[Any, list[tuple[tuple[int, int], Frame]]]] = WeakKeyDictionary()


def _frames(
    image_processor: Any, read: partial[list[ImageTokens]], size: tuple[int, int], image: ImageTokens
) -> list[Frame]:
    """The frame of each of the image's windows, measured once per processor setting and image size."""
    key = (image_processor.to_json_string(), read.func, tuple(read.keywords.items()), size)
    known = _cache.setdefault(image_processor, {})
    if key not in known:
        if len(known) >= MAX_CACHED:
            known.clear()
        known[key] = _measure(image_processor, read, size)
    grids, got = [grid for grid, _ in known[key]], [window.grid for window in image.windows]
    if _multiple(size) == 1 and grids != got:
        raise InputError(
            f"image_sizes: an image of (H, W) = {size} has token grids {grids} by this processor, but the inputs have "
            f"{got}. Give the sizes of the very images that were processed, in order, and the same processor."
        )
    return [frame for _, frame in known[key]]


class _TooThin(Exception):
    """Too few preprocessed pixels show the image."""


def _multiple(size: tuple[int, int]) -> int:
    """How much larger the picture is that stands in for an image of `size`.

    Where an image lands depends on its shape: a multiple of a tiny one lands in the same place and can be measured.
    """
    return max(1, min(ceil(MIN_SIDE / min(size)), MAX_SIDE // max(size)))


def _measure(
    image_processor: Any, read: partial[list[ImageTokens]], size: tuple[int, int]
) -> list[tuple[tuple[int, int], Frame]]:
    """Grid and frame of every window that an image of `size` is seen through."""
    height, width = (_multiple(size) * side for side in size)

    def show(levels: np.ndarray) -> list[Window]:
        """Send a grey picture, (H, W) by broadcasting, through the image processor."""
        grey = Image.fromarray(np.ascontiguousarray(np.broadcast_to(levels, (height, width))))
        return list(read(image_processor(images=[grey.convert("RGB")], return_tensors="pt"))[0].windows)

    # Normalization is undone by what black and white become; padding is where they do not differ.
    black, white = show(np.zeros((1, 1), np.uint8)), show(np.full((1, 1), 255, np.uint8))
    contrasts = [bright.pixels - dark.pixels for bright, dark in zip(white, black, strict=True)]

    def show_ramp(axis: int, ramp: np.ndarray) -> list[Tensor]:
        seen = show(ramp[:, None] if axis == 0 else ramp[None, :])
        return [picture.pixels - dark.pixels for picture, dark in zip(seen, black, strict=True)]

    try:
        rows = _measure_axis(partial(show_ramp, 0), contrasts, height, axis=0)
        columns = _measure_axis(partial(show_ramp, 1), contrasts, width, axis=1)
    except _TooThin as error:
        raise InputError(
            f"An image of (H, W) = {size} is too thin: nothing in it can be located once it is preprocessed. Crop it."
        ) from error
    return [(window.grid, frame) for window, *frame in zip(black, rows, columns, strict=True)]


def _measure_axis(
    show: Callable[[np.ndarray], list[Tensor]], contrasts: list[Tensor], length: int, axis: int
) -> list[tuple[float, float]]:
    """Fit, for every window, fraction of the image = a * fraction of the window + b along one axis.

    A ramp has 256 levels. Where the windows see only a small part of a long axis, a second ramp spans just that part.
    """
    inside = [_between_padding(contrast.sum(1 - axis)) for contrast in contrasts]
    if None not in inside:
        return inside
    if length < 4:
        raise _TooThin
    low, high = 0, length - 1  # the ramp's first and last pixel
    while True:
        # Whole levels per pixel where there are enough of them: then the ramp is exact.
        slope = max(255 // (high - low), 1) if high - low <= 255 else 255 / (high - low)
        ramp = np.clip((np.arange(length) - low) * slope, 0, 255).round().astype(np.uint8)
        lines = []
        for seen, contrast, line in zip(show(ramp), contrasts, inside, strict=True):
            lit = contrast > 0.98 * _plateau(contrast)  # wholly image, no padding
            level = torch.where(lit, 255 * seen / contrast, torch.nan).nanmedian(1 - axis).values
            fraction = (level / slope + low + 0.5) / length  # nan where a row or column shows no image
            lines.append(line or _line(fraction))
        ends = np.clip([end for a, b in lines for end in (b, a + b)], 0, 1) * length
        if ends.max() - ends.min() > (high - low) / 8 or high - low <= 16:
            return lines
        margin = 2 + 2 / slope  # two pixels and two levels
        low, high = max(floor(ends.min() - margin), 0), min(ceil(ends.max() + margin), length - 1)


def _between_padding(profile: Tensor) -> tuple[float, float] | None:
    """The line along an axis with padding at both ends: all of the image is in between. None: there is no such padding.

    Sums see edges that interpolation has blurred, however few pixels the image is thick.
    """
    profile = profile / _plateau(profile)
    if max(profile[0], profile[-1]) > 0.5:
        return None
    thickness = profile.sum()
    if thickness < 3:  # pixels; less never reaches full contrast, and what that is stays unknown
        raise _TooThin
    where = (torch.arange(len(profile)) + 0.5) / len(profile)
    scale = (len(profile) / thickness).item()
    return scale, 0.5 - scale * ((profile * where).sum() / thickness).item()


def _plateau(values: Tensor) -> Tensor:
    """The usual height of what is high."""
    return values[values > 0.5 * values.max()].median()


def _line(values: Tensor) -> tuple[float, float]:
    """The line through values along [0, 1], by Theil and Sen: medians, which bent ends cannot pull."""
    x, y = ((torch.arange(len(values)) + 0.5) / len(values))[values.isfinite()], values[values.isfinite()]
    if len(x) < 2:
        raise _TooThin
    first, second = torch.triu_indices(len(x), len(x), offset=1)
    slope = ((y[second] - y[first]) / (x[second] - x[first])).median()
    return slope.item(), (y - slope * x).median().item()
