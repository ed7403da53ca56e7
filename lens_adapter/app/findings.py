"""What a visitor of the page asks, and what comes back: masks, layers, a table, files, answers. Knows no gradio."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from weakref import finalize
from zipfile import ZipFile

import torch
from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.errors import InputError
from lens_adapter.head.readout import Readout
from lens_adapter.output import LensOutput
from lens_adapter.pictures.colors import PALETTE
from lens_adapter.pictures.overlays import heatmap_overlay, labelled_overlay, mask_overlay
from lens_adapter.vlm.images import load_image
from lens_adapter.vlm.inputs import unread_words

MASKS, HEATMAP, KEYPOINTS = LAYERS = ("Masks", "Heatmap", "Keypoints")
ALL = -1  # every prompt, where one of them could be chosen

# What a page that is open to anyone has to bound.
MOST_PROMPTS = len(PALETTE)  # a color each
MOST_PIXELS = 25_000_000
MOST_TOKENS = 256  # of an answer


@dataclass(frozen=True)
class PageResult:
    """What the head found in one picture of a visitor.

    Attributes:
        picture: RGB.
        output: of `segment`.
        unread: words of the prompts that the frozen model does not know, in order.
    """

    picture: Image.Image
    output: LensOutput
    unread: list[str]

    def draw(self, layers: Collection[str], prompt: int = ALL) -> Image.Image:
        """The picture at its own size with the chosen `LAYERS`; runs no model.

        Args:
            layers: any of `LAYERS`.
            prompt: the index of the only one to show; `ALL`: those that were found, with the hottest of their heat.
        """
        out = self.output
        shown = out.found.nonzero()[:, 0].tolist() if prompt == ALL else [prompt]
        picture, points = self.picture, [out.keypoints[k] if KEYPOINTS in layers else torch.empty(0, 2) for k in shown]
        if not shown:
            return picture
        if HEATMAP in layers:
            picture = heatmap_overlay(picture, out.heatmaps[shown].amax(0))
        if MASKS not in layers:
            return mask_overlay(picture, out.masks[:0], points, colors=shown)
        prompts, scores, found = [out.prompts[k] for k in shown], out.scores[shown].tolist(), out.found[shown].tolist()
        return labelled_overlay(picture, out.masks[shown], points, prompts, scores, found, colors=shown)

    def write_masks(self, folder: Path) -> Path:
        """One mask: `mask.png`, black and white at the picture's size. Several: `masks.zip` of such, in order."""
        masks = [Image.fromarray(mask) for mask in self.output.masks.numpy()]
        if len(masks) == 1:
            masks[0].save(folder / "mask.png")
            return folder / "mask.png"
        with ZipFile(folder / "masks.zip", "w") as archive:
            for number, (prompt, mask) in enumerate(zip(self.output.prompts, masks, strict=True), 1):
                with archive.open(f"{number}-{_file_name(prompt)}.png", "w") as file:
                    mask.save(file, "PNG")
        return folder / "masks.zip"

    def write_rle(self, folder: Path) -> Path:
        """`LensOutput.to_records` as `masks.json`."""
        file = folder / "masks.json"
        file.write_text(json.dumps(self.output.to_records(), indent=2))
        return file


class Files:
    """The files of one result. They go when nobody holds this any more."""

    def __init__(self, result: PageResult):
        folder = Path(mkdtemp(prefix="lens-adapter-"))
        finalize(self, rmtree, folder, ignore_errors=True)
        self.masks = result.write_masks(folder)
        self.rle = result.write_rle(folder)


def find(adapter: LensAdapter, file: str | Path | None, text: str) -> PageResult:
    """Segment a picture.

    Args:
        adapter: attached.
        file: the picture.
        text: the prompts, one per line.

    Raises:
        InputError: no picture, or one that cannot be used; no prompt, too many, or one that is too long.
    """
    return find_in(adapter, open_picture(file), text)


def find_in(adapter: LensAdapter, picture: Image.Image, text: str) -> PageResult:
    """As `find`, in an RGB picture that is open already."""
    if isinstance(adapter.head, Readout) and not adapter.head.heads:
        raise InputError("There is no head yet: fit one in the tab Teach, and try it there.")
    prompts = read_prompts(text)
    out = adapter.segment(picture, prompts)
    return PageResult(picture, out, unread_words(adapter.base.processor, prompts))


def answer(adapter: LensAdapter, file: str | Path | None, question: str) -> str:
    """What the frozen model says about a picture, greedily; each question is asked anew.

    Raises:
        InputError: no picture, or one that cannot be used; no question, or one that is too long.
    """
    picture = open_picture(file)
    if not question.strip():
        raise InputError("Type a question about the picture.")
    return adapter.base.answers([picture], [question], max_new_tokens=MOST_TOKENS)[0]


def open_picture(file: str | Path | None) -> Image.Image:
    """A visitor's file as an RGB picture. Errors name the file, not where the server keeps it."""
    if file is None:
        raise InputError("Pick an example or upload a picture first.")
    try:
        picture = load_image(file)
    except InputError as error:
        raise InputError(str(error).replace(str(file), Path(file).name)) from error
    if picture.width * picture.height > MOST_PIXELS:
        raise InputError(
            f"A picture may have at most {MOST_PIXELS // 1_000_000} megapixels; this one is {picture.width} x "
            f"{picture.height}. Scale it down."
        )
    return picture


def read_prompts(text: str) -> list[str]:
    """The lines that say something, each once."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise InputError("Type what to find: one prompt per line.")
    if len(prompts) > MOST_PROMPTS:
        raise InputError(f"At most {MOST_PROMPTS} prompts at a time; got {len(prompts)}. Take some out.")
    return prompts


def _file_name(prompt: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:40] or "mask"
