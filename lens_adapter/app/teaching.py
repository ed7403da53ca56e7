"""What a visitor does in the tab "Teach": open a picture, click a thing, name it, keep it; fit, try. Without gradio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shutil import make_archive, rmtree
from typing import Any
from weakref import finalize

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

from lens_adapter.adapter import LensAdapter
from lens_adapter.app.bounds import LONGEST_NAME, MOST_CLICKS
from lens_adapter.app.findings import PageResult, Source, find, open_picture
from lens_adapter.app.kept import KeptFolder
from lens_adapter.app.visitors import new_folder
from lens_adapter.data.shapes import fill_runs
from lens_adapter.errors import InputError
from lens_adapter.fitting import FitReport
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.drawing import Canvas
from lens_adapter.pictures.overlays import mask_overlay
from lens_adapter.sam.clicks import clicked_mask
from lens_adapter.sam.published import DEFAULT_SAM

SHOWN_SIDE = 1024  # pixels; pictures are shown no larger, and masks are as large as the pictures
THING, ADDING, REMOVING = 0, 2, 4  # colors: of the mask, and of clicks


@dataclass(frozen=True)
class Click:
    """Where somebody clicked, in fractions of the picture, and whether what is there is part of the thing."""

    x: float
    y: float
    adds: bool = True


@dataclass(frozen=True)
class PackedMask:
    """bool (H, W) in some kilobytes."""

    size: tuple[int, int]
    runs: bytes

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        packed = coco.encode(np.asfortranarray(mask, np.uint8))
        return cls((mask.shape[0], mask.shape[1]), packed["counts"])

    def unpacked(self) -> np.ndarray:
        return fill_runs(self.runs, self.size)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture that is open, and what was clicked in it.

    Attributes:
        source: the picture: as it was uploaded, or a scene that comes with the package.
        small: RGB, no larger than `SHOWN_SIDE`.
        clicks: in order.
        packed: what they mean.
    """

    source: Source
    small: Image.Image
    clicks: tuple[Click, ...]
    packed: PackedMask

    @classmethod
    def of(cls, source: Source) -> Drawing:
        """Without a click yet.

        Raises:
            InputError: a file that cannot be used.
        """
        picture = open_picture(source)
        return cls(source, fitted(picture, SHOWN_SIDE), (), PackedMask.of(np.zeros(picture.size[::-1], bool)))

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W), at the picture's own size."""
        return self.packed.unpacked()

    def cleared(self) -> Drawing:
        """Without a click."""
        return replace(self, clicks=(), packed=PackedMask.of(np.zeros(self.packed.size, bool)))

    def drawn(self, clicks: tuple[Click, ...], mask: np.ndarray) -> Drawing:
        """With these clicks, which mean this mask."""
        return replace(self, clicks=clicks, packed=PackedMask.of(mask))

    def show(self) -> Image.Image:
        """The picture with the mask and the clicks, no larger than `SHOWN_SIDE`."""
        small = self.small
        if not self.clicks:
            return small
        canvas = Canvas(mask_overlay(small, torch.from_numpy(self.mask)[None], colors=[THING]))
        for click in self.clicks:
            color = color_of(ADDING if click.adds else REMOVING)
            canvas.ring(click.x * small.width, click.y * small.height, color)
        return canvas.drawn()


@dataclass(frozen=True, eq=False)
class Taught:
    """A head that a visitor fitted; its file goes when nobody holds this any more.

    Attributes:
        adapter: attached to the page's base.
        report: of the fit.
        drawn_scenes: it was fitted on scenes of the built-in world.
    """

    adapter: LensAdapter
    report: FitReport
    drawn_scenes: bool

    @cached_property
    def archive(self) -> Path:
        """The checkpoint as a zip file."""
        folder = new_folder()
        finalize(self, rmtree, folder, ignore_errors=True)
        self.adapter.save_pretrained(folder / "lens-readout")
        return Path(make_archive(str(folder / "lens-readout"), "zip", folder, "lens-readout"))

    def find(self, drawing: Drawing | None, text: str) -> PageResult:
        """Segment the open picture; prompts as in `findings.find`."""
        if drawing is None:
            raise InputError("Open a picture first.")
        return find(self.adapter, drawing.source, text)

    def push(self, repository: str, *, private: bool) -> str:
        """Publish with the host's own token -> the address.

        Raises:
            InputError: no name of a repository.
            HubError: the Hub refuses, or cannot be reached.
        """
        if not repository.strip():
            raise InputError('Type where the head goes: a repository of the Hub, "you/name".')
        return str(self.adapter.push_to_hub(repository.strip(), private=private).repo_url)


