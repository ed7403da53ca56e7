"""`SamDecoder`: segment-anything as the mask decoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything import modeling
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from lens_adapter.errors import CheckpointMismatchError
from lens_adapter.sam.decoder import Decoded, MaskDecoder, in_float32
from lens_adapter.sam.families import FAMILIES, read_family
from lens_adapter.sam.fetching import say_what_is_fetched
from lens_adapter.sam.weights import load_parts, load_sam_weights


class SamDecoder(MaskDecoder):
    """Prompt vectors and images in, mask logits out.

    segment-anything (Kirillov et al., arXiv 2304.02643; github.com/facebookresearch/segment-anything), its own modules
    through their public calls. `mask_decoder` learns; `prompt_encoder` and `image_encoder` are frozen. The longest side
    of an image fills the square; the rest is padding. An image's embedding has E = C channels.

    Args:
        sam: the complete dict `LensConfig.sam`. Without `include_image_encoder`, `image_encoder` is None until
            `load_image_encoder` is called, and is left out of what a checkpoint saves (`unsaved_keys`).
    """

    image_encoder: ImageEncoderViT | None
    prompt_encoder: PromptEncoder

    def __init__(self, sam: dict[str, Any]):
        super().__init__(sam)
        size, channels = sam["image_size"], sam["out_channels"]
        grid = size // sam["patch_size"]
        self.prompt_encoder = PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=sam["mask_in_channels"],
        )
        self.mask_decoder = modeling.MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(
                depth=sam["decoder_depth"],
                embedding_dim=channels,
                num_heads=sam["decoder_num_heads"],
                mlp_dim=sam["decoder_mlp_dim"],
            ),
            iou_head_hidden_dim=sam["iou_head_dim"],
        )
        self.register_module("image_encoder", _build_image_encoder(sam) if sam["include_image_encoder"] else None)
        self.freeze()

    @property
    def encoding(self) -> ImageEncoderViT | None:
        return self.image_encoder

    # Weights

    def load_weights(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        self._load(dict(self.named_children()), source, hub_kwargs)

    def load_image_encoder(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        encoder = self.image_encoder
        if encoder is None:
            with torch.device("meta"):  # no time lost on random weights
                encoder = _build_image_encoder(self.sam)
            encoder = encoder.to(self.dtype).to_empty(device=self.device)
        self._load({"image_encoder": encoder}, source, hub_kwargs)
        self.image_encoder = encoder
        self.freeze()

    def _load(self, parts: dict[str, nn.Module], source: str | Path | None, hub_kwargs: dict[str, Any]) -> None:
        source = self._source(source)
        if source != "builtin":
            say_what_is_fetched(source, **hub_kwargs)
        try:
            load_parts(parts, load_sam_weights(source, **hub_kwargs), source)
        except CheckpointMismatchError:
            if (family := self._family_at(source, hub_kwargs)) not in (None, "sam"):
                raise self._of_another(source, FAMILIES[family].title) from None
            raise
        self._require_finite(parts.values(), source)

    @staticmethod
    def _family_at(source: str | Path, hub_kwargs: dict[str, Any]) -> str | None:
        try:
            return read_family(source, **hub_kwargs)[0]
        except CheckpointMismatchError:
            return None

    # Images

    def _resized_colors(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        height, width = size
        return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR))).permute(2, 0, 1)

    def _encode(self, pixels: Tensor) -> Tensor:
        assert self.image_encoder is not None
        return self.image_encoder(pixels)

    # Prompts and masks

    def _encode_places(self, pixels: Tensor) -> Tensor:
        layer = in_float32(self.prompt_encoder.pe_layer)
        return layer.forward_with_coords(pixels, self.prompt_encoder.input_image_size)

    def clicks(
        self,
        points: Tensor | None,
        image_sizes: Sequence[tuple[int, int]],
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """SAM's own: (N, K + 1, C), the last one "not a point", which stands for missing ones too; of boxes two."""
        given = corners = None
        if points is not None:
            pixels = points.to(self.device, torch.float32) * self._resized(image_sizes)
            kinds = torch.ones(pixels.shape[:2], dtype=torch.int, device=self.device)
            given = pixels, kinds if labels is None else labels.to(kinds)
        if boxes is not None:
            corners = boxes.to(self.device, torch.float32) * self._resized(image_sizes)[:, 0].repeat(1, 2)  # (N, 4)
        with torch.autocast(self.device.type, enabled=False):
            sparse, _ = in_float32(self.prompt_encoder)(points=given, boxes=corners, masks=None)
        return sparse.to(self.dtype)

    def mask_prompts(self, logits: Tensor) -> Tensor:
        _, dense = self.prompt_encoder(points=None, boxes=None, masks=logits[:, None].to(self.dtype))
        return dense

    @property
    def no_mask(self) -> Tensor:
        _, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
        return dense

    def _grid_places(self) -> Tensor:
        layer = in_float32(self.prompt_encoder.pe_layer)
        return layer(self.prompt_encoder.image_embedding_size)[None]

    def _decode(self, embeddings: Tensor, sparse: Tensor, dense: Tensor, places: Tensor) -> Decoded:
        # MaskDecoder takes one image, repeats it for every prompt and adds the dense prompts. Given an image of zeros
        # and the prompts' own images as dense prompts, it has the same sum, but over as many images as there are.
        masks, iou = self.mask_decoder(
            image_embeddings=torch.zeros_like(embeddings[:1]),
            image_pe=places,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=embeddings + dense,  # (n, C, g, g)
            multimask_output=False,
        )
        return Decoded(masks[:, 0], iou[:, 0])


def _build_image_encoder(sam: dict[str, Any]) -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=sam["image_size"],
        patch_size=sam["patch_size"],
        embed_dim=sam["embed_dim"],
        depth=sam["depth"],
        num_heads=sam["num_heads"],
        mlp_ratio=sam["mlp_ratio"],
        out_chans=sam["out_channels"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=sam["relative_position"],
        window_size=sam["window_size"],
        global_attn_indexes=tuple(sam["global_attention_layers"]),
    )
