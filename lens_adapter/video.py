"""Frames of a video: read as pictures, what was found in them, and masks carried from one to the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lens_adapter.config import Thresholds
from lens_adapter.errors import InputError, LensError, brief
from lens_adapter.finite import is_finite
from lens_adapter.output import Chosen, LensOutput, make_folder
from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.vlm.images import ImageInput, load_image

if TYPE_CHECKING:
    from lens_adapter.sam.tracking import MaskTracker

Frames = Sequence[ImageInput] | np.ndarray | Tensor  # what `read_frames` takes


def read_frames(frames: Frames) -> list[Image.Image]:
    """What a user calls a video -> T RGB pictures of one size.

    Args:
        frames: a list of what `load_image` takes, a numpy array (T, H, W, 3) or a torch tensor (T, 3, H, W).

    Raises:
        InputError: none, frames of several sizes, or what is no frame.
    """
    if isinstance(frames, np.ndarray | Tensor) and frames.ndim == 4:
        frames = list(frames)
    if not isinstance(frames, list | tuple):
        got = f"shape {tuple(frames.shape)}" if isinstance(frames, np.ndarray | Tensor) else brief(frames)
        raise InputError(
            "The frames of a video must be a list of pictures, a numpy array (T, H, W, 3) or a torch tensor "
            f"(T, 3, H, W); got {got}. Let a decoder of videos read a file first, torchcodec or imageio say."
        )
    if not frames:
        raise InputError("A video must have at least one frame; got an empty list.")
    if any(frame is frames[0] and getattr(frame, "n_frames", 1) > 1 for frame in frames[1:]):
        raise InputError(
            f"All {len(frames)} frames are one and the same open animation, at its current frame. Copy each while it "
            "is current: [frame.copy() for frame in PIL.ImageSequence.Iterator(animation)]."
        )
    pictures = [load_image(frame) for frame in frames]
    for number, picture in enumerate(pictures):
        if picture.size != pictures[0].size:
            raise InputError(
                f"The frames of a video must be of one size; frame 0 has (W, H) {pictures[0].size}, frame {number} "
                f"{picture.size}. Resize them, or use segment for pictures that are no video."
            )
    return pictures


@dataclass(repr=False)
class LensVideoOutput:
    """Masks of N prompts in the T frames of a video; also a sequence of T outputs, as in `len(video)`, `video[0]`.

    Attributes:
        frames: T times the output of one frame, with its picture, heat and keypoints. Where masks were tracked, the
            heat is still what the base says of that frame alone.
        best: N times the frame whose score is the best of those where the prompt was found and has a mask; None: it
            was found in none. The masks of the others were carried from there, if they were tracked.
        tracked: whether they were.

    Raises:
        LensError: no frame, or frames of several sizes or with other prompts.

    Examples:
        >>> video = adapter.segment_video([image] * 3, ["the dog on the left", "a cup"])
        >>> len(video), video.masks.shape, video.found.shape, video[2].prompts
        (3, torch.Size([3, 2, 480, 640]), torch.Size([3, 2]), ['the dog on the left', 'a cup'])
    """

    frames: list[LensOutput]
    best: list[int | None] = None  # type: ignore[assignment]  # never None once made: see __post_init__
    tracked: bool = False

    def __post_init__(self) -> None:
        kinds = {(tuple(out.prompts), tuple(out.image_size)) for out in self.frames}
        if len(kinds) != 1:
            raise LensError(
                f"LensVideoOutput.frames: expected outputs of the same prompts and size, at least one; got {len(kinds)}"
                " kinds of them."
            )
        if self.best is None:
            usable = self.found & torch.stack([out.masks.flatten(1).any(1) for out in self.frames])  # (T, N)
            frames = self.scores.masked_fill(~usable, -1).argmax(0).tolist()
            self.best = [frame if any_ else None for frame, any_ in zip(frames, usable.any(0).tolist(), strict=True)]
        if len(self.best) != len(self.prompts):
            raise LensError(f"LensVideoOutput.best: expected {len(self.prompts)} entries, got {len(self.best)}.")

    @property
    def prompts(self) -> list[str]:
        """N texts."""
        return self.frames[0].prompts

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.frames[0].image_size

    @property
    def masks(self) -> Tensor:
        """bool (T, N, H, W); a copy."""
        return torch.stack([out.masks for out in self.frames])

    @property
    def scores(self) -> Tensor:
        """float (T, N) in [0, 1]: of a frame as in `LensOutput`; of a tracked one, how probably the thing is in it."""
        return torch.stack([out.scores for out in self.frames])

    @property
    def found(self) -> Tensor:
        """bool (T, N): of a frame as in `LensOutput`; of a tracked one, whether the thing is more likely in it."""
        return torch.stack([out.found for out in self.frames])

    def __repr__(self) -> str:
        """One line, without the tensors."""
        height, width = self.image_size
        counts = zip(self.prompts, self.found.sum(0).tolist(), self.best, strict=True)
        named = ", ".join(f"{prompt!r} in {count} (best: {best})" for prompt, count, best in counts)
        how = ", tracked" * self.tracked
        return f"LensVideoOutput({len(self)} frames of {width} x {height} pixels{how}: {named})"

    def __len__(self) -> int:
        """T, the number of frames."""
        return len(self.frames)

    def __iter__(self) -> Iterator[LensOutput]:
        """The output of each frame, in order."""
        return iter(self.frames)

    def __getitem__(self, frame: int) -> LensOutput:
        """The output of one frame, from 0.

        Raises:
            IndexError: there is no such frame.
        """
        return self.frames[frame]

    def save(
        self, path: str | Path, *, prompts: Chosen | None = None, heatmap: bool = False, fps: float = 10.0
    ) -> None:
        """Write the frames as `LensOutput.plot` draws them to an animation, whole or not at all. Its folder is made.

        Args:
            path: of the file: .gif, .webp, or .png.
            prompts: what to draw, as for `LensOutput.plot`.
            heatmap: as for `LensOutput.plot`.
            fps: frames per second, at most 100.

        Raises:
            InputError: another suffix, an impossible `fps`, or nothing can be written there.
            LensError: there are no pictures.
        """
        from lens_adapter.pictures.saving import require_animation, save_animation

        require_animation(path, fps)  # better refused before it is drawn
        pictures = [out.plot(prompts=prompts, heatmap=heatmap) for out in self.frames]
        make_folder(Path(path).parent)
        save_animation(pictures, path, fps)

    def to_coco_rle(self) -> list[list[dict[str, Any]]]:
        """The masks as COCO run-length encodings, `{"size": [H, W], "counts": str}`: T times N."""
        return [out.to_coco_rle() for out in self.frames]


class LoadedTracker(NamedTuple):
    """A video model, and what it was asked for by: True, a folder or a repository."""

    source: str | bool | PathLike[str]
    model: MaskTracker


def load_tracker(
    source: str | bool | PathLike[str], decoder: MaskDecoder, loaded: LoadedTracker | None = None
) -> LoadedTracker:
    """The video model by a name; `loaded`, if it is that one.

    Args:
        source: True: in the weights that the head's config names; else a folder or repository.
        decoder: the head's, of the same family.
        loaded: what was returned before.

    Raises:
        InputError: `source` is nothing of the kind.
        LensConfigError: the family has no video model.
        CheckpointMismatchError: the weights hold no memory, or do not fit.
    """
    if not isinstance(source, bool | str | PathLike):
        raise InputError(f"track must be True, False, or a folder or repository; got {brief(source)}.")
    if loaded is not None and loaded.source == source:
        return loaded
    return LoadedTracker(source, decoder.load_tracker(None if source is True else str(source)))


def track_masks(
    video: LensVideoOutput, tracker: MaskTracker, decoder: MaskDecoder, thresholds: Thresholds
) -> LensVideoOutput:
    """The masks of every prompt's best frame, carried to all others.

    A prompt that was found in no frame stays so. Each prompt is tracked by itself: masks may overlap.

    Args:
        video: as it was segmented frame by frame; it stays as it is.
        tracker: of the decoder's family.
        decoder: the head's, with its image encoder.
        thresholds: of the masks.

    Raises:
        LensError: the video model made numbers that are infinite or none.
    """
    masks, scores, found, size = video.masks, video.scores, video.found, video.image_size
    session = tracker.open(decoder, [out.image for out in video if out.image is not None])
    for start in sorted({frame for frame in video.best if frame is not None}):
        rows = [row for row, frame in enumerate(video.best) if frame == start]
        for frame, logits, presence in tracker.carry(session, start, masks[start, rows]):
            if not (is_finite(logits) & is_finite(presence)):
                raise LensError(
                    f"The video model, in {str(decoder.dtype).removeprefix('torch.')}, made numbers that are infinite "
                    f"or none (NaN) of frame {frame}; expected masks. Load the head in bfloat16 or float32: "
                    "LensAdapter.from_pretrained(..., dtype=torch.bfloat16), or segment frame by frame (track=False)."
                )
            present = presence.cpu() > 0
            masks[frame, rows] = decoder.masks(logits, size, thresholds.mask) & present[:, None, None]
            scores[frame, rows], found[frame, rows] = presence.sigmoid().cpu(), present
    return LensVideoOutput(
        [_exchanged(out, *of_frame) for out, *of_frame in zip(video, masks, scores, found, strict=True)],
        video.best,
        tracked=True,
    )


def _exchanged(out: LensOutput, masks: Tensor, scores: Tensor, found: Tensor) -> LensOutput:
    """With other masks (N, H, W); keypoints stay where the thing is."""
    keypoints, keypoint_scores = (
        [entry if there else entry[:0] for entry, there in zip(entries, found.tolist(), strict=True)]
        for entries in (out.keypoints, out.keypoint_scores)
    )
    return replace(out, masks=masks, scores=scores, found=found, keypoints=keypoints, keypoint_scores=keypoint_scores)
