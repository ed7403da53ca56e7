"""`LensOutput`: what was found for the prompts of one image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lens_adapter.errors import InputError, LensError, brief
from lens_adapter.signals import require_shape
from lens_adapter.writing import written_aside

if TYPE_CHECKING:
    from PIL.Image import Image

    from lens_adapter.pictures.contact_sheet import Panel

Chosen = int | str | Sequence[int | str]  # prompts, by index or by text
SHOWN_IN_A_NOTEBOOK = 20  # outputs of a list
LONGEST_NAME = 40  # letters of a prompt in a file's name


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
    """Masks of the N prompts of one image; also a sequence of N outputs of one prompt each, as in `len(out)`, `out[0]`.

    Attributes:
        prompts: N texts.
        image_size: (H, W) in pixels, as a viewer shows the image (EXIF orientation applied).
        masks: bool (N, H, W).
        scores: float (N,) in [0, 1], the decoder's own estimate of each mask's quality, times its own word on whether
            there is an object, where its family has one (SAM 2 and later); of a readout, the probability that the
            prompt names anything.
        keypoints: N times float (K_i, 2), x then y, in pixels of the original image.
        keypoint_scores: N times float (K_i,), in [0, 1].
        heatmaps: float (N, h, w) in [0, 1], spread over the whole image.
        logits: float (N, H, W) if asked for, else None.
        image: the picture itself, for `plot`; None where the models were given a smaller copy of it.
        found: bool (N,), whether each prompt names something in the image: its score is not below the score threshold.
            Where it names nothing, `segment` returns an empty mask and no keypoints; the score, the heatmap and the
            logits are those that the models gave. Default: all found.
        instances: N times `Instances` if asked for, else None.
        unknown_words: of each prompt the words that the model has no token for. With one, "not found" says nothing
            about the picture: the prompt was not understood. Default: none.

    Examples:
        >>> out = adapter.segment(image, ["the dog on the left", "a cup"])
        >>> out.masks.shape, out.scores.shape, out.heatmaps.shape[0]
        (torch.Size([2, 480, 640]), torch.Size([2]), 2)
        >>> for prompt, score, points in zip(out.prompts, out.scores.tolist(), out.keypoints):
        ...     print(f"{prompt}: score {score:.2f}, {len(points)} keypoints")  # doctest: +ELLIPSIS
        the dog on the left: score ..., ... keypoints
        a cup: score ..., ... keypoints
        >>> len(out), out[1].prompts, out["a cup"].masks.shape, [one.prompts for one in out[:1]]
        (2, ['a cup'], torch.Size([1, 480, 640]), [['the dog on the left']])
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
    unknown_words: list[list[str]] = None  # type: ignore[assignment]  # never None once made, either

    def __post_init__(self) -> None:
        n = len(self.prompts)
        if self.found is None:
            self.found = torch.ones(n, dtype=torch.bool)
        if self.unknown_words is None:
            self.unknown_words = [[] for _ in self.prompts]
        require_shape("LensOutput.found", self.found, n)
        require_shape("LensOutput.masks", self.masks, n, *self.image_size)
        for name, flags in (("masks", self.masks), ("found", self.found)):
            if flags.dtype != torch.bool:
                raise LensError(f"LensOutput.{name}: expected dtype bool, got {flags.dtype}.")
        require_shape("LensOutput.scores", self.scores, n)
        require_shape("LensOutput.heatmaps", self.heatmaps, n, None, None)
        for name in ("keypoints", "keypoint_scores", "instances", "unknown_words"):
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
        rows = zip(self.prompts, self.scores.tolist(), self.found, self.masks, self.unknown_words, strict=True)
        named = [
            f"{prompt!r} {score:.2f}"
            + (f" not understood: {', '.join(words)}" if words else "")
            + ("" if found or words else " absent")
            + (" empty" if found and not mask.any() else "")
            for prompt, score, found, mask, words in rows
        ]
        return f"LensOutput({width} x {height} pixels, {len(named)} prompts: {', '.join(named)})"

    def __len__(self) -> int:
        """N, the number of prompts."""
        return len(self.prompts)

    def __bool__(self) -> bool:
        """True, whatever was found: an output without prompts is one, too."""
        return True

    def __iter__(self) -> Iterator[LensOutput]:
        """An output for each prompt, in order."""
        return (self._of([index]) for index in range(len(self)))

    def __getitem__(self, which: int | str | slice) -> LensOutput:
        """The output of one prompt, by its index or its text; of a slice, that of several. Tensors are views.

        Raises:
            IndexError: there is no prompt at that index.
            InputError: there is no such prompt.
        """
        return self._of([*range(len(self))[which]] if isinstance(which, slice) else [self._index(which)])

    def _of(self, indices: list[int]) -> LensOutput:
        def pick(entries: Sequence[Any] | None) -> Any:
            return None if entries is None else [entries[index] for index in indices]

        start, stop = (indices[0], indices[-1] + 1) if indices else (0, 0)
        rows: Any = slice(start, stop) if indices == [*range(start, stop)] else indices  # a view, where there is one
        return LensOutput(
            prompts=pick(self.prompts),
            image_size=self.image_size,
            masks=self.masks[rows],
            scores=self.scores[rows],
            keypoints=pick(self.keypoints),
            keypoint_scores=pick(self.keypoint_scores),
            heatmaps=self.heatmaps[rows],
            logits=None if self.logits is None else self.logits[rows],
            image=self.image,
            found=self.found[rows],
            instances=pick(self.instances),
            unknown_words=pick(self.unknown_words),
        )

    def _index(self, which: int | str) -> int:
        """Of a prompt, from 0.

        Raises:
            IndexError, InputError: there is none.
        """
        if isinstance(which, str):
            if which not in self.prompts:
                raise InputError(f"There is no prompt {brief(which)} in this output; its prompts are {self.prompts}.")
            return self.prompts.index(which)
        if isinstance(which, bool) or not isinstance(which, Integral):
            raise InputError(f"A prompt is chosen by its index or its text; got {brief(which)}.")
        try:
            return range(len(self))[which]
        except IndexError:
            raise IndexError(f"This output has {len(self)} prompts; got index {which}.") from None

    def plot(self, *, prompts: Chosen | None = None, heatmap: bool = False) -> Image:
        """The image with every mask, its outline, keypoints and label drawn on it, at its own resolution.

        Where masks overlap, a pixel has the color of the smallest; outlines that run along each other show in turn, in
        dashes. Instances, if they were asked for, have an outline each, in their prompt's color.

        Args:
            prompts: what to draw, each by its index or its text; the colors are those it has among all. None: all.
            heatmap: under that the heat of these prompts, the hottest of each place, and of the masks the outlines.

        Raises:
            LensError: there is no image.
            IndexError, InputError: there is no such prompt.

        Examples:
            >>> out = adapter.segment(image, ["the dog on the left", "a cup"])
            >>> out.plot().size, out.plot(prompts="a cup", heatmap=True).size
            ((640, 480), (640, 480))
        """
        from lens_adapter.pictures.overlays import heatmap_overlay, labelled_overlay

        wanted = range(len(self)) if prompts is None else prompts
        shown = [self._index(which) for which in ([wanted] if isinstance(wanted, int | str) else wanted)]
        out, picture = self._of(shown), self._picture()
        style: dict[str, Any] = {"colors": shown, "parts": out._parts()}
        if heatmap and shown:
            picture = heatmap_overlay(picture, out.heatmaps.amax(0))
            style["fill"] = 0.0
        return labelled_overlay(picture, *out._results(), understood=out._understood(), **style)

    def save(self, path: str | Path, *, prompts: Chosen | None = None, heatmap: bool = False) -> None:
        """Write `plot()` to `path`, whole or not at all; the format follows the suffix. Its folder is made.

        Args:
            path: of the file.
            prompts: as for `plot`.
            heatmap: as for `plot`.

        Raises:
            InputError: no format has that suffix; nothing can be written there.
            LensError: there is no image.
        """
        from lens_adapter.pictures.saving import picture_format, save_picture

        picture_format(path)  # better refused before it is drawn
        picture = self.plot(prompts=prompts, heatmap=heatmap)
        make_folder(Path(path).parent)
        save_picture(picture, path)

    def save_masks(self, folder: str | Path) -> list[Path]:
        """Write each mask as a PNG of the image's size, 255 inside and 0 outside, into `folder`, which is made.

        A file is called by the number of its prompt, from 1, and its words: `02-a-cup.png`. What was not found has a
        file too, all 0. Files of these names are replaced.

        Returns:
            The N files, in order.

        Raises:
            InputError: nothing can be written there.

        Examples:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as folder:
            ...     [file.name for file in adapter.segment(image, ["a dog", "a cup"]).save_masks(folder)]
            ['1-a-dog.png', '2-a-cup.png']
        """
        from PIL import Image

        make_folder(Path(folder))
        files = []
        for number, (prompt, mask) in enumerate(zip(self.prompts, self.masks.cpu().numpy(), strict=True), 1):
            words = re.sub(r"\W+", "-", prompt)[:LONGEST_NAME].strip("-_")
            files.append(Path(folder, f"{number:0{len(str(len(self)))}}{'-' * bool(words)}{words}.png"))
            with written_aside(files[-1]) as aside, aside.open("wb") as opened:
                Image.fromarray(mask.astype(np.uint8) * 255).save(opened, "PNG")
        return files

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
            understood=self._understood(),
        )

    def to_records(self) -> list[dict[str, Any]]:
        """What was found as plain data, ready for JSON: a dict per prompt.

        Its keys are `prompt`, `found`, `score`, `area` (pixels of the mask), `keypoints` (x then y, in pixels), their
        `keypoint_scores`, the mask as `segmentation` (see `to_coco_rle`), and `unknown_words`. If instances were asked
        for, also `instances`: a list of dicts with `score`, `area`, `box` (left, top, right, bottom; pixel edges, the
        last two exclusive) and `segmentation`.
        """
        columns = (
            self.prompts,
            self.found.tolist(),
            self.scores.tolist(),
            _areas(self.masks),
            [points.tolist() for points in self.keypoints],
            [scores.tolist() for scores in self.keypoint_scores],
            self.to_coco_rle(),
            self.unknown_words,
        )
        keys = ("prompt", "found", "score", "area", "keypoints", "keypoint_scores", "segmentation", "unknown_words")
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

        picture = None if self.image is None else self._picture()
        more: dict[str, Any] = {"parts": self._parts(), "unknown_words": self.unknown_words}
        return results_html(picture, *self._results(), **more)

    def _picture(self) -> Image:
        """The image in RGB, to be drawn on."""
        if self.image is None:
            raise LensError("LensOutput.image: expected the picture to draw on, got None; set it to a PIL image first.")
        return self.image.convert("RGB")

    def _results(self) -> tuple[Tensor, list[Tensor], list[str], list[float], list[bool]]:
        """What `labelled_overlay` and `results_html` draw, in their order."""
        return self.masks, self.keypoints, self.prompts, self.scores.tolist(), self.found.tolist()

    def _understood(self) -> list[bool]:
        """Whether the model knows all words of each prompt."""
        return [not words for words in self.unknown_words]

    def _parts(self) -> list[Tensor] | None:
        """What is outlined in the place of the masks: the instances, if they were asked for."""
        return None if self.instances is None else [one.masks for one in self.instances]


class LensOutputs(list[LensOutput]):
    """What `segment` returns for several images: a list, which a notebook shows."""

    def _repr_html_(self) -> str:
        """The first of them one below the other, and how many more there are."""
        more = len(self) - SHOWN_IN_A_NOTEBOOK
        pages = "".join(out._repr_html_() for out in self[:SHOWN_IN_A_NOTEBOOK])
        return f"<div>{pages}{f'<p>and {more} more</p>' if more > 0 else ''}</div>"


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error.strerror}. Choose another place.") from error


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
