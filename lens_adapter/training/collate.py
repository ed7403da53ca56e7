"""From samples (picture, prompt, mask) to a batch that a head can learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lens_adapter.adapter import LensAdapter
from lens_adapter.data.examples import Example
from lens_adapter.errors import InputError
from lens_adapter.sam.square import downsample_masks
from lens_adapter.signals import Reading
from lens_adapter.training.losses import HEAT_SIDE, Targets


@dataclass
class Batch:
    """N prompts about B pictures.

    Attributes:
        inputs: what the processor made of each prompt and its picture, N rows.
        pictures: B images.
        image_index: long (N,), which of them each prompt is about.
        targets: of the N prompts.
        samples: as they came.
    """

    inputs: Any
    pictures: list[Image.Image]
    image_index: Tensor
    targets: Targets
    samples: list[Example]

    def read(self, adapter: LensAdapter) -> Reading:
        """What the adapter's base says about the N prompts."""
        images, prompts = [sample.image for sample in self.samples], [sample.prompt for sample in self.samples]
        return adapter.base.read(images, prompts, inputs=self.inputs)

    def encode_images(self, adapter: LensAdapter) -> Tensor:
        """SAM's embeddings (B, E, g, g) of the pictures."""
        return adapter.decoder.encode_images(self.pictures)


class LensCollator:
    """Samples -> `{"input_ids", "batch"}`; the ids tell transformers' Trainer how many rows there are.

    Holds no weights, so that sending it to the processes of a DataLoader costs nothing.

    Args:
        adapter: attached; its processor and prompt template ask the questions.
    """

    def __init__(self, adapter: LensAdapter):
        self.build_inputs, self.sam = adapter.base.build_inputs, adapter.config.sam

    def __call__(self, samples: Sequence[Example]) -> dict[str, Any]:
        for sample in samples:
            check_example(sample)
        images = [sample.image for sample in samples]
        prompts = [sample.prompt for sample in samples]
        inputs = self.build_inputs(images, prompts)
        pictures = {id(image): image for image in images}
        index = torch.tensor([list(pictures).index(id(image)) for image in images])
        batch = Batch(inputs, list(pictures.values()), index, self._targets(samples), list(samples))
        return {"input_ids": inputs["input_ids"], "batch": batch}

    def _targets(self, samples: Sequence[Example]) -> Targets:
        masks, heat = self._fit([sample.mask for sample in samples])
        regions = [sample.ignore for sample in samples]
        if all(region is None for region in regions):
            return Targets(masks, heat)
        pairs = zip(samples, regions, strict=True)
        ignored = self._fit([np.zeros_like(sample.mask) if r is None else r for sample, r in pairs])
        return Targets(masks, heat, (ignored[0] > 0, ignored[1] > 0))

    def _fit(self, masks: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """bool N times (H, W) -> covered fractions (N, s, s) of SAM's square and (N, 128, 128) of the picture."""
        tensors = [torch.from_numpy(mask)[None] for mask in masks]
        square = torch.cat([downsample_masks(mask, self.sam) for mask in tensors])
        whole = [F.interpolate(mask[None].float(), (HEAT_SIDE, HEAT_SIDE), mode="area")[0] for mask in tensors]
        return square, torch.cat(whole)


def check_example(sample: Example) -> None:
    """Refuse what is no `Example`, or one whose masks are not bool or not as large as its picture.

    Raises:
        InputError: names what was expected and what came.
    """
    if not isinstance(sample, Example):
        raise InputError(f"A sample must be an Example: picture, prompt and mask; got {type(sample).__name__}.")
    size = (sample.image.height, sample.image.width)
    for key in ("mask", "ignore"):
        mask = getattr(sample, key)
        if (mask is not None or key == "mask") and not (
            isinstance(mask, np.ndarray) and mask.shape == size and mask.dtype == bool
        ):
            got = f"{mask.dtype} {mask.shape}" if hasattr(mask, "shape") else type(mask).__name__
            raise InputError(
                f"{key!r} of a sample must be a bool array as large as its picture, {size}; got {got} for the prompt "
                f"{sample.prompt!r}."
            )
