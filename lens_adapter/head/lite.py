"""Our own fusion: a small transformer over all tokens, which also reads captured attention rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lens_adapter.config import LensConfig
from lens_adapter.errors import LensError
from lens_adapter.head.fusion import FusionOutput, attended_tokens, last_token, take
from lens_adapter.head.raster import Raster
from lens_adapter.signals import LensSignals

HEAD_WIDTH = 32  # channels per attention head
_FREQUENCIES = 8  # octaves of the Fourier features of a box
_ATTENTION_FLOOR = 1e-2  # of uniform attention; keeps the logarithm of an unattended token near


class EncoderLayer(nn.TransformerEncoderLayer):
    """Pre-norm, GELU, no dropout; attention that never holds all pairs of tokens.

    In inference torch's own forward takes a shortcut that holds them, (B, heads, T, T): on a CPU it measured 2 to 3.4
    times as slow, the more the longer the sequence.
    """

    def __init__(self, width: int):
        super().__init__(width, width // HEAD_WIDTH, 4 * width, 0.0, batch_first=True, norm_first=True)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:  # type: ignore[override]  # one kind of mask, not four
        """(B, T, d) -> (B, T, d); `seen` is bool (B, T), which tokens may be attended to (None: all)."""
        own = self.self_attn
        projected = F.linear(self.norm1(x), own.in_proj_weight, own.in_proj_bias)  # (B, T, 3 d)
        heads = projected.unflatten(-1, (3, -1, HEAD_WIDTH))  # (B, T, 3, heads, 32)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, heads, T, 32) each
        mask = None if seen is None else seen[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + own.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class LiteFusion(nn.Module):
    """A small transformer of our own over all tokens of the sequence, a few million parameters at any base width.

    It reads the hidden states, where each image token looks, and how much each head of `config.attention_layers`
    attended to it. Heat is a probability per token and is not divided by its peak: it can say that nothing is there.

    Raises (forward):
        LensError: the signals lack an attention layer of the config, or its row of the query token.
    """

    def __init__(self, config: LensConfig):
        super().__init__()
        self.width = width = config.fusion_width
        self.attention_layers = list(config.attention_layers)
        self.hidden = nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, width))
        self.place = nn.Linear(4 * 2 * _FREQUENCIES, width)
        channels = sum(config.heads_of(layer) for layer in self.attention_layers)
        self.attention = nn.Linear(channels, width, bias=False) if channels else None
        self.text_vector = nn.Parameter(0.02 * torch.randn(width))
        self.query_vector = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(EncoderLayer(width) for _ in range(config.fusion_layers))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.full((1,), -2.0))  # most tokens do not show the object

    def forward(self, signals: LensSignals, raster: Raster) -> FusionOutput:
        dtype = self.place.weight.dtype
        query = last_token(signals)  # (B,)
        seen = None if signals.attention_mask is None else signals.attention_mask != 0  # (B, T)

        image = self.place(fourier_features(raster.boxes).to(dtype))  # (B, n, d)
        if self.attention is not None:
            image = image + self.attention(self._attention_channels(signals, raster, query).to(dtype))
        x = self.hidden(signals.hidden.to(dtype))  # (B, T, d)
        x = x + self._kinds(image, raster, query, x.shape[1])
        for layer in self.layers:
            x = layer(x, seen)
        x = self.norm(x)

        features, text = take(x, raster.positions), take(x, query[:, None])[:, 0]  # (B, n, d), (B, d)
        match = (self.key(features) @ self.query(text)[..., None])[..., 0].float() / math.sqrt(self.width)  # (B, n)
        heat = torch.sigmoid(self.scale.float() * match + self.bias.float())
        return FusionOutput(heat.masked_fill(~raster.token_mask, 0.0), features, text)

    def _attention_channels(self, signals: LensSignals, raster: Raster, query: Tensor) -> Tensor:
        """log(attention / uniform attention) of every head at the image tokens: float32 (B, n, channels)."""
        if missing := [layer for layer in self.attention_layers if layer not in signals.attention]:
            raise LensError(
                f"The lite head reads the attention of layers {self.attention_layers}; the signals hold "
                f"{sorted(signals.attention)} and lack {missing}. Capture them with `layers=`."
            )
        if signals.queries is None or not bool((signals.queries == query[:, None]).any(dim=1).all()):
            raise LensError(
                f"The lite head reads the attention rows of the last attended tokens, positions {query.tolist()}; "
                f"the captured ones are {None if signals.queries is None else signals.queries.tolist()}. "
                'Capture with query="last".'
            )
        index = (signals.queries == query[:, None]).long().argmax(dim=1)  # (B,)
        batch = torch.arange(len(query), device=query.device)
        rows = [signals.attention[layer][batch, :, index] for layer in self.attention_layers]
        row = torch.cat(rows, dim=1).float()  # (B, channels, T)
        row = row.gather(2, raster.positions[:, None].expand(-1, row.shape[1], -1)).mT  # (B, n, channels)
        return torch.log(row * attended_tokens(signals)[:, None, None] + _ATTENTION_FLOOR)

    def _kinds(self, image: Tensor, raster: Raster, query: Tensor, length: int) -> Tensor:
        """What is added to each token (B, T, d): `image` (B, n, d) at image tokens, a learned vector elsewhere."""
        mask = raster.token_mask
        is_image = mask.new_zeros(len(mask), length, dtype=torch.long).scatter_add(1, raster.positions, mask.long()) > 0
        index = raster.positions[..., None].expand_as(image)
        image = image.new_zeros(len(mask), length, self.width).scatter_add(1, index, image * mask[..., None])
        is_query = torch.arange(length, device=query.device) == query[:, None]  # (B, T)
        kinds = torch.where(is_image[..., None], image, self.text_vector.to(image.dtype))
        return kinds + is_query[..., None] * self.query_vector


def fourier_features(boxes: Tensor) -> Tensor:
    """Boxes (..., 4), x0 y0 x1 y1 in fractions -> sines and cosines of centres and sizes (..., 64), float32."""
    start, end = boxes.float().split(2, dim=-1)
    values = torch.cat([(start + end) / 2, end - start], dim=-1)  # (..., 4)
    octaves = math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=boxes.device)
    angles = (values[..., None] * octaves).flatten(-2)  # (..., 32)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
