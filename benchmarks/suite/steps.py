"""The steps of `segment`, for one new image and one prompt, each to be run by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import BatchFeature

from benchmarks.suite.registry import PROMPTS, picture, segment
from lens_adapter import LensAdapter
from lens_adapter.head.head import HeadOutput
from lens_adapter.signals import LensSignals
from lens_adapter.vlm.inputs import build_inputs


class Steps:
    """Every step takes what the one before it gave when this was made, and gives what it gives within `segment`."""

    def __init__(self, adapter: LensAdapter):
        self.adapter, self.image = adapter, picture()
        self.size = (self.image.height, self.image.width)
        self.index = torch.zeros(1, dtype=torch.long, device=adapter.device)
        self.inputs = self.process()
        self.layouts = adapter.layout(self.inputs, [self.size])
        self.signals = self.read()
        self.sparse = self.point().sparse
        self.embedding = self.encode()
        self.logits, _ = self.decode()

    def process(self) -> BatchFeature:
        return build_inputs(self.adapter.base.processor, [self.image], PROMPTS[:1], self.adapter.config.prompt_template)

    def read(self) -> LensSignals:
        return self.adapter.prefill(self.inputs)

    def point(self, head: nn.Module | None = None) -> HeadOutput:
        """By the adapter's head, or another."""
        decoder = self.adapter.decoder
        return (head or self.adapter.head)(self.signals, self.layouts, self._encode_points, decoder.not_a_point)

    def encode(self) -> Tensor:
        return self.adapter.decoder.encode_images([self.image])

    def decode(self) -> tuple[Tensor, Tensor]:
        return self.adapter.decoder(self.embedding, self.index, self.sparse)

    def enlarge(self) -> Tensor:
        return self.adapter.decoder.masks(self.logits, self.size, -math.inf)  # as `segment` below

    def segment(self) -> None:
        segment(self.adapter, self.image, PROMPTS[0])

    def _encode_points(self, points: Tensor) -> Tensor:
        return self.adapter.decoder.point_encoding(points, [self.size])
