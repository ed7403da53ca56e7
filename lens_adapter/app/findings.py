"""What a visitor of the page asks, and what comes back: masks, layers, a table, files, answers. Knows no gradio."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from shutil import rmtree
from typing import Any
from weakref import finalize
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter.adapter import LensAdapter
from lens_adapter.app.bounds import LONGEST_PROMPT, MOST_PIXELS, MOST_PROMPTS, MOST_TOKENS
from lens_adapter.app.visitors import NOT_UPLOADED, new_folder
from lens_adapter.chat import find_phrases, ground
from lens_adapter.data.shapes import fill_runs
from lens_adapter.errors import InputError
from lens_adapter.head.readout import Readout
from lens_adapter.output import LensOutput, is_found
from lens_adapter.pictures.overlays import heatmap_overlay, labelled_overlay, mask_overlay
from lens_adapter.vlm.images import load_image, open_image, require_pixels
from lens_adapter.vlm.words import unknown_words

MASKS, HEATMAP, KEYPOINTS = LAYERS = ("Masks", "Heatmap", "Keypoints")
ALL = -1  # every prompt, where one of them could be chosen

Source = Image.Image | Path  # a picture that ships, or a visitor's file


@dataclass(frozen=True)
class PageResult:
    """What the head found in one picture of a visitor, in some kilobytes: only `draw` opens it and lays masks out.

    Attributes:
        source: the picture.
        size: (H, W) in pixels.
        drafts: `LensOutput.to_records` with a score threshold of 0, one per prompt: no mask is left out.
        heatmaps: float (N, h, w) in [0, 1].
        unknown: N times the words of the prompt that the frozen model does not know, in order.
        threshold: a prompt whose score is below it names nothing.
    """

    source: Source
    size: tuple[int, int]
    drafts: list[dict[str, Any]]
    heatmaps: torch.Tensor
    unknown: list[list[str]]
    threshold: float

    def judged(self, threshold: float) -> PageResult:
        """The same by another score threshold; runs no model."""
        return replace(self, threshold=threshold)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """`LensOutput.to_records` with the score threshold of this result."""
        nothing = coco.frPyObjects({"size": self.size, "counts": [self.size[0] * self.size[1]]}, *self.size)
        empty = {"size": list(self.size), "counts": nothing["counts"].decode("ascii")}
        absent = {"found": False, "area": 0, "keypoints": [], "keypoint_scores": [], "segmentation": empty}
        return [draft if is_found(draft["score"], self.threshold) else {**draft, **absent} for draft in self.drafts]

    def masks(self, prompts: Sequence[int]) -> torch.Tensor:
        """bool (N, H, W): those of these prompts."""
        masks = np.empty((len(prompts), *self.size), bool)
        for mask, k in zip(masks, prompts, strict=True):  # one by one: only the result is large
            mask[:] = fill_runs(self.records[k]["segmentation"]["counts"], self.size)
        return torch.from_numpy(masks)

    def shown(self, prompt: int = ALL) -> list[int]:
        """Prompts that are drawn: this one, or with `ALL` those that were found."""
        return [k for k, record in enumerate(self.records) if record["found"]] if prompt == ALL else [prompt]

    def draw(self, layers: Collection[str], prompt: int = ALL) -> Image.Image:
        """The picture at its own size with the chosen `LAYERS`; runs no model.

        Args:
            layers: any of `LAYERS`.
            prompt: the index of the only one to show; `ALL`: those that were found, with the hottest of their heat.
        """
        records, picture, shown = self.records, open_picture(self.source), self.shown(prompt)
        points = [torch.tensor(records[k]["keypoints"] if KEYPOINTS in layers else []).view(-1, 2) for k in shown]
        if not shown:
            return picture
        if HEATMAP in layers:
            picture = heatmap_overlay(picture, self.heatmaps[shown].amax(0))
        if MASKS not in layers:
            return mask_overlay(picture, self.masks([]), points, colors=shown)
        prompts, scores, found = ([records[k][key] for k in shown] for key in ("prompt", "score", "found"))
        return labelled_overlay(picture, self.masks(shown), points, prompts, scores, found, colors=shown)

    def write_masks(self, folder: Path) -> Path:
        """One mask: `mask.png`, black and white at the picture's size. Several: `masks.zip` of such, in order."""
        if len(self.records) == 1:
            self._mask(0).save(folder / "mask.png")
            return folder / "mask.png"
        with ZipFile(folder / "masks.zip", "w") as archive:
            for k, record in enumerate(self.records):
                with archive.open(f"{k + 1}-{_file_name(record['prompt'])}.png", "w") as file:
                    self._mask(k).save(file, "PNG")
        return folder / "masks.zip"

    def write_rle(self, folder: Path) -> Path:
        """`LensOutput.to_records` as `masks.json`."""
        file = folder / "masks.json"
        file.write_text(json.dumps(self.records, indent=2))
        return file

    def _mask(self, prompt: int) -> Image.Image:
        return Image.fromarray(self.masks([prompt])[0].numpy())


