"""`LensOutput`: what was found for the prompts of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lens_adapter.errors import LensError
from lens_adapter.signals import require_shape

if TYPE_CHECKING:
    from PIL.Image import Image

    from lens_adapter.pictures.contact_sheet import Panel


def is_found(score: float, score_threshold: float) -> bool:
    """Whether a prompt with this score names something in the image: the one place where this is decided."""
    return score >= score_threshold


@dataclass(frozen=True)
class Instances:
    """The things that one prompt names, apart: K of them, the largest first; none where its mask is empty.

    Attributes:
        masks: bool (K, H, W), at the image's own resolution. No pixel is in two of them, and together they are the
            prompt's mask.
        scores: float (K,) in [0, 1]: the decoder's estimate of each mask where it drew them one by one, else the
            prompt's score for all.
    """

    masks: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(repr=False)
class LensOutput:
    """Masks of the N prompts of one image.

    Attributes:
        prompts: N texts.
        image_size: (H, W) in pixels, as a viewer shows the image (EXIF orientation applied).
        masks: bool (N, H, W).
        scores: float (N,) in [0, 1], the decoder's own estimate of each mask's quality; of a readout, the probability
            that the prompt names anything.
        keypoints: N times float (K_i, 2), x then y, in pixels of the original image.
        keypoint_scores: N times float (K_i,), in [0, 1].
        heatmaps: float (N, h, w) in [0, 1], spread over the whole image.
        logits: float (N, H, W) if asked for, else None.
        image: the picture itself, for `plot`.
        found: bool (N,), whether each prompt names something in the image: its score is not below the score threshold.
            Where it names nothing, `segment` returns an empty mask and no keypoints; the score, the heatmap and the
            logits are those that the models gave. Default: all found.
        instances: N times `Instances` if asked for, else None.

    Examples:
        >>> out = adapter.segment(image, ["the dog on the left", "a cup"])
        >>> out.masks.shape, out.scores.shape, out.heatmaps.shape[0]
        (torch.Size([2, 480, 640]), torch.Size([2]), 2)
        >>> for prompt, score, points in zip(out.prompts, out.scores.tolist(), out.keypoints):
        ...     print(f"{prompt}: score {score:.2f}, {len(points)} keypoints")  # doctest: +ELLIPSIS
        the dog on the left: score ..., ... keypoints
        a cup: score ..., ... keypoints
    """

    prompts: list[str]
    image_size: tuple[int, int]
    masks: Tensor
    scores: Tensor
    keypoints: list[Tensor]
    keypoint_scores: list[Tensor]
    heatmaps: Tensor
    logits: Tensor | None = None
    image: Image | None = field(default=None, repr=False)
    found: Tensor = None  # type: ignore[assignment]  # never None once made: see __post_init__
    instances: list[Instances] | None = None

    def __post_init__(self) -> None:
        n = len(self.prompts)
        if self.found is None:
            self.found = torch.ones(n, dtype=torch.bool)
        require_shape("LensOutput.found", self.found, n)
        require_shape("LensOutput.masks", self.masks, n, *self.image_size)
        for name, flags in (("masks", self.masks), ("found", self.found)):
            if flags.dtype != torch.bool:
                raise LensError(f"LensOutput.{name}: expected dtype bool, got {flags.dtype}.")
        require_shape("LensOutput.scores", self.scores, n)
        require_shape("LensOutput.heatmaps", self.heatmaps, n, None, None)
        for name in ("keypoints", "keypoint_scores", "instances"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != n:
                raise LensError(f"LensOutput.{name}: expected {n} entries, got {len(entries)}.")
        for points, scores in zip(self.keypoints, self.keypoint_scores, strict=True):
            require_shape("LensOutput.keypoints", points, None, 2)
            require_shape("LensOutput.keypoint_scores", scores, len(points))
        for one in self.instances or ():
            require_shape("LensOutput.instances", one.masks, None, *self.image_size)
            require_shape("LensOutput.instances", one.scores, len(one))
            if one.masks.dtype != torch.bool:
                raise LensError(f"LensOutput.instances: expected masks of dtype bool, got {one.masks.dtype}.")
        if self.logits is not None:
            require_shape("LensOutput.logits", self.logits, n, *self.image_size)
        if self.image is not None and self.image.size[::-1] != tuple(self.image_size):
            raise LensError(f"LensOutput.image: expected (H, W) {self.image_size}, got {self.image.size[::-1]}.")

    def __repr__(self) -> str:
        """One line, without the tensors."""
        height, width = self.image_size
        rows = zip(self.prompts, self.scores.tolist(), self.found, self.masks, strict=True)
        named = [
            f"{prompt!r} {score:.2f}" + (" absent" if not found else "" if mask.any() else " empty")
            for prompt, score, found, mask in rows
        ]
        return f"LensOutput({width} x {height} pixels, {len(named)} prompts: {', '.join(named)})"

    def plot(self) -> Image:
        """The image with every mask, its outline, keypoints and label drawn on it, at its own resolution.

        Instances, if they were asked for, have an outline each, in their prompt's color.

        Examples:
            >>> adapter.segment(image, "a cup").plot().size
            (640, 480)
        """
        from lens_adapter.pictures.overlays import labelled_overlay

        parts = None if self.instances is None else [one.masks for one in self.instances]
        return labelled_overlay(self._picture(), *self._results(), parts=parts)

    def save(self, path: str | Path) -> None:
        """Write `plot()` to `path`, whole or not at all; the format follows the suffix.

        Raises:
            InputError: the suffix is of no picture, or the file cannot be written.
        """
        from lens_adapter.pictures.saving import picture_format, save_picture

        picture_format(path)  # better refused before it is drawn
        save_picture(self.plot(), path)

    def to_panel(
        self, *, ious: Sequence[float | None] | None = None, question: str | None = None, answer: str | None = None
    ) -> Panel:
        """What was found as one panel of a contact sheet (`lens_adapter.pictures.contact_sheet`).

        Args:
            ious: per prompt the overlap with the true mask in [0, 1]; None where it is not known.
            question: what the frozen model was asked about the image.
            answer: what it said.

        Raises:
            LensError: there is no image, or not one IoU per prompt.
        """
        from lens_adapter.pictures.contact_sheet import Panel

        return Panel(
            image=self._picture(),
            masks=self.masks,
            keypoints=self.keypoints,
            heatmaps=self.heatmaps,
            prompts=self.prompts,
            scores=self.scores.tolist(),
            found=self.found.tolist(),
            ious=ious,
            question=question,
            answer=answer,
        )

    def to_records(self) -> list[dict[str, Any]]:
        """What was found as plain data, ready for JSON: a dict per prompt.

        Its keys are `prompt`, `found`, `score`, `area` (pixels of the mask), `keypoints` (x then y, in pixels), their
        `keypoint_scores`, and the mask as `segmentation` (see `to_coco_rle`). If instances were asked for, also
        `instances`: a list of dicts with `score`, `area`, `box` (left, top, right, bottom; pixel edges, the last two
        exclusive) and `segmentation`.
        """
        columns = (
            self.prompts,
            self.found.tolist(),
            self.scores.tolist(),
            _areas(self.masks),
            [points.tolist() for points in self.keypoints],
            [scores.tolist() for scores in self.keypoint_scores],
            self.to_coco_rle(),
        )
        keys = ("prompt", "found", "score", "area", "keypoints", "keypoint_scores", "segmentation")
        records = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
        if self.instances is not None:
            for record, instances in zip(records, self.instances, strict=True):
                record["instances"] = _instance_records(instances)
        return records

    def to_coco_rle(self) -> list[dict[str, Any]]:
        """The masks as COCO run-length encodings: `{"size": [H, W], "counts": str}` each.

        Examples:
            >>> (rle,) = adapter.segment(image, "a cup").to_coco_rle()
            >>> rle["size"]
            [480, 640]
        """
        return _coco_rle(self.masks)

    def to_polygons(self) -> list[list[np.ndarray]]:
        """Outlines of the masks: per prompt a list of float (P, 2), x then y in pixels, without the first point again.

        A mask of several parts has several outlines, and each hole has one of its own. Outer ones run clockwise as seen
        in the image (a positive area by the shoelace formula), holes counterclockwise. Filled by the even-odd rule they
        give back every pixel: (x, y) is inside where its center (x + 0.5, y + 0.5) is. They run half-way between
        centers, which cuts the corners of pixels. An empty mask has none. COCO's polygons (`polygon.ravel().tolist()`)
        know no holes: where there may be some, `to_coco_rle` is exact.

        Examples:
            >>> out = adapter.segment(image, ["the dog on the left", "a cup"])
            >>> [len(outlines) > 0 for outlines in out.to_polygons()] == out.masks.any((1, 2)).tolist()
            True
        """
        from lens_adapter.pictures.outlines import exact_outlines

        return [[line[:-1] for line in exact_outlines(mask)] for mask in self.masks.cpu().numpy()]

    def to_supervision(self, *, instances: bool = False) -> Any:
        """`supervision.Detections` of the prompts that were found: one row each, in order.

        Masks, boxes around them, scores as `confidence`, prompts as `class_name`; `class_id` is the index of the prompt
        among all. Boxes are pixel edges (right and lower ones exclusive, so that area = width x height); a mask without
        pixels has 0 0 0 0.

        Args:
            instances: a row for each instance of each prompt instead, with its own mask, box and score.

        Raises:
            LensError: supervision is not installed, it is an extra; or instances that `segment` was not asked for.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise LensError("to_supervision needs supervision: pip install 'lens_adapter[supervision]'.") from error
        from lens_adapter.pictures.outlines import bounding_box

        if instances and self.instances is None:
            raise LensError("This LensOutput has no instances; ask for them: adapter.segment(..., instances=True).")
        if instances and self.instances is not None:
            index = np.repeat(np.arange(len(self.prompts)), [len(one) for one in self.instances])
            masks = torch.cat([self.masks[:0], *(one.masks for one in self.instances)])
            scores = torch.cat([self.scores[:0], *(one.scores for one in self.instances)])
        else:
            index = np.flatnonzero(self.found.cpu().numpy())
            masks, scores = self.masks[self.found], self.scores[self.found]
        shapes = masks.cpu().numpy()
        return Detections(
            xyxy=np.array([bounding_box(mask) for mask in shapes], np.float32).reshape(-1, 4),
            mask=shapes,
            confidence=scores.detach().float().cpu().numpy(),
            class_id=index,
            data={"class_name": np.array(self.prompts, dtype=str)[index]},
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture with the masks, and a table."""
        from lens_adapter.pictures.notebook import results_html

        return results_html(None if self.image is None else self._picture(), *self._results())

    def _picture(self) -> Image:
        """The image in RGB, to be drawn on."""
        if self.image is None:
            raise LensError("LensOutput.image: expected the picture to draw on, got None; set it to a PIL image first.")
        return self.image.convert("RGB")

    def _results(self) -> tuple[Tensor, list[Tensor], list[str], list[float], list[bool]]:
        """What `labelled_overlay` and `results_html` draw, in their order."""
        return self.masks, self.keypoints, self.prompts, self.scores.tolist(), self.found.tolist()


def _instance_records(instances: Instances) -> list[dict[str, Any]]:
    from lens_adapter.pictures.outlines import bounding_box

    columns = (
        instances.scores.tolist(),
        _areas(instances.masks),
        [[int(edge) for edge in bounding_box(mask)] for mask in instances.masks.cpu().numpy()],
        _coco_rle(instances.masks),
    )
    return [dict(zip(("score", "area", "box", "segmentation"), row, strict=True)) for row in zip(*columns, strict=True)]


def _areas(masks: Tensor) -> list[int]:
    """Pixels of each; torch's sum would take eight bytes for each of theirs."""
    return [int(np.count_nonzero(mask)) for mask in masks.cpu().numpy()]


def _coco_rle(masks: Tensor) -> list[dict[str, Any]]:
    """bool (N, H, W) -> `{"size": [H, W], "counts": str}` each."""
    from pycocotools import mask as coco

    shapes = masks.cpu().numpy()
    encoded = [coco.frPyObjects({"size": mask.shape, "counts": _run_lengths(mask)}, *mask.shape) for mask in shapes]
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) -> lengths of runs down its columns, alternately outside and inside, the first one outside.

    The columns themselves are never laid one after the other (a copy of the mask, across the memory): what begins and
    ends runs is few pixels.
    """
    height, width = mask.shape
    filled = np.flatnonzero(mask.any(axis=1))
    if not len(filled):
        return np.array([mask.size])
    top = max(filled[0] - 1, 0)
    band = mask[top : filled[-1] + 2]
    y, x = np.divmod(np.flatnonzero(band[1:] != band[:-1]), width)
    before = np.append(False, mask[-1, :-1])  # a column goes on from the bottom of the one to its left
    starts = np.concatenate([x * height + top + 1 + y, np.flatnonzero(mask[0] != before) * height])
    return np.diff(np.sort(starts), prepend=0, append=mask.size)
