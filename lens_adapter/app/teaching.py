"""What a visitor does in the tab "Teach": open a picture, click a thing, name it, keep it; fit, try. Without gradio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shutil import make_archive, rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np
import torch
from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.app.findings import PageResult, find_in, open_picture
from lens_adapter.app.kept import KeptFolder
from lens_adapter.errors import InputError
from lens_adapter.fitting import FitReport
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.drawing import Canvas
from lens_adapter.pictures.overlays import mask_overlay
from lens_adapter.sam.clicks import clicked_mask

# What a page that is open to others has to bound.
MOST_CLICKS = 20  # on one thing
MOST_PICTURES = 40  # of one visitor
LONGEST_NAME = 200  # characters
SHOWN_SIDE = 1024  # pixels; pictures are shown no larger, and masks are as large as the pictures
THING, ADDING, REMOVING = 0, 2, 4  # colors: of the mask, and of clicks


@dataclass(frozen=True)
class Click:
    """Where somebody clicked, in fractions of the picture, and whether what is there is part of the thing."""

    x: float
    y: float
    adds: bool = True


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture that is open, and what was clicked in it.

    Attributes:
        picture: RGB.
        file: as it was uploaded; None: a scene that comes with the package.
        clicks: in order.
        mask: bool (H, W), what they mean.
    """

    picture: Image.Image
    file: Path | None
    clicks: tuple[Click, ...]
    mask: np.ndarray

    @classmethod
    def of(cls, picture: Image.Image | str | Path) -> Drawing:
        """Without a click yet.

        Raises:
            InputError: a file that cannot be used.
        """
        file = None if isinstance(picture, Image.Image) else Path(picture)
        opened = picture if isinstance(picture, Image.Image) else open_picture(picture)
        return cls(opened, file, (), np.zeros((opened.height, opened.width), bool))

    def cleared(self) -> Drawing:
        """Without a click."""
        return replace(self, clicks=(), mask=np.zeros_like(self.mask))

    def show(self) -> Image.Image:
        """The picture with the mask and the clicks, no larger than `SHOWN_SIDE`."""
        small = fitted(self.picture, SHOWN_SIDE)
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
        folder = Path(mkdtemp(prefix="lens-adapter-"))
        finalize(self, rmtree, folder, ignore_errors=True)
        self.adapter.save_pretrained(folder / "lens-readout")
        return Path(make_archive(str(folder / "lens-readout"), "zip", folder, "lens-readout"))

    def find(self, drawing: Drawing | None, text: str) -> PageResult:
        """Segment the open picture; prompts as in `findings.find`."""
        if drawing is None:
            raise InputError("Open a picture first.")
        return find_in(self.adapter, drawing.picture, text)

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
        self, adapter: LensAdapter, folder: str | Path, *, sam: str = "vit_b", publishes: bool = False, **fields: Any
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
            InputError: too many.
        """
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
        if not drawing.mask.any():
            raise InputError("Click a thing in the picture first: its mask is what is kept.")
        if not name:
            raise InputError("Name the thing: what you would ask for to get this mask, and no other.")
        if len(name) > LONGEST_NAME:
            raise InputError(
                f"A name may have at most {LONGEST_NAME} characters; this one has {len(name)}. Shorten it."
            )
        self.folder.keep(drawing.picture, drawing.mask, name, drawing.file)
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
        size = (drawing.picture.height, drawing.picture.width)
        points = torch.tensor([[click.x, click.y] for click in clicks]).view(-1, 2)
        foreground = torch.tensor([click.adds for click in clicks], dtype=torch.bool)
        decoder = self.sam.decoder
        logits = clicked_mask(decoder, self.sam.encode_images([drawing.picture])[0], points, foreground, size)
        mask = decoder.masks(logits[None], size, self.sam.config.mask_threshold)[0].numpy()
        return replace(drawing, clicks=clicks, mask=mask)

    def _readout(self) -> LensAdapter:
        return LensAdapter.from_model(self.base.model, self.base.processor, load_sam=False, **self._fields)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """A picture made smaller, if need be, so that its longer side has `side` pixels at most."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return small
