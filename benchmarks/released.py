"""What the paper's released research code does for a sample, in our own words and with stock modules.

Work and order of LENS (arXiv 2510.16785) as its authors' code runs it: the base to its end with the hidden states of
all layers, an eager fusion that makes whole attention maps, one SAM decode per sample. Its weights are random: they do
not matter to speed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from lens_adapter.config import LensConfig
from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.inputs import build_inputs


class ReleasedPipeline(nn.Module):
    """One image and one prompt at a time.

    Args:
        model, processor: the base; its decoder layers must be those of Llama or Qwen2 (norm, attention, norm, MLP).
        config: of a mirror head, for the tapped layer and all sizes.
        sam: the image encoder and the mask decoder of the adapter that this is compared with; their dtype is that of
            everything here.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: LensConfig, sam: SamDecoder):
        super().__init__()
        self.outside = (model, processor, sam)  # in a tuple: no part of this module
        self.config = config
        anatomy = find_anatomy(model)
        self.image_token, self.rotary = anatomy.image_token_id, anatomy.decoder.rotary_emb
        width, channels = config.hidden_size, config.sam["out_channels"]
        like = {"device": model.device, "dtype": sam.dtype}
        self.fusion = copy.deepcopy(anatomy.layers[config.tap_layer : config.tap_layer + config.fusion_layers])
        self.fusion.to(sam.dtype)
        for layer in self.fusion:
            layer.self_attn.config._attn_implementation = "eager"
        heads = config.num_attention_heads
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True, **like)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width, **like), nn.GELU(), nn.Linear(2 * width, width, **like))
        self.norms = nn.ModuleList(nn.LayerNorm(width, **like) for _ in range(2))
        self.together = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, **like)
        self.project = nn.Sequential(
            nn.Linear(width, channels, **like), nn.GELU(), nn.Linear(channels, channels, **like)
        )
        self.places = copy.deepcopy(sam.prompt_encoder.pe_layer).float()  # half precision would blur where a point is
        self.text_vector = nn.Parameter(torch.zeros(channels, **like))
        self.eval()

    @torch.no_grad()
    def forward(self, image: Image.Image, prompt: str, embedding: Tensor | None = None) -> Tensor:
        """A mask, bool (H, W), on the CPU.

        Args:
            image: RGB.
            prompt: what to segment.
            embedding: (1, C, g, g) of the image, if its encoder is not to run.
        """
        model, processor, sam = self.outside
        if embedding is None:
            embedding = sam.encode_images([image])
        inputs = build_inputs(processor, [image], [prompt], self.config.prompt_template).to(model.device)
        output = model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        tapped = output.hidden_states[self.config.tap_layer].to(sam.dtype)  # (1, T, D)
        hidden, attention = self.fuse(tapped)  # (1, T, D), (1, h, T, T)
        places = (inputs["input_ids"][0] == self.image_token).nonzero()[:, 0]  # (n,)
        height, width = self.grid(inputs, len(places))
        heat = attention.float().mean(dim=1)[0, -1, places].view(height, width)
        points, valid = self.peaks((heat / heat.max()).clamp(1e-6, 1 - 1e-6))  # (K, 2), (K,)
        features = hidden[0, places].T.view(1, -1, height, width)
        tokens = self.describe(features, points, valid, hidden[:, -1])  # (1, K + 1, C)
        return self.decode(sam, embedding, tokens, points, valid, (image.height, image.width))

    def fuse(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Through the copied layers; the attention of the first one, of all tokens to all."""
        length = hidden.shape[1]
        positions = torch.arange(length, device=hidden.device)[None]
        if hasattr(self.rotary, "mrope_section"):
            positions = positions.expand(3, -1, -1)
        tables = self.rotary(hidden, positions)
        mask = torch.full((1, 1, length, length), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
        first = None
        for layer in self.fusion:
            normed = layer.input_layernorm(hidden)
            added, weights = layer.self_attn(normed, position_embeddings=tables, attention_mask=mask)
            first = weights if first is None else first
            hidden = hidden + added
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden, first

    def grid(self, inputs: Any, count: int) -> tuple[int, int]:
        """Rows and columns of the image tokens."""
        if "image_grid_thw" not in inputs:
            return round(count**0.5), round(count**0.5)
        model, _, _ = self.outside
        merge = model.config.vision_config.spatial_merge_size
        return tuple(length // merge for length in inputs["image_grid_thw"][0, 1:].tolist())

    def peaks(self, heat: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy non-maximum suppression, and the maximum of the quadratic around each peak: x, y in (0, 1)."""
        device, heat = heat.device, heat.cpu()  # to look at single numbers
        height, width = heat.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        left, padded = heat.clone(), F.pad(heat[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
        points, valid = [], []
        for _ in range(self.config.num_keypoints):
            y, x = divmod(int(left.argmax()), width)
            valid.append(bool(left[y, x] > self.config.keypoint_threshold * heat.max()))
            dx, dy = _summit(padded[y : y + 3, x : x + 3].tolist())
            points.append([(x + dx + 0.5) / width, (y + dy + 0.5) / height])
            left[(rows - y) ** 2 + (columns - x) ** 2 <= self.config.suppression_radius**2] = -1
        return torch.tensor(points, device=device), torch.tensor(valid, device=device)

    def describe(self, features: Tensor, points: Tensor, valid: Tensor, text: Tensor) -> Tensor:
        """(1, D, h, w), (K, 2), (K,), (1, D) -> prompt vectors (1, K + 1, C)."""
        height, width = features.shape[-2:]
        step = torch.arange(-1.0, 2.0, device=points.device)
        around = torch.stack(torch.meshgrid(step / width, step / height, indexing="xy"), dim=-1).view(1, 9, 2)
        places = 2 * (points[:, None] + around)[None] - 1  # (1, K, 9, 2)
        samples = F.grid_sample(features.float(), places, align_corners=False).to(text.dtype)  # (1, D, K, 9)
        samples = samples[0].permute(1, 2, 0)  # (K, 9, D)
        query = text.expand(len(points), 1, -1)
        found = self.norms[0](query + self.attend(query, samples, samples, need_weights=False)[0])
        found = self.norms[1](found + self.feed(found))[:, 0]
        ignored = torch.cat([~valid, valid.new_zeros(1)])[None]
        return self.project(self.together(torch.cat([found, text])[None], src_key_padding_mask=ignored))

    def decode(
        self, sam: SamDecoder, embedding: Tensor, tokens: Tensor, points: Tensor, valid: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """SAM's mask decoder on one sample, and its mask at the image's own size."""
        side, prompts = self.config.sam["image_size"], sam.prompt_encoder
        height, width = (round(length * side / max(size)) for length in size)
        pixels = points * torch.tensor([width, height], device=points.device)
        places = self.places.forward_with_coords(pixels[None], (side, side)).to(tokens.dtype)
        spots = torch.where(valid[:, None], tokens[:, :-1] + places, prompts.not_a_point_embed.weight[0])
        _, dense = prompts(points=None, boxes=None, masks=None)
        low, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.places(prompts.image_embedding_size)[None].to(tokens.dtype),
            sparse_prompt_embeddings=torch.cat([spots, tokens[:, -1:] + self.text_vector], dim=1),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        square = F.interpolate(low.float(), (side, side), mode="bilinear", align_corners=False)
        whole = F.interpolate(square[..., :height, :width], size, mode="bilinear", align_corners=False)
        return (whole[0, 0].sigmoid() > self.config.mask_threshold).cpu()


def _summit(near: list[list[float]]) -> tuple[float, float]:
    """Where the quadratic through 3 x 3 values is highest, x and y from the middle, each in [-1, 1]."""
    (a, b, c), (d, e, f), (g, h, i) = near
    slope_x, slope_y, across, down, mixed = (f - d) / 2, (h - b) / 2, f - 2 * e + d, h - 2 * e + b, (i - g - c + a) / 4
    determinant = across * down - mixed**2
    if determinant <= 0:
        return 0.0, 0.0
    x, y = (mixed * slope_y - down * slope_x) / determinant, (mixed * slope_x - across * slope_y) / determinant
    return min(max(x, -1.0), 1.0), min(max(y, -1.0), 1.0)
