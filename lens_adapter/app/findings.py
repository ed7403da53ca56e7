"""What a visitor of the page asks, and what comes back: masks, layers, a table, files, answers. Knows no gradio."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize
from zipfile import ZipFile

import torch
from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.errors import InputError
from lens_adapter.output import LensOutput
from lens_adapter.pictures.overlays import PALETTE, heatmap_overlay, mask_overlay, plot_output
from lens_adapter.vlm.inputs import load_image, unread_words

MASKS, HEATMAP, KEYPOINTS = LAYERS = ("Masks", "Heatmap", "Keypoints")
ALL = -1  # every prompt, where one of them could be chosen

# What a page that is open to anyone has to bound.
MOST_PROMPTS = len(PALETTE)  # a color each
MOST_PIXELS = 25_000_000
LONGEST_ANSWER = 256  # tokens


@dataclass(frozen=True)
class Finding:
    """What the head found in one picture.

    Attributes:
        picture: RGB.
        output: of `segment`.
        absent: per prompt, whether the head judges that nothing in the picture is meant.
        unread: words of the prompts that the frozen model does not know, in order.
    """

    picture: Image.Image
    output: LensOutput
    absent: list[bool]
    unread: list[str]

    def draw(self, layers: Collection[str], prompt: int = ALL) -> Image.Image:
        """The picture at its own size with the chosen `LAYERS`; runs no model.

        Args:
            prompt: the index of the only one to show; `ALL`: those that are not absent, with the hottest of their heat.
        """
        out = self.output
        shown = [k for k, absent in enumerate(self.absent) if not absent] if prompt == ALL else [prompt]
        picture, points = self.picture, [out.keypoints[k] if KEYPOINTS in layers else torch.empty(0, 2) for k in shown]
        if not shown:
            return picture
        if HEATMAP in layers:
            picture = heatmap_overlay(picture, out.heatmaps[shown].amax(0))
        if MASKS not in layers:
            return mask_overlay(picture, out.masks[:0], points, colors=shown)
        chosen = replace(
            out,
            prompts=[out.prompts[k] for k in shown],
            masks=out.masks[shown],
            scores=out.scores[shown],
            keypoints=points,
            keypoint_scores=[torch.ones(len(p)) for p in points],
            heatmaps=out.heatmaps[shown],
            logits=None,
            image=picture,
        )
        return plot_output(chosen, colors=shown)

    def records(self) -> list[dict[str, Any]]:
        """As `LensOutput.to_records`, and whether the prompt is `absent`."""
        records = zip(self.output.to_records(), self.absent, strict=True)
        return [{**record, "absent": absent} for record, absent in records]

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
        """`records` as `masks.json`."""
        file = folder / "masks.json"
        file.write_text(json.dumps(self.records(), indent=2))
        return file


class Files:
    """The files of one finding. They go when nobody holds this any more."""

    def __init__(self, finding: Finding):
        folder = Path(mkdtemp(prefix="lens-adapter-"))
        finalize(self, rmtree, folder, ignore_errors=True)
        self.masks = finding.write_masks(folder)
        self.rle = finding.write_rle(folder)


def find(adapter: LensAdapter, file: str | Path | None, text: str) -> Finding:
    """Segment a picture.

    Args:
        adapter: attached.
        file: the picture.
        text: the prompts, one per line.

    Raises:
        InputError: no picture, or one that cannot be used; no prompt, too many, or one that is too long.
    """
    picture, prompts = open_picture(file), read_prompts(text)
    out = adapter.segment(picture, prompts)
    scores, threshold = out.scores.tolist(), adapter.config.score_threshold
    absent = [score < threshold or not mask.any() for score, mask in zip(scores, out.masks, strict=True)]
    return Finding(picture, out, absent, unread_words(adapter.base.processor, prompts))


def answer(adapter: LensAdapter, file: str | Path | None, question: str) -> str:
    """What the frozen model says about a picture, greedily; each question is asked anew.

    Raises:
        InputError: no picture, or one that cannot be used; no question, or one that is too long.
    """
    picture = open_picture(file)
    if not question.strip():
        raise InputError("Type a question about the picture.")
    return adapter.base.answers([picture], [question], max_new_tokens=LONGEST_ANSWER)[0]


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
