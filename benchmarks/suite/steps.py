"""The steps of `segment`, for one new image and one prompt, each to be run by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BatchFeature

from benchmarks.suite.registry import PROMPTS, picture, segment
from lens_adapter import LensAdapter
from lens_adapter.signals import Reading, SparsePrompts


class Steps:
    """Every step takes what the one before it gave when this was made, and gives what it gives within `segment`."""

    def __init__(self, adapter: LensAdapter):
        self.adapter, self.image = adapter, picture()
        self.size = (self.image.height, self.image.width)
        self.index = torch.zeros(1, dtype=torch.long, device=adapter.device)
        self.inputs = self.process()
        self.reading = self.read()
        self.prompts = self.point()
        self.embedding = self.encode()
        self.logits, *_ = self.decode()

    def process(self) -> BatchFeature:
        return self.adapter.base.build_inputs([self.image], PROMPTS[:1])

    def read(self) -> Reading:
        return self.adapter.base.read([self.image], PROMPTS[:1], inputs=self.inputs)

    def point(self, head: nn.Module | None = None) -> SparsePrompts:
        """By the adapter's head, or another."""
        return (head or self.adapter.head)(self.reading)

    def encode(self) -> Tensor:
        return self.adapter.decoder.encode_images([self.image])

    def decode(self) -> tuple[Tensor, Tensor]:
        sparse = self.adapter.decoder.sparse_prompts(self.prompts, [self.size])
        return self.adapter.decoder(self.embedding, self.index, sparse)

    def enlarge(self) -> Tensor:
        return self.adapter.decoder.masks(self.logits, self.size, mask_threshold=0.0)  # as `segment` below

    def segment(self) -> None:
        segment(self.adapter, self.image, PROMPTS[0])
