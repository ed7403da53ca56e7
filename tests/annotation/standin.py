"""A segmenter without a model: its masks follow from the picture and the prompt alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from PIL import Image

from lens_adapter.errors import InputError
from lens_adapter.output import LensOutput


def standin(images: list[Image.Image], prompts: list[list[str]], pause: float = 0.0) -> list[LensOutput]:
    """Where the picture is darker than the prompt says. Refuses the prompt "refused", and sleeps `pause` seconds."""
    if any("refused" in asked for asked in prompts):
        raise InputError("The prompt 'refused' is refused.")
    time.sleep(pause)
    outputs = []
    for image, asked in zip(images, prompts, strict=True):
        grey = np.asarray(image.convert("L"))
        levels = [crc32(prompt.encode()) % 200 + 28 for prompt in asked]
        masks = torch.from_numpy(np.stack([grey < level for level in levels]))
        outputs.append(
            LensOutput(
                prompts=list(asked),
                image_size=grey.shape,
                masks=masks,
                scores=masks.float().mean((1, 2)),
                keypoints=[torch.tensor([[1.5, 2.25]])] * len(asked),
                keypoint_scores=[torch.ones(1)] * len(asked),
                heatmaps=torch.zeros(len(asked), 2, 2),
            )
        )
    return outputs


def slow_standin(images: list[Image.Image], prompts: list[list[str]]) -> list[LensOutput]:
    return standin(images, prompts, pause=0.004)


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (9, 7)) -> list[str]:
    """Noise of its own in each, as PNG; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{k:05d}.png" for k in range(count)]
    for k, name in enumerate(names):
        pixels = np.random.default_rng(k).integers(0, 256, (size[1] + k % 3, size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
