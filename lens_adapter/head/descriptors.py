"""Features around keypoints -> a vector for each, and one for the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lens_adapter.head.raster import Raster


class Descriptors(nn.Module):
    """One vector per keypoint and one for the text, in the space of a mask decoder's prompts.

    The query token attends to 3x3 samples of the feature grid around each keypoint; an encoder layer lets keypoints
    and query token see each other; an MLP leads to `out_channels`. Method: LENS, arXiv 2510.16785.

    Args:
        width: d, of the features.
        out_channels: C, width of the decoder's prompts.
        num_heads: attention heads; divides `width`.
    """

    def __init__(self, width: int, out_channels: int, num_heads: int):
        super().__init__()
        # Hidden states of a decoder differ in scale from token to token by orders of magnitude.
        self.norm_samples = nn.LayerNorm(width)
        self.norm_text = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm_attention = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm_feed_forward = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoderLayer(width, num_heads, 2 * width, 0.0, "gelu", batch_first=True)
        self.project = nn.Sequential(nn.Linear(width, out_channels), nn.GELU(), nn.Linear(out_channels, out_channels))
        self.text_vector = nn.Parameter(0.02 * torch.randn(out_channels))

    def forward(
        self, raster: Raster, features: Tensor, points: Tensor, shown: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Describe K points of each sample.

        Args:
            raster: where the image tokens lie in the original image.
            features: (B, n, d), of the image tokens.
            points: (B, K, 2), x then y, in fractions of the original image.
            shown: bool (B, K); the others are seen by no point and no text, and their vectors mean nothing.
            text: (B, d), features of the query token.

        Returns:
            point_vectors: (B, K, C).
            text_vector: (B, C).
        """
        samples = self.norm_samples(sample_neighborhoods(raster, features, points))  # (B, K, 9, d)
        text = self.norm_text(text)  # (B, d)
        batch, count, _, width = samples.shape

        query = text[:, None].expand(-1, count, -1)  # (B, K, d)
        samples = samples.flatten(0, 1)  # (B * K, 9, d)
        attended, _ = self.attention(query.reshape(-1, 1, width), samples, samples, need_weights=False)
        described = self.norm_attention(query + attended.view(batch, count, width))
        described = self.norm_feed_forward(described + self.feed_forward(described))  # (B, K, d)

        ignored = torch.cat([~shown, shown.new_zeros(batch, 1)], dim=1)  # never the query token
        tokens = self.encoder(torch.cat([described, text[:, None]], dim=1), src_key_padding_mask=ignored)
        tokens = self.project(tokens)  # (B, K + 1, C)
        return tokens[:, :-1], tokens[:, -1] + self.text_vector


def sample_neighborhoods(raster: Raster, features: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of the grid that the features make, at each point and one cell away from it in every direction.

    Args:
        raster: its cells are weighted means of the image tokens.
        features: (B, n, d), of the image tokens.
        points: (B, K, 2), x then y, in fractions of the image; the centre of cell (0, 0) is (0.5 / w, 0.5 / h). Samples
            are clamped to the image.

    Returns:
        (B, K, 9, d), row-major.
    """
    rows, columns = raster.size[:, None, None].unbind(-1)  # (B, 1, 1) each
    step = torch.arange(-1, 2, device=points.device)
    x = points[..., :1] * columns - 0.5 + step.repeat(3)  # (B, K, 9), in cells
    y = points[..., 1:] * rows - 0.5 + step.repeat_interleave(3)
    x, y = (at.clamp(min=0).minimum(count - 1) for at, count in ((x, columns), (y, rows)))

    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).minimum(columns - 1), (top + 1).minimum(rows - 1)
    across, down = x - left, y - top  # in [0, 1)

    def corner(row: Tensor, column: Tensor, share: Tensor) -> Tensor:
        return raster.weights(row.flatten(1), column.flatten(1)) * share.flatten(1)[..., None]  # (B, K * 9, n)

    weights = (
        corner(top, left, (1 - down) * (1 - across))
        + corner(top, right, (1 - down) * across)
        + corner(bottom, left, down * (1 - across))
        + corner(bottom, right, down * across)
    )
    return (weights.to(features.dtype) @ features).unflatten(1, (-1, 9))
