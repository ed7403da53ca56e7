"""Stand-ins for what the head is given: signals of a frozen model, mirrored layers, layouts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lens_adapter.signals import LensSignals, TokenLayout

HIDDEN, HEADS = 32, 4


class StandInMirror(nn.Module):
    """One causal attention layer with the signature of `MirrorLayers`."""

    def __init__(self, width: int = HIDDEN, heads: int = HEADS):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, signals: LensSignals, queries: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, width = signals.hidden.shape
        hidden = signals.hidden.to(self.qkv.weight.dtype)
        mask = signals.layer_kwargs["attention_mask"].to(hidden)
        q, k, v = self.qkv(hidden).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = (q @ k.mT) + mask  # (B, heads, T, T)
        weights = logits.softmax(dim=-1)
        rows = weights.gather(2, queries[:, None, :, None].expand(-1, self.heads, -1, length)).float()
        return rows, hidden + (weights @ v).transpose(1, 2).reshape(batch, length, width)


@pytest.fixture
def mirror() -> StandInMirror:
    torch.manual_seed(0)
    return StandInMirror()


@pytest.fixture
def make_layout():
    """`make_layout(h, w, start, region)`: a row-major grid of tokens over a region of the image."""

    def make(h: int, w: int, start: int = 1, region: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)) -> TokenLayout:
        x0, y0, x1, y1 = region
        row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        left, top = x0 + column.flatten() / w * (x1 - x0), y0 + row.flatten() / h * (y1 - y0)
        right, bottom = x0 + (column.flatten() + 1) / w * (x1 - x0), y0 + (row.flatten() + 1) / h * (y1 - y0)
        return TokenLayout(
            positions=start + torch.arange(h * w), boxes=torch.stack([left, top, right, bottom], dim=1), grid=(h, w)
        )

    return make


@pytest.fixture
def make_signals():
    """`make_signals([T_0, T_1, ...], layers, dtype)`: random signals of sequences of these lengths, left padded."""

    def make(lengths: list[int], layers: tuple[int, ...] = (1, 2), dtype: torch.dtype = torch.float32) -> LensSignals:
        total = max(lengths)
        hidden = torch.zeros(len(lengths), total, HIDDEN)
        mask = torch.zeros(len(lengths), total, dtype=torch.long)
        attention = {layer: torch.zeros(len(lengths), HEADS, 1, total) for layer in layers}
        for row, length in enumerate(lengths):
            generator = torch.Generator().manual_seed(row)
            mask[row, total - length :] = 1
            hidden[row, total - length :] = 3 * torch.randn(length, HIDDEN, generator=generator)
            for rows in attention.values():
                rows[row, :, 0, total - length :] = torch.randn(HEADS, length, generator=generator).softmax(-1)
        causal = torch.ones(total, total).tril().bool() & mask[:, None, None].bool()
        additive = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
        return LensSignals(
            hidden=hidden.to(dtype),
            attention=attention,
            layer_kwargs={"attention_mask": additive},
            attention_mask=mask,
            queries=torch.full((len(lengths), 1), total - 1),
        )

    return make
