"""`SamDecoder`: segment-anything as the mask decoder."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn

from lens_adapter.errors import CheckpointMismatchError, InputError, LensConfigError, LensError
from lens_adapter.finite import not_finite
from lens_adapter.sam.square import downsample_masks, logit, size_in_square, threshold_masks, upsample_logits
from lens_adapter.sam.weights import load_parts, load_sam_weights
from lens_adapter.signals import SparsePrompts

# Prompts decoded together, by device. Each takes tens of megabytes in a SAM of the published sizes: a CPU is fastest
# while they fit its caches (measured: 4 at once take up to 1.1 times, 16 at once 1.8 times as long as one by one), an
# accelerator while it is full.
PROMPTS_AT_ONCE = {"cpu": 2, "other": 64}
IMAGES_AT_ONCE = {"cpu": 1, "other": 4}  # likewise; global attention of SAM's encoder takes gigabytes per image


class SamDecoder(nn.Module):
    """Prompt vectors and images in, mask logits out.

    segment-anything (Kirillov et al., arXiv 2304.02643; github.com/facebookresearch/segment-anything), its own modules
    through their public calls. `mask_decoder` learns; `prompt_encoder` and `image_encoder` are frozen.

    In what follows S is `image_size`, C `out_channels`, g = S / `patch_size`, N the number of prompts. Image sizes are
    (height, width) in pixels of the original image.

    Args:
        sam: the complete dict `LensConfig.sam`. Without `include_image_encoder`, `image_encoder` is None until
            `load_image_encoder` is called, and is left out of what a checkpoint saves (`unsaved_keys`).
    """

    image_encoder: ImageEncoderViT | None

    def __init__(self, sam: dict[str, Any]):
        super().__init__()
        self.sam = sam
        size, channels = sam["image_size"], sam["out_channels"]
        grid = size // sam["patch_size"]
        self.prompt_encoder = PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=sam["mask_in_channels"],
        )
        self.mask_decoder = MaskDecoder(
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
    def device(self) -> torch.device:
        return self.mask_decoder.iou_token.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mask_decoder.iou_token.weight.dtype

    @property
    def unsaved_keys(self) -> set[str]:
        """Names in `state_dict()` that a checkpoint leaves out: the image encoder's, unless it is to be included."""
        if self.sam["include_image_encoder"]:
            return set()
        return {name for name in self.state_dict() if name.startswith("image_encoder.")}

    def freeze(self) -> None:
        """Let nothing but the mask decoder learn. To be repeated after `from_pretrained`: it makes new parameters."""
        self.prompt_encoder.requires_grad_(False)
        if self.image_encoder is not None:
            self.image_encoder.requires_grad_(False)

    # Weights

    def load_weights(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        """Start from a published SAM: prompt encoder, mask decoder and, where there is one, image encoder.

        Args:
            source: as for `load_sam_weights`; default: `weights` of `LensConfig.sam`.
            hub_kwargs: revision, token, cache_dir, local_files_only, subfolder.

        Raises:
            CheckpointMismatchError: unreadable, of other dimensions, or not finite.
            LensConfigError: no source given, and none in the config.
        """
        self._load(dict(self.named_children()), source, hub_kwargs)

    def load_image_encoder(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        """Build the image encoder, if there is none yet, and load its frozen weights.

        Args, Raises: as for `load_weights`.
        """
        encoder = self.image_encoder
        if encoder is None:
            with torch.device("meta"):  # no time lost on random weights
                encoder = _build_image_encoder(self.sam)
            encoder = encoder.to(self.dtype).to_empty(device=self.device)
        self._load({"image_encoder": encoder}, source, hub_kwargs)
        self.image_encoder = encoder
        self.freeze()

    def _load(self, parts: dict[str, nn.Module], source: str | Path | None, hub_kwargs: dict[str, Any]) -> None:
        source = self.sam["weights"] if source is None else source
        if source is None:
            raise LensConfigError(
                "LensConfig.sam['weights'] is None: expected a .pth file, a folder or a Hub repository. "
                "Name one in the config or pass it as `source`."
            )
        load_parts(parts, load_sam_weights(source, **hub_kwargs), source)
        if wrong := not_finite(pair for part in parts.values() for pair in part.state_dict().items()):
            raise CheckpointMismatchError(
                f"SAM's weights in {source}: {len(wrong)} tensors hold numbers that are infinite or none (NaN) in "
                f"{str(self.dtype).removeprefix('torch.')}: {str(wrong[:4])[1:-1]}; expected finite ones. Fetch them "
                "again."
            )

    # Images

    def preprocess(self, images: Iterable[Image.Image | Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Bring images into SAM's square: longest side to S, normalized, zeros to the right and below.

        Args:
            images: PIL images in RGB, or uint8 tensors (3, H, W); each of any size.

        Returns:
            pixels: float (B, 3, S, S).
            sizes: (H, W) of each image as it came.

        Raises:
            InputError: an image of another kind.
        """
        side = self.sam["image_size"]
        mean, std = (
            torch.tensor(self.sam[key], dtype=torch.float32, device=self.device)[:, None, None]  # (3, 1, 1)
            for key in ("pixel_mean", "pixel_std")
        )
        pixels, sizes = [], []
        for image in map(_as_pil, images):
            sizes.append((image.height, image.width))
            height, width = size_in_square(sizes[-1], side)
            resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))  # (h, w, 3)
            colors = torch.from_numpy(resized).to(self.device).permute(2, 0, 1)  # (3, h, w)
            pixels.append(F.pad((colors - mean) / std, (0, side - width, 0, side - height)))
        return torch.stack(pixels), sizes

    @torch.no_grad()
    def encode_images(self, images: Iterable[Image.Image | Tensor]) -> Tensor:
        """Image embeddings (B, C, g, g) of images as `preprocess` takes them.

        Raises:
            InputError: an image that `preprocess` does not take.
            LensError: the image encoder was not loaded.
        """
        if self.image_encoder is None:
            raise LensError("SamDecoder has no image encoder: expected `load_image_encoder()` to be called first.")
        pixels, _ = self.preprocess(images)
        parts = pixels.to(self.dtype).split(self._at_once(IMAGES_AT_ONCE))
        return torch.cat([self.image_encoder(part) for part in parts])

    # Prompts and masks

    def point_encoding(self, points: Tensor, image_sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
        """SAM's random-Fourier encoding of points, without the embedding that calls a point foreground or background.

        Args:
            points: (N, K, 2), x then y, in fractions of the original image. A point is taken as SAM takes a click at
                the pixel coordinates fraction * (W, H): scaled into the square, plus half a pixel.
            image_sizes: N times (H, W), or long (N, 2).

        Returns:
            (N, K, C)

        Raises:
            InputError: shapes that do not fit.
        """
        if points.ndim != 3 or points.shape[-1] != 2 or len(points) != len(image_sizes):
            raise InputError(
                f"Expected points (N, K, 2) and N image sizes; got {tuple(points.shape)} and {len(image_sizes)} sizes."
            )
        pixels = points.to(self.device, torch.float32) * self._resized(image_sizes) + 0.5  # (N, K, 2), in the square
        with torch.autocast(self.device.type, enabled=False):
            encoding = self._position_layer().forward_with_coords(pixels, self.prompt_encoder.input_image_size)
        return encoding.to(self.dtype)

    def sparse_prompts(self, prompts: SparsePrompts, image_sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
        """What a head says -> the vectors that the mask decoder reads: (N, K + 1, C), the points and then the text.

        A point gets the encoding of its place, without SAM's label for foreground or background; one that is not shown
        is SAM's "not a point".

        Args:
            prompts: with vectors.
            image_sizes: as for `point_encoding`.

        Raises:
            LensError: without vectors.
        """
        if prompts.point_vectors is None or prompts.text_vector is None:
            raise LensError("Expected prompts with vectors; these have points alone: use masks_of_clicks.")
        placed = prompts.point_vectors + self.point_encoding(prompts.keypoints.points, image_sizes)
        points = torch.where(prompts.shown[..., None], placed, self.prompt_encoder.not_a_point_embed.weight[0])
        return torch.cat([points, prompts.text_vector[:, None]], dim=1)

    def clicks(
        self, points: Tensor, image_sizes: Sequence[tuple[int, int]], foreground: Tensor | None = None
    ) -> Tensor:
        """SAM's own sparse prompts for clicks: (N, K + 1, C), the last one "not a point".

        Args:
            points: (N, K, 2), x then y, in fractions of the original image.
            image_sizes: N times (H, W).
            foreground: bool (N, K), False for clicks on the background; None: there are none of these.
        """
        pixels = points.to(self.device, torch.float32) * self._resized(image_sizes)
        labels = torch.ones(pixels.shape[:2], dtype=torch.int, device=self.device)
        labels = labels if foreground is None else foreground.to(labels)
        sparse, _ = self.prompt_encoder(points=(pixels, labels), boxes=None, masks=None)
        return sparse

    def forward(self, image_embeddings: Tensor, image_index: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the masks of several images and several prompts per image.

        Args:
            image_embeddings: (B, C, g, g), from `encode_images`.
            image_index: long (N,), the image each prompt is about.
            sparse: (N, P, C), from `sparse_prompts` or `clicks`.

        Returns:
            low_res_logits: float32 (N, 4g, 4g), of the padded square; `upsample` brings them to an image's own pixels.
            iou: float32 (N,), the decoder's estimate of each mask's quality as its linear head gives it: meant to be
                in [0, 1] but not bound to it.
        """
        _, no_mask = self.prompt_encoder(points=None, boxes=None, masks=None)  # (1, C, g, g)
        with torch.autocast(self.device.type, enabled=False):
            positions = self._position_layer()(self.prompt_encoder.image_embedding_size)[None]  # (1, C, g, g)
        # MaskDecoder takes one image, repeats it for every prompt and adds the dense prompts. Given an image of zeros
        # and the prompts' own images as dense prompts, it has the same sum, but over as many images as there are.
        embeddings, blank = image_embeddings.to(self.dtype), torch.zeros_like(image_embeddings[:1], dtype=self.dtype)
        at_once = self._at_once(PROMPTS_AT_ONCE)
        parts = [
            self.mask_decoder(
                image_embeddings=blank,
                image_pe=positions.to(self.dtype),
                sparse_prompt_embeddings=prompts.to(self.dtype),
                dense_prompt_embeddings=embeddings[index] + no_mask,  # (n, C, g, g)
                multimask_output=False,
            )
            for index, prompts in zip(image_index.split(at_once), sparse.split(at_once), strict=True)
        ]
        masks, iou = (torch.cat(part) for part in zip(*parts, strict=True))
        return masks[:, 0].float(), iou[:, 0].float()

    def upsample(self, low_res_logits: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Logits of ONE image's prompts at its own resolution: to the square, padding cut off, to the image.

        Args:
            low_res_logits: (N, h, w), from `forward`.
            image_size: (H, W) of the original image.

        Returns:
            float32 (N, H, W)
        """
        return upsample_logits(low_res_logits, image_size, self.sam)

    def masks(self, low_res_logits: Tensor, image_size: tuple[int, int], mask_threshold: float) -> Tensor:
        """`upsample(...) > logit(mask_threshold)` but for rounding, in less time and memory; see `threshold_masks`.

        Args:
            low_res_logits, image_size: as for `upsample`.
            mask_threshold: a probability.

        Returns:
            bool (N, H, W), on the CPU.
        """
        return threshold_masks(low_res_logits, image_size, logit(mask_threshold), self.sam)

    def places(self, points: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Points of ONE image, (..., 2), x then y, in fractions of it -> in fractions of the low-resolution logits."""
        height, width = size_in_square(image_size, self.sam["image_size"])
        return points * points.new_tensor([width, height]) / self.sam["image_size"]

    def downsample(self, masks: Tensor) -> Tensor:
        """The reverse of `upsample`: masks of ONE image, as the decoder is to put them out; see `downsample_masks`."""
        return downsample_masks(masks, self.sam)

    def _resized(self, image_sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
        """Width and height (N, 1, 2) of each image within the square, in its pixels."""
        sizes = [size_in_square(size, self.sam["image_size"]) for size in image_sizes]
        return torch.tensor(sizes, device=self.device).reshape(-1, 1, 2).flip(-1)

    def _at_once(self, limits: dict[str, int]) -> int:
        return limits.get(self.device.type, limits["other"])

    def _position_layer(self) -> PositionEmbeddingRandom:
        # Always in float32, as SAM's is: half precision, by `.to()` or by autocast, would blur where a point is.
        return copy.deepcopy(self.prompt_encoder.pe_layer).float()


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


def _as_pil(image: Image.Image | Tensor) -> Image.Image:
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    if isinstance(image, Image.Image) and image.mode == "RGB":
        return image
    got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else getattr(image, "mode", type(image))
    raise InputError(f"Expected a PIL image in RGB or a uint8 tensor (3, H, W); got {got}. See vlm.images.load_image.")