class Teacher:
    """What all visitors share: the frozen base, an untouched SAM that draws what is clicked, and the folder.

    Args:
        adapter: the page's, attached; a readout asks its base as it does.
        folder: where examples are kept.
        sam: the mask decoder, as `LensConfig` names it; loaded when it is first needed.
        publishes: heads may be pushed with the host's token.
        fields: of `LensConfig`, what else a new readout says.
    """

    def __init__(
        self,
        adapter: LensAdapter,
        folder: str | Path,
        *,
        sam: str = DEFAULT_SAM,
        publishes: bool = False,
        **fields: Any,
    ):
        self.base, self.folder, self.publishes = adapter.base, KeptFolder(folder), publishes
        self._fields = {"sam": sam, "prompt_template": adapter.config.prompt_template, **fields, "fusion": "readout"}

    @cached_property
    def sam(self) -> LensAdapter:
        """An adapter that is there for its mask decoder."""
        adapter = self._readout()
        adapter.decoder.load_weights()
        return adapter

    def click(self, drawing: Drawing, click: Click) -> Drawing:
        """The drawing with one click more.

        Raises:
            InputError: too many, or one beside the picture.
        """
        if not (0 <= click.x <= 1 and 0 <= click.y <= 1):
            raise InputError("Click inside the picture.")
        if len(drawing.clicks) >= MOST_CLICKS:
            raise InputError(f"At most {MOST_CLICKS} clicks on one thing. Undo some, or keep it.")
        return self._drawn(drawing, (*drawing.clicks, click))

    def undo(self, drawing: Drawing) -> Drawing:
        """The drawing without its last click."""
        return self._drawn(drawing, drawing.clicks[:-1])

    def keep(self, drawing: Drawing | None, name: str) -> Drawing:
        """Write the drawing into the folder under a name; returns the picture without clicks, for the next thing.

        Raises:
            InputError: nothing is drawn, no name, or one that is too long; the folder is full or cannot be written to.
        """
        name = " ".join(name.split())
        if drawing is None:
            raise InputError("Open a picture first.")
        mask = drawing.mask
        if not mask.any():
            raise InputError("Click a thing in the picture first: its mask is what is kept.")
        if not name:
            raise InputError("Name the thing: what you would ask for to get this mask, and no other.")
        if len(name) > LONGEST_NAME:
            raise InputError(
                f"A name may have at most {LONGEST_NAME} characters; this one has {len(name)}. Shorten it."
            )
        file = None if isinstance(drawing.source, Image.Image) else drawing.source
        self.folder.keep(open_picture(drawing.source), mask, name, file)
        return drawing.cleared()

    def fit(self, *, drawn_scenes: bool = False) -> Taught:
        """A head from what is in the folder, or from scenes of the built-in world.

        Raises:
            InputError: too few examples.
            FitError: it points no better than chance on pictures that it had not seen.
        """
        adapter = self._readout()
        report = adapter.fit(None if drawn_scenes else self.folder.examples())
        adapter.decoder, adapter.embedding_cache = self.sam.decoder, self.sam.embedding_cache
        return Taught(adapter, report, drawn_scenes)

    def _drawn(self, drawing: Drawing, clicks: tuple[Click, ...]) -> Drawing:
        size = drawing.packed.size
        points = torch.tensor([[click.x, click.y] for click in clicks]).view(-1, 2)
        foreground = torch.tensor([click.adds for click in clicks], dtype=torch.bool)
        decoder = self.sam.decoder
        logits = clicked_mask(
            decoder, self.sam.encode_images([open_picture(drawing.source)])[0], points, foreground, size
        )
        mask = decoder.masks(logits[None], size, self.sam.config.mask_threshold)[0].numpy()
        return drawing.drawn(clicks, mask)

    def _readout(self) -> LensAdapter:
        return LensAdapter.from_model(self.base.model, self.base.processor, load_sam=False, **self._fields)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """A picture made smaller, if need be, so that its longer side has `side` pixels at most."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return small
