"""`MaskDecoder`: the one interface that everybody talks to when pictures and prompts are to become masks.

Behind it: segment-anything (`segment_anything.SamDecoder`, the default), and the families of transformers
(`transformers_family.FamilyDecoder`). `build.build_decoder` makes the one that a config names.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lens_adapter.devices import sent
from lens_adapter.errors import CheckpointMismatchError, InputError, LensConfigError, LensError
from lens_adapter.finite import not_finite
from lens_adapter.sam.families import family_title
from lens_adapter.sam.square import (
    downsample_masks,
    heat_in_square,
    logit,
    places_in_square,
    size_in,
    threshold_masks,
    upsample_logits,
)
from lens_adapter.sam.tracking import MaskTracker
from lens_adapter.signals import SparsePrompts

# Prompts decoded together, by device. Each takes tens of megabytes in a SAM of the published sizes: a CPU is fastest
# while they fit its caches (measured: 4 at once take up to 1.1 times, 16 at once 1.8 times as long as one by one), an
# accelerator while it is full.
PROMPTS_AT_ONCE = {"cpu": 2, "other": 64}
IMAGES_AT_ONCE = {"cpu": 1, "other": 4}  # likewise; global attention of SAM's encoder takes gigabytes per image


class Decoded(NamedTuple):
    """What a mask decoder says about N prompts.

    Attributes:
        logits: float32 (N, 4g, 4g), over the decoder's own square; `MaskDecoder.upsample` brings them to an image's own
            pixels.
        quality: float32 (N,), its estimate of each mask's IoU: meant to be in [0, 1], but not bound to it where its
            head is linear.
        presence: float32 (N,) in [0, 1], its own word on whether there is an object at all; None: the family has none.
    """

    logits: Tensor
    quality: Tensor
    presence: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """(N,): the quality times the presence, where the family has one: the IoU to expect if there may be nothing."""
        return self.quality if self.presence is None else self.quality * self.presence


class MaskDecoder(nn.Module, ABC):
    """Images once, then any number of prompts about any of them -> masks. Only `mask_decoder` learns.

    In what follows S is `image_size` of `sam`, C `out_channels`, g = S / `patch_size`, E the channels of an image's
    embedding, N the number of prompts. Image sizes are (height, width) in pixels of the original image; points and
    boxes are fractions of it. The square that an image is brought into, padded or squashed, is the decoder's own
    affair: `upsample`, `masks`, `places` and `downsample` lead out of it and into it.

    An image's embedding is ONE tensor (E, g, g), whatever the family: finer features, where there are any, are folded
    onto the same grid as more channels.

    Args:
        sam: the complete dict `LensConfig.sam`.
    """

    sam: dict[str, Any]
    image_encoder: nn.Module | None
    prompt_encoder: nn.Module
    mask_decoder: nn.Module

    def __init__(self, sam: dict[str, Any]):
        super().__init__()
        self.sam = sam

    # What a family is made of

    @property
    @abstractmethod
    def encoding(self) -> nn.Module | None:
        """All weights that an image's embedding depends on; None: the image encoder was not loaded."""

    @abstractmethod
    def load_weights(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        """Start from published weights: all parts, and the image encoder where there is one.

        Args:
            source: a folder or Hub repository (of segment-anything: see `load_sam_weights`); default: `weights` of
                `LensConfig.sam`.
            hub_kwargs: revision, token, cache_dir, local_files_only, subfolder.

        Raises:
            CheckpointMismatchError: unreadable, of another family or of other dimensions, or not finite.
            LensConfigError: no source given, and none in the config.
        """

    @abstractmethod
    def load_image_encoder(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        """Build the image encoder, if there is none yet, and load its frozen weights.

        Args, Raises: as for `load_weights`.
        """

    def load_tracker(self, source: str | Path | None = None, **hub_kwargs: Any) -> MaskTracker:
        """The video model of the family, which carries masks through the frames of a video.

        Args:
            source: a folder or Hub repository that holds its memory; default: `weights` of `LensConfig.sam`.
            hub_kwargs: as for `load_weights`.

        Raises:
            LensConfigError: the family has no video model, or the installed transformers has not; no source.
            CheckpointMismatchError: unreadable, of another family, or without a memory.
        """
        raise LensConfigError(
            f"{family_title(self.sam)} has no video model, so its masks cannot be tracked. Segment frame by frame "
            "(track=False), or take a head with sam= of SAM 2, EdgeTAM or SAM 3, 'sam2.1-small' say."
        )

    @abstractmethod
    def _resized_colors(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """An RGB picture at a size (h, w) in pixels of the square, by the family's own way to resize: (3, h, w)."""

    @abstractmethod
    def clicks(
        self,
        points: Tensor | None,
        image_sizes: Sequence[tuple[int, int]],
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """The family's own sparse prompts for clicks and boxes: (N, P, C).

        Args:
            points: (N, K, 2), x then y, in fractions of the original image; None: boxes alone.
            image_sizes: N times (H, W).
            labels: (N, K): 1 (True) for a click on the thing, 0 (False) for one on the background, -1 where there is
                no click, since other prompts have more; None: all are 1.
            boxes: (N, 4), x0 y0 x1 y1, in fractions of the original image.
        """

    @abstractmethod
    def mask_prompts(self, logits: Tensor) -> Tensor:
        """The family's own dense prompts for masks: logits (N, 4g, 4g), as `forward` returns them -> (N, C, g, g)."""

    @property
    @abstractmethod
    def no_mask(self) -> Tensor:
        """The dense prompt that stands for no mask: (1, C, g, g)."""

    @abstractmethod
    def _encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, E, g, g)."""

    @abstractmethod
    def _encode_places(self, pixels: Tensor) -> Tensor:
        """Points (N, K, 2) in pixels of the square -> the encoding of their places (N, K, C), in float32."""

    @abstractmethod
    def _grid_places(self) -> Tensor:
        """The encoding of the places of all cells of the embedding's grid: (1, C, g, g), in float32."""

    @abstractmethod
    def _decode(self, embeddings: Tensor, sparse: Tensor, dense: Tensor, places: Tensor) -> Decoded:
        """As `forward`, of few prompts: (n, E, g, g), (n, P, C), (n or 1, C, g, g); `places` are the grid's."""

    # What they have in common

    @property
    def device(self) -> torch.device:
        return self._example.device

    @property
    def dtype(self) -> torch.dtype:
        return self._example.dtype

    @property
    def _example(self) -> Tensor:
        return self.get_parameter("mask_decoder.iou_token.weight")

    @property
    def unsaved_keys(self) -> set[str]:
        """Names in `state_dict()` that a checkpoint leaves out: the image encoder's, unless it is to be included."""
        if self.sam["include_image_encoder"]:
            return set()
        return {name for name in self.state_dict() if name.startswith("image_encoder.")}

    def freeze(self) -> None:
        """Let nothing but the mask decoder learn. To be repeated after `from_pretrained`: it makes new parameters."""
        for name, parameter in self.named_parameters():
            if not name.startswith("mask_decoder."):
                parameter.requires_grad_(False)

    def _source(self, source: str | Path | None) -> str | Path:
        source = self.sam["weights"] if source is None else source
        if source is None:
            raise LensConfigError(
                "LensConfig.sam['weights'] is None: expected a .pth file, a folder or a Hub repository. "
                "Name one in the config or pass it as `source`."
            )
        return source

    def _of_another(self, source: str | Path, other: str) -> CheckpointMismatchError:
        """The error for weights of another family."""
        own = family_title(self.sam)
        return CheckpointMismatchError(
            f"{source} holds the weights of {other}; this mask decoder is of {own}, and heads are trained for one "
            f"family. Name weights of {own}, or make a new head with sam={str(source)!r}."
        )

    def _require_finite(self, parts: Iterable[nn.Module], source: str | Path) -> None:
        if wrong := not_finite(pair for part in parts for pair in part.state_dict().items()):
            raise CheckpointMismatchError(
                f"SAM's weights in {source}: {len(wrong)} tensors hold numbers that are infinite or none (NaN) in "
                f"{str(self.dtype).removeprefix('torch.')}: {str(wrong[:4])[1:-1]}; expected finite ones. Fetch them "
                "again."
            )

    def shrink(self, image: Image.Image | Tensor) -> Tensor:
        """The colors of an image, as `preprocess` takes it, at its size in the square: uint8 (3, h, w).

        They are all that an embedding depends on, and an image that `preprocess` takes and does not resize any more.

        Raises:
            InputError: an image of another kind.
        """
        require_colors(image)
        size = size_in(self.sam, _size_of(image))
        if not isinstance(image, Tensor):
            return self._resized_colors(image, size)
        if _size_of(image) == size:
            return image
        return self._resized_colors(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), size)

    def preprocess(self, images: Iterable[Image.Image | Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Bring images into the square: resized as whole colors, normalized, zeros to the right and below.

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
            sent(torch.tensor(self.sam[key], dtype=torch.float32), self.device)[:, None, None]  # (3, 1, 1)
            for key in ("pixel_mean", "pixel_std")
        )
        pixels, sizes = [], []
        for image in images:
            colors = sent(self.shrink(image), self.device)
            sizes.append(_size_of(image))
            height, width = colors.shape[1:]
            pixels.append(F.pad((colors - mean) / std, (0, side - width, 0, side - height)))
        return torch.stack(pixels), sizes

    @torch.no_grad()
    def encode_images(self, images: Iterable[Image.Image | Tensor]) -> Tensor:
        """Image embeddings (B, E, g, g) of images as `preprocess` takes them.

        Raises:
            InputError: an image that `preprocess` does not take.
            LensError: the image encoder was not loaded.
        """
        if self.image_encoder is None:
            raise LensError(
                f"{type(self).__name__} has no image encoder: expected `load_image_encoder()` to be called first."
            )
        pixels, _ = self.preprocess(images)
        parts = pixels.to(self.dtype).split(self._at_once(IMAGES_AT_ONCE))
        return torch.cat([self._encode(part) for part in parts])

    def point_encoding(self, points: Tensor, image_sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
        """The random-Fourier encoding of points, without the embedding that calls a point foreground or background.

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
            encoding = self._encode_places(pixels)
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
        nothing = self.get_parameter("prompt_encoder.not_a_point_embed.weight")[0]
        points = torch.where(prompts.shown[..., None], placed, nothing)
        return torch.cat([points, prompts.text_vector[:, None]], dim=1)

    def forward(
        self, image_embeddings: Tensor, image_index: Tensor, sparse: Tensor, dense: Tensor | None = None
    ) -> Decoded:
        """Decode the masks of several images and several prompts per image.

        Args:
            image_embeddings: (B, E, g, g), from `encode_images`.
            image_index: long (N,), the image each prompt is about.
            sparse: (N, P, C), from `sparse_prompts` or `clicks`.
            dense: (N, C, g, g), from `mask_prompts`, or what a head makes of its heat; None: `no_mask` for all.
        """
        embeddings, at_once = image_embeddings.to(self.dtype), self._at_once(PROMPTS_AT_ONCE)
        with torch.autocast(self.device.type, enabled=False):
            places = self._grid_places().to(self.dtype)
        shown = self.no_mask.expand(len(sparse), -1, -1, -1) if dense is None else dense.to(self.dtype)
        parts = [
            self._decode(embeddings[index], prompts.to(self.dtype), masks, places)
            for index, prompts, masks in zip(
                image_index.split(at_once), sparse.split(at_once), shown.split(at_once), strict=True
            )
        ]
        logits, quality, presence = zip(*parts, strict=True)
        word = None if presence[0] is None else torch.cat(presence).float()
        return Decoded(torch.cat(logits).float(), torch.cat(quality).float(), word)

    # The square

    def upsample(self, low_res_logits: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Logits of ONE image's prompts at its own resolution: out of the square, to the image.

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
        return places_in_square(points, image_size, self.sam)

    def downsample(self, masks: Tensor) -> Tensor:
        """The reverse of `upsample`: masks of ONE image, as the decoder is to put them out; see `downsample_masks`."""
        return downsample_masks(masks, self.sam)

    def heat(self, prompts: SparsePrompts, image_sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
        """The heat of N prompts over the embedding's grid: float32 (N, 1, g, g), 0 beside the picture."""
        return heat_in_square(prompts.heatmap, prompts.size, image_sizes, self.sam)

    def _resized(self, image_sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
        """Width and height (N, 1, 2) of each image within the square, in its pixels."""
        sizes = [size_in(self.sam, size) for size in image_sizes]
        return sent(torch.tensor(sizes), self.device).reshape(-1, 1, 2).flip(-1)

    def _at_once(self, limits: dict[str, int]) -> int:
        return limits.get(self.device.type, limits["other"])


def in_float32(module: nn.Module) -> Any:
    """A copy: half precision, by `.to()` or by autocast, would blur where a point is."""
    return copy.deepcopy(module).float()


def _size_of(image: Image.Image | Tensor) -> tuple[int, int]:
    """(H, W)"""
    return (image.shape[-2], image.shape[-1]) if isinstance(image, Tensor) else (image.height, image.width)


def require_colors(image: Image.Image | Tensor) -> None:
    """Refuse what is no image as `preprocess` takes it.

    Raises:
        InputError: one of another kind.
    """
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        return
    if isinstance(image, Image.Image) and image.mode == "RGB":
        return
    got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else getattr(image, "mode", type(image))
    raise InputError(f"Expected a PIL image in RGB or a uint8 tensor (3, H, W); got {got}. See vlm.images.load_image.")
