"""Where in the original image each image token looks.

What differs between models is data: a row of `LAYOUTS` names a family (how tokens tile the preprocessed pixels) and the
config fields that it needs. What differs between processors (resizing, cropping, padding) is measured: see frame.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lens_adapter.errors import InputError, UnsupportedModelError
from lens_adapter.signals import TokenLayout
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.frame import WHOLE, Frame, Line, is_enlarged, measure_frames


@dataclass(frozen=True)
class Window:
    """A rectangle of preprocessed pixels that a row-major grid of tokens covers.

    Attributes:
        start: index of its first token among the image's tokens.
        grid: (h, w) tokens.
        pixels: float (rows, columns), the preprocessed values averaged over channels, at any resolution.
    """

    start: int
    grid: tuple[int, int]
    pixels: Tensor


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image: how many, and which windows they look through. Tokens of no window see no place."""

    length: int
    windows: tuple[Window, ...]


Family = Callable[..., list[ImageTokens]]  # (inputs, **values of the row's fields) -> one entry per image


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


MAX_CACHED = 1024  # image sizes per processor

# {image processor: {(its settings, family, the family's values, image size): (grids, frames) of the windows}}
_cache: WeakKeyDictionary[Any, dict[Any, tuple[list[tuple[int, int]], list[Frame]]]] = WeakKeyDictionary()


def _frames(
    image_processor: Any, read: partial[list[ImageTokens]], size: tuple[int, int], image: ImageTokens
) -> list[Frame]:
    """The frame of each of the image's windows, measured once per processor setting and image size."""
    if min(size) < 1:
        raise InputError(f"image_sizes: expected a height and a width of at least 1 pixel, got {size}.")
    key = (image_processor.to_json_string(), read.func, tuple(read.keywords.items()), size)
    known = _cache.setdefault(image_processor, {})
    if key not in known:
        windows: tuple[Window, ...] = ()

        def show(picture: Image) -> list[Tensor]:
            nonlocal windows
            windows = read(image_processor(images=[picture], return_tensors="pt"))[0].windows
            return [window.pixels for window in windows]

        if len(known) >= MAX_CACHED:
            known.clear()
        frames = measure_frames(show, size)
        known[key] = [window.grid for window in windows], frames
    grids, frames = known[key]
    got = [window.grid for window in image.windows]
    if grids != got and not is_enlarged(size):
        raise InputError(
            f"image_sizes: an image of (H, W) = {size} has token grids {grids} by this processor, but the inputs have "
            f"{got}. Give the sizes of the very images that were processed, in order, and the same processor."
        )
    return frames


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
    for ids in input_ids:
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


def _cells(count: int, line: Line) -> tuple[Tensor, Tensor, Tensor]:
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
