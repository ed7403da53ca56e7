"""What a visitor of the page asks, and what comes back: masks, layers, a table, files, answers. Knows no gradio."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any
from weakref import finalize
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.app.bounds import LONGEST_PROMPT, MOST_PIXELS, MOST_PROMPTS, MOST_TOKENS
from lens_adapter.app.visitors import NOT_UPLOADED, new_folder
from lens_adapter.data.shapes import fill_runs
from lens_adapter.errors import InputError
from lens_adapter.head.readout import Readout
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
        records: `LensOutput.to_records`, one per prompt.
        heatmaps: float (N, h, w) in [0, 1].
        unread: words of the prompts that the frozen model does not know, in order.
    """

    source: Source
    size: tuple[int, int]
    records: list[dict[str, Any]]
    heatmaps: torch.Tensor
    unread: list[str]

    def masks(self, prompts: Sequence[int]) -> torch.Tensor:
        """bool (N, H, W): those of these prompts."""
        masks = [fill_runs(self.records[k]["segmentation"]["counts"], self.size) for k in prompts]
        return torch.from_numpy(np.stack(masks)) if masks else torch.empty(0, *self.size, dtype=torch.bool)

    def draw(self, layers: Collection[str], prompt: int = ALL) -> Image.Image:
        """The picture at its own size with the chosen `LAYERS`; runs no model.

        Args:
            layers: any of `LAYERS`.
            prompt: the index of the only one to show; `ALL`: those that were found, with the hottest of their heat.
        """
        records, picture = self.records, open_picture(self.source)
        shown = [k for k, record in enumerate(records) if record["found"]] if prompt == ALL else [prompt]
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


def find(adapter: LensAdapter, source: Source | None, text: str) -> PageResult:
    """Segment a picture.

    Args:
        adapter: attached.
        source: the picture.
        text: the prompts, one per line.

    Raises:
        InputError: no picture, or one that cannot be used; no prompt, too many, or one that is too long.
    """
    picture = open_picture(source)
    if isinstance(adapter.head, Readout) and not adapter.head.heads:
        raise InputError("There is no head yet: fit one in the tab Teach, and try it there.")
    prompts = read_prompts(text)
    out = adapter.segment(picture, prompts)
    unread = unknown_words(adapter.base.processor, prompts)
    return PageResult(source or picture, out.image_size, out.to_records(), out.heatmaps.clone(), unread)


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
