"""`MaskTracker`: a mask of one frame carried through a video, by the video model of the mask decoder's own family.

It is the family's model and processor, through their public calls. What the head has, it uses: the image encoder, the
prompt encoder and the (tuned) mask decoder are the head's. What only a video needs comes from the video model's own
weights: how masks become memories, and how frames attend to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL.Image import Image
from torch import Tensor
from transformers import PretrainedConfig

from lens_adapter.bounds import require_bounded, without_sources
from lens_adapter.errors import CheckpointMismatchError
from lens_adapter.sam.families import CANNOT_BE_BUILT, FAMILIES, without_foreign

# What of a video model is the head's own.
OWN_PARTS = ("vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding", "no_memory_embedding")
MOST_NUMBERS = 50_000_000  # in the weights of a memory
_CONFIGS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")


class Carried(NamedTuple):
    """What a tracker says about N masks in one frame.

    Attributes:
        frame: its number, from 0.
        logits: float32 (N, 4g, 4g), over the mask decoder's square, as `Decoded.logits`.
        presence: float32 (N,), logits of the word on whether the thing is in the frame; below 0 the mask is empty.
    """

    frame: int
    logits: Tensor
    presence: Tensor


class MaskTracker:
    """A family's video model, whose parts for single pictures are exchanged for those of a head.

    Args:
        model: as `MaskDecoder.load_tracker` loads it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def open(self, decoder: Any, frames: Sequence[Image]) -> Any:
        """A session of the family about a video, with the head's parts as they are now.

        The frames' pixels stay on the CPU: 12 bytes for each of the square, of every frame (in float32).

        Args:
            decoder: the `MaskDecoder` of the head, with its image encoder.
            frames: T RGB pictures of one size.
        """
        self.model.vision_encoder = decoder.image_encoder
        for name in ("prompt_encoder", "mask_decoder", "shared_image_embedding"):
            self.model.get_submodule(name).load_state_dict(decoder.get_submodule(name).state_dict())
        with torch.no_grad():
            self.model.no_memory_embedding.copy_(decoder.get_parameter("no_memory_embedding"))
        self.model.to(device=decoder.device, dtype=decoder.dtype).eval()
        self.processor = video_processor(decoder.sam)
        pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2)
        return self.processor.init_video_session(
            video=pixels,
            inference_device=decoder.device,
            processing_device="cpu",
            video_storage_device="cpu",
            dtype=decoder.dtype,
        )

    @torch.no_grad()
    def carry(self, session: Any, start: int, masks: Tensor) -> Iterator[Carried]:
        """Carry masks of one frame to all others: first on to the last one, then back to the first one.

        Args:
            session: from `open`; what it was asked before is forgotten.
            start: the frame of the masks, from 0.
            masks: bool (N, H, W), at the frames' own resolution.
        """
        session.reset_tracking_data()
        numbers = list(range(len(masks)))
        self.processor.add_inputs_to_inference_session(
            session, frame_idx=start, obj_ids=[*numbers], input_masks=list(masks)
        )
        self.model(inference_session=session, frame_idx=start)
        onward, back = range(start + 1, session.num_frames), range(start - 1, -1, -1)
        for reverse, way in ((False, onward), (True, back)):
            for frame in way:
                found = self.model(inference_session=session, frame_idx=frame, reverse=reverse)
                words = [
                    session.get_output(number, frame, "object_score_logits", is_conditioning_frame=False).reshape(())
                    for number in numbers
                ]
                yield Carried(frame, found.pred_masks[:, 0].float(), torch.stack(words).float())


def video_class(family: str) -> Any:
    """transformers' class of a family's video model."""
    return getattr(transformers, FAMILIES[family].video[0])


def video_processor(sam: Mapping[str, Any]) -> Any:
    """The family's own processor of videos, for the square and the colors of `LensConfig.sam`."""
    from transformers import Sam2VideoVideoProcessor

    images, name = _image_processor(sam["family"]), FAMILIES[sam["family"]].video[1]
    size = {"height": sam["image_size"], "width": sam["image_size"]}
    mean, std = ([value / 255 for value in sam[key]] for key in ("pixel_mean", "pixel_std"))
    settings: dict[str, Any] = {"size": size, "image_mean": mean, "image_std": std}
    videos = Sam2VideoVideoProcessor(**settings)
    return getattr(transformers, name)(images(**settings), videos, target_size=sam["image_size"])


def _image_processor(family: str) -> Any:
    """The class for single pictures that the family's processor of videos asks for."""
    name = "Sam3ImageProcessor" if family == "sam3_tracker" else "Sam2ImageProcessor"
    return getattr(transformers, f"{name}Fast" if transformers.__version__.startswith("4.") else name)


def video_config(sam: Mapping[str, Any], described: Mapping[str, Any]) -> PretrainedConfig:
    """The config of a video model: pictures, prompts and masks as `LensConfig.sam` has them, its memory as described.

    Args:
        sam: the complete dict, of a family with a video model.
        described: what the `config.json` of the video model says.

    Raises:
        CheckpointMismatchError: it cannot be the config of such a model, or of one so large.
        LensConfigError: it has numbers that nothing real has.
    """
    described, _ = without_sources(described, "sam")
    require_bounded(described, "sam.config")
    memory = {key: value for key, value in without_foreign(described).items() if key not in (*_CONFIGS, "model_type")}
    parts = {name: {**sam["config"][name]} for name in _CONFIGS}
    for name in _CONFIGS[1:]:
        parts[name].pop("model_type", None)  # of the picture model's part
    # Off for a head, which learns without; a video model tracks as it was taught.
    stable = (described.get("mask_decoder_config") or {}).get("dynamic_multimask_via_stability")
    parts["mask_decoder_config"]["dynamic_multimask_via_stability"] = True if stable is None else stable
    model_class = video_class(sam["family"])
    try:
        config = model_class.config_class(**memory, **parts)
        with torch.device("meta"):  # nothing is made before it is known how large
            shell = model_class(config)
    except CANNOT_BE_BUILT as error:
        raise CheckpointMismatchError(f"Its config.json is none of a {model_class.__name__}: {error}") from error
    numbers = sum(tensor.numel() for name, tensor in shell.state_dict().items() if not name.startswith(OWN_PARTS))
    if numbers > MOST_NUMBERS:
        raise CheckpointMismatchError(
            f"By its config.json the memory of a {model_class.__name__} has {numbers:,} numbers; expected at most "
            f"{MOST_NUMBERS:,}, several times those of the largest published."
        )
    return config