class Files:
    """The files of one result. They go when nobody holds this any more."""

    def __init__(self, result: PageResult):
        folder = new_folder()
        finalize(self, rmtree, folder, ignore_errors=True)
        self.masks = result.write_masks(folder)
        self.rle = result.write_rle(folder)


@dataclass(frozen=True)
class Turn:
    """A question about a picture, and what the frozen model answered.

    Attributes:
        question, answer: as they are; nothing in them is markup.
        names: places in the answer that were pointed at, `answer[start:end]`, and the row of each in the results.
        note: about what was not pointed at.
    """

    question: str
    answer: str
    names: tuple[tuple[tuple[int, int], int], ...] = ()
    note: str = ""


def find(adapter: LensAdapter, source: Source | None, text: str, threshold: float | None = None) -> PageResult:
    """Segment a picture.

    Args:
        adapter: attached.
        source: the picture.
        text: the prompts, one per line.
        threshold: of the scores; None: the head's own.

    Raises:
        InputError: no picture, or one that cannot be used; no prompt, too many, or one that is too long; an impossible
            threshold.
    """
    picture = open_picture(source)
    _require_head(adapter)
    prompts, score = read_prompts(text), adapter.config.thresholds(None, threshold).score
    return _result(adapter, source or picture, adapter.segment(picture, prompts, score_threshold=0), score)


def point_at(
    adapter: LensAdapter, source: Source | None, turn: Turn, threshold: float | None = None
) -> tuple[Turn, PageResult | None]:
    """Segment what an answer names.

    Args:
        adapter: attached.
        source: the picture.
        turn: the answer.
        threshold: as for `find`.

    Returns:
        The turn, with the places of the names, and what was found; None: it names nothing.
    """
    picture = open_picture(source)
    _require_head(adapter)
    score = adapter.config.thresholds(None, threshold).score
    names = [name for name, _ in find_phrases(turn.answer)]
    names = [name for k, name in enumerate(names) if name.casefold() not in map(str.casefold, names[:k])]  # each once
    if not names:
        return replace(turn, note="Nothing in it names a thing."), None
    segment = partial(adapter.segment, score_threshold=0)
    grounded = ground(adapter.base, segment, picture, turn.answer, names[:MOST_PROMPTS])
    places = tuple((phrase.span, phrase.row) for phrase in grounded.phrases if phrase.span is not None)
    left_out = len(names) - MOST_PROMPTS
    note = f"{left_out} more names were not pointed at." if left_out > 0 else ""
    return replace(turn, names=places, note=note), _result(adapter, source or picture, grounded.output, score)


def _require_head(adapter: LensAdapter) -> None:
    if isinstance(adapter.head, Readout) and not adapter.head.heads:
        raise InputError("There is no head yet: fit one in the tab Teach, and try it there.")


def _result(adapter: LensAdapter, source: Source, out: LensOutput, threshold: float) -> PageResult:
    unknown = [unknown_words(adapter.base.processor, [prompt]) for prompt in out.prompts]
    return PageResult(source, out.image_size, out.to_records(), out.heatmaps.clone(), unknown, threshold)


def answer(adapter: LensAdapter, source: Source | None, question: str) -> str:
    """What the frozen model says about a picture, greedily; each question is asked anew.

    Raises:
        InputError: no picture, or one that cannot be used; no question, or one that is too long.
    """
    picture = open_picture(source)
    if not isinstance(question, str) or not question.strip():
        raise InputError("Type a question about the picture.")
    _require_brief(question)
    return adapter.base.answers([picture], [question], max_new_tokens=MOST_TOKENS)[0]


def open_picture(source: Source | None) -> Image.Image:
    """A visitor's file as an RGB picture; its size is checked before it is decoded.

    Raises:
        InputError: there is none, or it cannot be used. The message names the file, not where the server keeps it.
    """
    if source is None:
        raise InputError("Pick an example or upload a picture first.")
    if isinstance(source, Image.Image):
        return source
    if not source.is_file():
        raise InputError(NOT_UPLOADED)
    try:
        with open_image(source) as opened:
            require_pixels(opened, MOST_PIXELS)
            return load_image(opened)
    except InputError as error:
        raise InputError(str(error).replace(str(source), source.name)) from error


def read_prompts(text: str) -> list[str]:
    """The lines that say something, each once.

    Raises:
        InputError: there are none or too many, or one is too long.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("Type what to find: one prompt per line.")
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(prompts) > MOST_PROMPTS:
        raise InputError(f"At most {MOST_PROMPTS} prompts at a time; got {len(prompts)}. Take some out.")
    for prompt in prompts:
        _require_brief(prompt)
    return prompts


def _require_brief(text: str) -> None:
    if len(text) > LONGEST_PROMPT:
        raise InputError(
            f"A prompt or a question may have {LONGEST_PROMPT} letters; {text[:40]!r}... has {len(text)}, and is too "
            "long. Shorten it."
        )


def _file_name(prompt: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:40] or "mask"
