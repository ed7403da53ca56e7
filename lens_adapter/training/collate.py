"""From samples (picture, prompt, mask) to a batch that a head can learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lens_adapter.adapter import LensAdapter
from lens_adapter.errors import InputError
from lens_adapter.training.losses import HEAT_SIDE, Targets
from lens_adapter.vlm.inputs import build_inputs


class Sample(TypedDict, total=False):
    """One prompt about one picture.

    `image`: RGB (the same object in several samples is encoded once) · `prompt` · `mask`: bool (H, W), all False where
    the prompt names nothing · `ignore` (optional): bool (H, W), pixels that do not count.
    """

    image: Image.Image
    prompt: str
    mask: np.ndarray
    ignore: np.ndarray | None


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
    samples: list[Sample]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each prompt's picture."""
        return [(sample["image"].height, sample["image"].width) for sample in self.samples]


class LensCollator:
    """Samples -> `{"input_ids", "batch"}`; the ids tell transformers' Trainer how many rows there are.

    Args:
        adapter: attached; its processor and prompt template ask the questions. Runs in the processes of a DataLoader
            too, where it touches no weight.
    """

    def __init__(self, adapter: LensAdapter):
        self.processor, self.max_length = adapter.processor, adapter.attachment.max_length
        self.template, self.decoder = adapter.config.prompt_template, adapter.decoder

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        for sample in samples:
            size = (sample["image"].height, sample["image"].width)
            if sample["mask"].shape != size or sample["mask"].dtype != bool:
                raise InputError(
                    f"A mask must be bool and as large as its picture, {size}; got {sample['mask'].dtype} "
                    f"{sample['mask'].shape} for the prompt {sample['prompt']!r}."
                )
        pictures = list({id(sample["image"]): sample["image"] for sample in samples}.values())
        place = {id(picture): index for index, picture in enumerate(pictures)}
        inputs = build_inputs(
            self.processor,
            [sample["image"] for sample in samples],
            [sample["prompt"] for sample in samples],
            self.template,
            max_length=self.max_length,
        )
        index = torch.tensor([place[id(sample["image"])] for sample in samples])
        batch = Batch(inputs, pictures, index, self._targets(samples), list(samples))
        return {"input_ids": inputs["input_ids"], "batch": batch}

    def _targets(self, samples: Sequence[Sample]) -> Targets:
        masks, heat = self._fit([sample["mask"] for sample in samples])
        ignored = [sample.get("ignore") for sample in samples]
        if all(region is None for region in ignored):
            return Targets(masks, heat)
        regions = [
            np.zeros_like(sample["mask"]) if region is None else region
            for sample, region in zip(samples, ignored, strict=True)
        ]
        return Targets(masks, heat, tuple(part > 0 for part in self._fit(regions)))

    def _fit(self, masks: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """bool N times (H, W) -> covered fractions (N, s, s) of SAM's square and (N, 128, 128) of the picture."""
        tensors = [torch.from_numpy(mask)[None] for mask in masks]
        square = torch.cat([self.decoder.downsample(mask) for mask in tensors])
        whole = [F.interpolate(mask[None].float(), (HEAT_SIDE, HEAT_SIDE), mode="area")[0] for mask in tensors]
        return square, torch.cat(whole)
