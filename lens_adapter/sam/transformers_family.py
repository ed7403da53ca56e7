"""`FamilyDecoder`: the SAMs of transformers as the mask decoder, their own modules through their public calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import CONFIG_MAPPING, AutoModelForMaskGeneration, PretrainedConfig, PreTrainedModel

from lens_adapter.errors import CheckpointMismatchError, LensConfigError
from lens_adapter.sam.decoder import Decoded, MaskDecoder, in_float32
from lens_adapter.sam.families import CANNOT_BE_BUILT, FAMILIES, folder_of, read_family
from lens_adapter.sam.fetching import say_what_is_fetched
from lens_adapter.sam.published import SEGMENT_ANYTHING
from lens_adapter.sam.tracking import OWN_PARTS, MaskTracker, video_class, video_config

PADDING = -10  # the label of a click that is none, in transformers' prompt encoders


class FamilyDecoder(MaskDecoder):
    """A model that transformers' `AutoModelForMaskGeneration` loads: SAM, SAM-HQ, SAM 2, EdgeTAM, SAM 3's tracker.

    Its parts have the names that segment-anything's have: `image_encoder`, `prompt_encoder`, `mask_decoder`. The
    projections of finer features that stand in the mask decoder of some (`conv_s0`, `conv_s1`) belong to the encoding
    of an image and are frozen, so that an image's embedding stays what it is while a head learns.

    Args:
        sam: as `families.complete_family` completes it. Without `include_image_encoder`, `image_encoder` is None until
            `load_image_encoder` is called, and is left out of what a checkpoint saves (`unsaved_keys`).

    Raises:
        LensConfigError: no such model can be built.
    """

    image_encoder: nn.Module | None

    def __init__(self, sam: dict[str, Any]):
        super().__init__(sam)
        self.family = FAMILIES[sam["family"]]
        config = self._config()
        try:
            with torch.device("meta"):
                shell = AutoModelForMaskGeneration.from_config(config)
        except CANNOT_BE_BUILT as error:
            raise LensConfigError(f"LensConfig.sam: no {self.family.title} can be built. {error}") from error
        prompts = config.prompt_encoder_config if self.family.details == "pyramid" else config
        self.prompt_encoder = type(shell.prompt_encoder)(prompts)
        self.mask_decoder = type(shell.mask_decoder)(config.mask_decoder_config)
        # Of the cells of the grid; points have their own in the prompt encoder.
        self.shared_image_embedding = type(self.prompt_encoder.shared_embedding)(
            config.prompt_encoder_config if self.family.details == "pyramid" else config.vision_config
        )
        if self.family.details == "pyramid":
            self.no_memory_embedding = nn.Parameter(torch.zeros(shell.no_memory_embedding.shape))
        encoder = None
        if sam["include_image_encoder"]:
            encoder = type(shell.vision_encoder)(config.vision_config)
        self.register_module("image_encoder", encoder)
        # The family's model itself, without parts of its own: what it does is done with ours (see `_lent`).
        for part in ("vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding"):
            setattr(shell, part, None)
        self._shell = (shell,)  # in a tuple: no part of this module
        self.freeze()

    def _config(self) -> PretrainedConfig:
        return CONFIG_MAPPING[self.sam["family"]](**self.sam["config"])

    def freeze(self) -> None:
        super().freeze()
        for layer in self._projections:
            layer.requires_grad_(False)

    def train(self, mode: bool = True) -> FamilyDecoder:
        """As torch's, but what is frozen stays in evaluation mode: batch norms in it would go on learning."""
        super().train(mode)
        for name, part in self.named_children():
            part.train(mode and name == "mask_decoder")
        return self

    @property
    def _projections(self) -> list[nn.Module]:
        """Those of finer features, in the mask decoder."""
        if self.family.details != "pyramid":
            return []
        return [self.mask_decoder.get_submodule(name) for name in ("conv_s0", "conv_s1")]

    @property
    def encoding(self) -> nn.Module | None:
        if self.image_encoder is None:
            return None
        if not self._projections:
            return self.image_encoder
        return nn.ModuleList([self.image_encoder, *self._projections, nn.ParameterList([self.no_memory_embedding])])

    # Weights

    def load_weights(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        model = self._read(source, hub_kwargs)
        for name in ("prompt_encoder", "mask_decoder", "shared_image_embedding"):
            self.get_submodule(name).load_state_dict(model.get_submodule(name).state_dict())
        if self.family.details == "pyramid":
            with torch.no_grad():
                self.no_memory_embedding.copy_(model.get_parameter("no_memory_embedding"))
        if self.image_encoder is not None:
            self._take_encoder(model)

    def load_image_encoder(self, source: str | Path | None = None, **hub_kwargs: Any) -> None:
        self._take_encoder(self._read(source, hub_kwargs))

    def _take_encoder(self, model: PreTrainedModel) -> None:
        self.image_encoder = model.get_submodule("vision_encoder").to(device=self.device, dtype=self.dtype).eval()
        self.freeze()

    def _read(self, source: str | Path | None, hub_kwargs: dict[str, Any]) -> PreTrainedModel:
        """The whole model, on the CPU, in float32: built as our config says, never as the source says."""
        source, hub_kwargs, _ = self._located(source, hub_kwargs)
        model, missing = read_model(AutoModelForMaskGeneration, self._config(), source, hub_kwargs)
        if missing:
            raise CheckpointMismatchError(
                f"{source} does not fit the dimensions in LensConfig.sam: {len(missing)} tensors are missing or of "
                f"other shapes: {str(missing[:3])[1:-1]}. Choose the variant these weights are of."
            )
        self._require_finite([model], source)
        return model

    def _located(
        self, source: str | Path | None, hub_kwargs: dict[str, Any]
    ) -> tuple[str | Path, dict[str, Any], dict[str, Any]]:
        """Where weights are, at which revision, and what the config there says; of this family, or refused."""
        source = self._source(source)
        if str(source) == "builtin" or Path(source).suffix == ".pth":
            raise self._of_another(source, SEGMENT_ANYTHING)
        if source == self.sam["weights"] and self.sam["revision"] is not None:
            hub_kwargs = {"revision": self.sam["revision"], **hub_kwargs}
        family, config, _ = read_family(folder_of(source), **hub_kwargs)
        if family != self.sam["family"]:
            raise self._of_another(source, FAMILIES[family].title)
        return source, hub_kwargs, config

    def load_tracker(self, source: str | Path | None = None, **hub_kwargs: Any) -> MaskTracker:
        if not self.family.video:
            return super().load_tracker(source, **hub_kwargs)
        source, hub_kwargs, described = self._located(source, hub_kwargs)
        model_class = video_class(self.sam["family"])
        model, missing = read_model(model_class, video_config(self.sam, described), source, hub_kwargs)
        if missing := [name for name in missing if not name.startswith(OWN_PARTS)]:
            raise CheckpointMismatchError(
                f"{source} holds no {self.family.title} that remembers: {len(missing)} tensors of its memory are "
                f"missing or of other shapes: {str(missing[:3])[1:-1]}. Name a folder or repository of a "
                f"{model_class.__name__} of the same size with track=, or segment frame by frame (track=False)."
            )
        self._require_finite([model], source)
        return MaskTracker(model)

    # Images

    def _resized_colors(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """As the family's own processor: antialiased."""
        colors = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
        return resize(colors, list(size), InterpolationMode.BILINEAR, antialias=True)

    def _lent(self) -> Any:
        """The family's model, with our parts in the places of its own."""
        (shell,) = self._shell
        shell.vision_encoder, shell.prompt_encoder = self.image_encoder, self.prompt_encoder
        shell.mask_decoder = self.mask_decoder
        if self.family.details == "pyramid":
            shell.no_memory_embedding = self.no_memory_embedding
        return shell

    def _encode(self, pixels: Tensor) -> Tensor:
        found = self._lent().get_image_embeddings(pixels)
        if self.family.details == "pyramid":
            finest, finer, image = found
            return torch.cat([image, F.pixel_unshuffle(finer, 2), F.pixel_unshuffle(finest, 4)], dim=1)
        if self.family.details == "early":
            image, early = found
            return torch.cat([image, early[0].permute(0, 3, 1, 2)], dim=1)
        image = found
        return image

    def _details(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings (n, E, g, g) -> those of the images (n, C, g, g), and what else the mask decoder is given."""
        width = self.sam["out_channels"]
        image, rest = embeddings[:, :width], embeddings[:, width:]
        if self.family.details == "pyramid":
            finer, finest = F.pixel_shuffle(rest[:, :width], 2), F.pixel_shuffle(rest[:, width:], 4)
            return image, {"high_resolution_features": [finest, finer]}
        if self.family.details == "early":
            return image, {"intermediate_embeddings": [rest.permute(0, 2, 3, 1)], "hq_token_only": False}
        return image, {}

    # Prompts and masks

    def _encode_places(self, pixels: Tensor) -> Tensor:
        side = self.sam["image_size"]
        return in_float32(self.prompt_encoder.get_submodule("shared_embedding"))(pixels[:, None], (side, side))[:, 0]

    def _grid_places(self) -> Tensor:
        shell = self._lent()
        shell.shared_image_embedding = in_float32(self.get_submodule("shared_image_embedding"))
        return shell.get_image_wide_positional_embeddings()

    def clicks(
        self,
        points: Tensor | None,
        image_sizes: Sequence[tuple[int, int]],
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """The family's own: (N, P, C), with its own padding."""
        given = kinds = corners = None
        if points is not None:
            given = (points.to(self.device, torch.float32) * self._resized(image_sizes))[:, None]  # (N, 1, K, 2)
            kinds = torch.ones(points.shape[:2], dtype=torch.int, device=self.device)
            kinds = kinds if labels is None else labels.to(kinds)
            kinds = kinds.where(kinds >= 0, PADDING)[:, None]
        if boxes is not None:
            scale = self._resized(image_sizes).repeat(1, 1, 2)  # (N, 1, 4)
            corners = boxes.to(self.device, torch.float32)[:, None] * scale
        with torch.autocast(self.device.type, enabled=False):
            encoder = in_float32(self.prompt_encoder)
            sparse, _ = encoder(input_points=given, input_labels=kinds, input_boxes=corners, input_masks=None)
        return sparse[:, 0].to(self.dtype)

    def mask_prompts(self, logits: Tensor) -> Tensor:
        masks = logits[:, None].to(self.dtype)
        _, dense = self.prompt_encoder(input_points=None, input_labels=None, input_boxes=None, input_masks=masks)
        return dense

    @property
    def no_mask(self) -> Tensor:
        _, dense = self.prompt_encoder(input_points=None, input_labels=None, input_boxes=None, input_masks=None)
        return dense

    def _decode(self, embeddings: Tensor, sparse: Tensor, dense: Tensor, places: Tensor) -> Decoded:
        image, details = self._details(embeddings)
        masks, iou, *more = self.mask_decoder(
            image_embeddings=image,
            image_positional_embeddings=places.expand(len(image), -1, -1, -1),
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
            **details,
        )
        presence = more[1][:, 0, 0].sigmoid() if self.family.has_object_score else None
        return Decoded(masks[:, 0, 0], iou[:, 0, 0], presence)


def read_model(
    loader: Any, config: PretrainedConfig, source: str | Path, hub_kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """A model of these families, on the CPU, in float32, and the tensors that its source lacks or has in other shapes.

    Raises:
        CheckpointMismatchError: unreadable, or damaged.
    """
    say_what_is_fetched(folder_of(source), **hub_kwargs)
    try:
        model, info = loader.from_pretrained(
            folder_of(source),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # all that is wrong is listed
            dtype=torch.float32,
            **hub_kwargs,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointMismatchError(
            f"{source} does not fit the dimensions in LensConfig.sam, or is damaged. {error} Choose the variant "
            "these weights are of, or fetch them again. Only safetensors are read."
        ) from error
    wrong = [*info["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])]
    return model, sorted(map(str, wrong))
