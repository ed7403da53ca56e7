"""A record: an image, prompts about it and what each of them names, read only when asked for. In memory: examples.

A data set is any sequence of records. Readers of its files are in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lens_adapter.data.masks import Region, ShownSize, decode
from lens_adapter.errors import BrokenRecordError, InputError, brief
from lens_adapter.vlm.images import PictureFile, load_draft, load_image, open_image


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt about one picture, and its mask: what a head learns from, and what it is measured on.

    Attributes:
        image: RGB, upright; the same object in several examples of a batch is encoded once.
        prompt: a text.
        mask: bool (H, W), the pixels it names; all False for none.
        ignore: bool (H, W), pixels that count neither way; or None.
        subset: what it is evaluated under, as `Record.subset`.
        id: names the prompt; "" if it has no name.
        image_id: names the image in all examples about it; "" if it has no name.
    """

    image: Image.Image
    prompt: str
    mask: np.ndarray
    ignore: np.ndarray | None = None
    subset: str = ""
    id: str = ""
    image_id: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """An image and N prompts about it (N = 0: nothing in it has a name).

    Attributes:
        image: what `load_image` takes: a path, a file's bytes, a PIL image, ...; or a callable that returns one.
        prompts: N texts.
        regions: what each prompt names, as `lens_adapter.data.masks` says; None: the image does not show it.
        ignored: what counts neither way, as a region; None: every pixel counts.
        id: names the record in its data set.
        subset: what it is evaluated under, e.g. "short", "long", "no_target".
        file: what describes the record, for messages.
        index: its position there, from 0, for messages.

    Raises:
        InputError: a prompt is empty or no text, or there is not one region per prompt. Its methods raise
            BrokenRecordError where a file is missing or damaged, or a mask does not fit the image.

    Examples:
        >>> record = Record(Image.new("RGB", (3, 2)), ["all of it", "a cup"], [np.ones((2, 3)), None])
        >>> [(example.prompt, int(example.mask.sum())) for example in record.load()]
        [('all of it', 6), ('a cup', 0)]
    """

    image: Any
    prompts: Sequence[str]
    regions: Sequence[Region]
    ignored: Region | None = None
    id: str = ""
    subset: str = ""
    file: str = ""
    index: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or any(not isinstance(p, str) or not p.strip() for p in self.prompts):
            raise InputError(f"Prompts must be a list of texts that say what to find, got {brief(self.prompts)}.")
        if len(self.regions) != len(self.prompts):
            raise InputError(f"Expected one mask per prompt, got {len(self.regions)} for {len(self.prompts)} prompts.")

    @property
    def image_id(self) -> str:
        """Names the image: records about one have one, as far as that can be told without reading it."""
        if isinstance(self.image, str | Path) and len(str(self.image)) < 4096:  # a data URI names nothing
            return str(self.image)
        return f"{self.file}#{self.index}" if self.file else f"object {id(self.image)}"

    def load(self) -> list[Example]:
        """An example per prompt, all of them about one picture object."""
        with self._opened() as opened:
            image, shown = load_image(opened), ShownSize.of(opened)
            masks, ignore = self._masks(shown), self._ignore(shown)
        return [
            Example(image, prompt, mask, ignore, self.subset, name, self.image_id)
            for prompt, mask, name in zip(self.prompts, masks, self._names(), strict=True)
        ]

    def split(self) -> list[Record]:
        """A record per prompt; nothing is read."""
        return [
            replace(self, prompts=[prompt], regions=[region], id=name)
            for prompt, region, name in zip(self.prompts, self.regions, self._names(), strict=True)
        ]

    def load_image(self) -> Image.Image:
        """The image: RGB, upright."""
        return self.load_draft(None)[0]

    def load_draft(self, side: int | None) -> tuple[Image.Image, tuple[int, int]]:
        """The image, of a JPEG file smaller, and its (H, W) at full size: see `lens_adapter.vlm.images.load_draft`."""
        with self._given() as given:
            return load_draft(given, side)

    def masks(self) -> np.ndarray:
        """bool (N, H, W)."""
        with self._opened() as opened:
            return self._masks(ShownSize.of(opened))

    def ignore(self) -> np.ndarray | None:
        """bool (H, W), pixels that count neither way; None if all count."""
        with self._opened() as opened:
            return self._ignore(ShownSize.of(opened))

    def _names(self) -> list[str]:
        """Of its prompts: "ID#0", "ID#1", ...; the record's own where there is but one."""
        count = len(self.prompts)
        return [self.id] if count == 1 else [f"{self.id}#{k}" for k in range(count)]

    def _masks(self, shown: ShownSize) -> np.ndarray:
        drawn = {id(region): region for region in self.regions}  # sentences about one object share its region
        drawn = {key: decode(region, shown) for key, region in drawn.items()}
        return np.array([drawn[id(region)] for region in self.regions], bool).reshape(-1, *shown.size)

    def _ignore(self, shown: ShownSize) -> np.ndarray | None:
        return None if self.ignored is None else decode(self.ignored, shown)

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        """The image, which need not be decoded yet. Errors inside say which record it was."""
        with self._given() as given:
            if isinstance(given, PictureFile):
                with open_image(given) as opened:
                    yield opened
            else:
                yield given if isinstance(given, Image.Image) else load_image(given)

    @contextmanager
    def _given(self) -> Iterator[Any]:
        """What `load_image` takes. Errors inside say which record it was."""
        try:
            yield self.image() if callable(self.image) else self.image
        except Exception as error:  # what others wrote breaks in whatever way comes first
            said = str(error) if isinstance(error, InputError) else f"It is malformed: {brief(error, 300)}."
            raise BrokenRecordError(f"{self.id[:100]}: {said}" if self.id else said, self.file, self.index) from error
