"""Outputs with masks to be drawn, without any model."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from lens_adapter.output import LensOutput

PAPER = (236, 232, 220)


def painted_output(width: int, height: int, prompts: int = 2) -> LensOutput:
    """Prompt i has a rectangle that starts at i quarters of the image."""
    masks = torch.zeros(prompts, height, width, dtype=torch.bool)
    for index in range(prompts):
        masks[index, height // 4 : height // 2, index * width // 4 : (index + 1) * width // 4] = True
    return LensOutput(
        prompts=[f"the thing number {index}" for index in range(prompts)],
        image_size=(height, width),
        masks=masks,
        scores=torch.linspace(0.2, 0.9, prompts),
        keypoints=[torch.tensor([[width / 2, height / 2]]) for _ in range(prompts)],
        keypoint_scores=[torch.ones(1) for _ in range(prompts)],
        heatmaps=torch.linspace(0, 1, prompts * 12).view(prompts, 3, 4),
        image=Image.new("RGB", (width, height), PAPER),
    )


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.int64)
