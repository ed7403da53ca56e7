"""Where in the original image each image token looks.

What differs between models is data: a row of architectures.py names a family (single.py, tiled.py: how tokens tile the
preprocessed pixels). What differs between processors (resizing, cropping, padding) is measured: see measured.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL.Image import Image
from torch import Tensor

from lens_adapter.errors import InputError, UnsupportedModelError
from lens_adapter.signals import TokenLayout, sizes_of
from lens_adapter.vlm.anatomy import Anatomy
from lens_adapter.vlm.architectures import ARCHITECTURES, Layout
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout.frames import MIN_SIDE, WHOLE, Frame, Line, is_enlarged
from lens_adapter.vlm.layout.measured import Sizes, frames_of
from lens_adapter.vlm.layout.single import ImageTokens, require_tensor
from lens_adapter.vlm.layout.tiled import joined


def token_layouts(
    anatomy: Anatomy,
    processor: Any,
    inputs: Mapping[str, Any],
    image_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[TokenLayout]:
    """Find the image tokens of a processed batch, and what each of them sees.

    A token sees its own patch (for Qwen: its merge x merge patches); what attention mixes into it is not counted.

    Args:
        anatomy: of the model that is given `inputs`.
        processor: the processor (or image processor) that made `inputs`, with its settings of then.
        inputs: what the processor returned: `input_ids` (B, T), `pixel_values`, grids.
        image_sizes: (H, W) of every original image, in the batch's order. Without them, or without a processor, boxes
            are fractions of the preprocessed picture instead.

    Returns:
        One layout per image, in order; of several images in one sequence, the first comes first. (Per tile, where
        neither the inputs nor `image_sizes` say which tiles make an image.)

    Raises:
        UnsupportedModelError: the architecture's layout is not known.
        InputError: the image tokens do not fit the images (text cut off, say), or `image_sizes` are not theirs.
    """
    known = _known_layout(anatomy)
    read = _reader(known, anatomy)
    images = read(inputs)
    measurable = any(window.pixels is not None for image in images for window in image.windows)
    if processor is None or image_sizes is None or not measurable:
        frames = [[WHOLE] * len(image.windows) for image in images]
    else:
        sizes = sizes_of(image_sizes)
        found = _known_sizes(processor, known.from_text, read)
        apart = _by_image(images, len(sizes), inputs, anatomy.image_token_id)

        def show(picture: Image) -> list[ImageTokens]:
            return read(_preprocess(processor, picture, known.from_text))

        measured = [found.measured(show, size, image) for size, image in zip(sizes, apart, strict=True)]
        counts = [one.pictures for one in measured]
        if sum(counts) != len(images):
            tiled = f" (by this processor, such images make {counts} of them)" if sum(counts) != len(sizes) else ""
            raise InputError(
                f"image_sizes: expected one (H, W) for each of {len(images)} images{' or tiles' if tiled else ''}, got "
                f"{sizes}{tiled}. Give the sizes of the very images that were processed, in order"
                + (f"; enlarge those thinner than {MIN_SIDE} pixels." if any(map(is_enlarged, sizes)) else ".")
            )
        ends = list(accumulate(counts, initial=0))
        images = [joined(images[start:end]) for start, end in pairwise(ends)]
        frames = [frames_of(*parts) for parts in zip(images, sizes, measured, strict=True)]
    lengths = [image.length for image in images]
    if known.leads:
        runs = [torch.arange(length) for length in lengths]
    elif anatomy.image_token_id is None:
        raise UnsupportedModelError(f"{anatomy.architecture}: its config names no image token, so none can be found.")
    else:
        runs = _token_runs(require_tensor(inputs, "input_ids"), anatomy.image_token_id, lengths)
    return [_layout(*parts) for parts in zip(images, runs, frames, strict=True)]


# {image processor: {(its settings, family, the family's values): what is known of its sizes}}
_cache: WeakKeyDictionary[Any, dict[Any, Sizes]] = WeakKeyDictionary()


def _known_sizes(processor: Any, from_text: bool, read: partial[list[ImageTokens]]) -> Sizes:
    """What is known of a processor with its settings of now."""
    image_processor = getattr(processor, "image_processor", processor)
    # A whole processor's settings beside its image processor's and tokenizer's: patch sizes and the like.
    own = [item for item in vars(processor).items() if isinstance(item[1], (int, str))] if from_text else []
    key = (image_processor.to_json_string(), str(own), read.func, str(read.keywords))
    known = _cache.setdefault(image_processor, {})
    if key not in known:
        known.setdefault(key, Sizes())
    return known[key]


def _preprocess(processor: Any, picture: Image, from_text: bool) -> Mapping[str, Any]:
    """What the model sees of a picture: by the whole processor, if that is wanted and there is one."""
    image_processor = getattr(processor, "image_processor", processor)
    if from_text and image_processor is not processor:
        return build_inputs(processor, [picture], ["?"], "{prompt}")
    return image_processor(images=[picture], return_tensors="pt")


def _known_layout(anatomy: Anatomy) -> Layout:
    """What is known about how this architecture's image tokens lie.

    Raises:
        UnsupportedModelError: nothing.
    """
    if anatomy.known.layout is None:
        names = sorted(name for name, architecture in ARCHITECTURES.items() if architecture.layout)
        raise UnsupportedModelError(
            f"{anatomy.architecture}: how its image tokens lie in the image is not known. Known: {names}. If it is "
            f"laid out as one of these, register({anatomy.architecture!r}, Architecture(Layout(...))) with that one's "
            "layout teaches it."
        )
    return anatomy.known.layout


def _reader(layout: Layout, anatomy: Anatomy) -> partial[list[ImageTokens]]:
    """The family's function with this model's values filled in."""
    values = dict(layout.constants)
    for name, path in layout.fields.items():
        value: Any = anatomy.config
        for part in path.split("."):
            if not hasattr(value, part):
                raise UnsupportedModelError(
                    f"{anatomy.architecture}: its layout needs config.{path}, which is not there."
                )
            value = getattr(value, part)
        values[name] = value
    return partial(layout.family, **values)


def _by_image(
    images: Sequence[ImageTokens], count: int, inputs: Mapping[str, Any], image_token_id: int | None
) -> Sequence[Sequence[ImageTokens] | None]:
    """The parts of each of so many images, where every part is one, or every sequence shows one; else None of each."""
    if len(images) == count:
        return [[image] for image in images]
    ids = inputs.get("input_ids")
    if image_token_id is None or not isinstance(ids, Tensor) or len(ids) != count:
        return [None] * count
    rest, apart = list(images), []
    for tokens in (ids == image_token_id).sum(1).tolist():
        parts: list[ImageTokens] = []
        while rest and sum(part.length for part in parts) < tokens:
            parts.append(rest.pop(0))
        apart.append(parts)
    return apart


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
        stride = window.stride or w
        positions.append(run[(window.start + rows[:, None] * stride + columns).flatten().to(run.device)])
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
