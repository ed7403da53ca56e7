"""What was taught by clicking, as an ordinary data folder (`lens_adapter.data.folder`): written at once, read anew."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from shutil import copyfile
from threading import Lock

import numpy as np
import torch
from PIL import Image

from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError
from lens_adapter.pictures.overlays import mask_overlay

MOST_EXAMPLES = 500
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})  # of files copied as they are
THUMBNAIL = 200  # pixels


@dataclass(frozen=True)
class Kept:
    """One line of prompts.jsonl.

    Attributes:
        line: the line itself.
        record: what it says.
    """

    line: str
    record: Record

    @property
    def prompt(self) -> str:
        return "; ".join(self.record.prompts)


class KeptFolder:
    """The folder. Visitors of one page share it, and their writing takes turns.

    Args:
        path: made when the first example is kept. What others wrote there is read, too, and stays.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._turn = Lock()
        self._thumbnails: dict[str, Image.Image] = {}

    def all(self) -> list[Kept]:
        """What is there, in order; lines that cannot be used are left out.

        Raises:
            InputError: prompts.jsonl is not UTF-8.
        """
        if not self._listing.is_file():
            return []
        lines = self._lines()
        records = read_folder(self.path, on_error="skip")
        return [Kept(lines[record.index], record) for record in records if record.index is not None]

    def examples(self) -> Examples:
        """The same to fit on; those whose files are damaged are left out."""
        return Examples([kept.record for kept in self.all()], on_error="skip")

    def keep(self, picture: Image.Image, mask: np.ndarray, prompt: str, file: Path | None = None) -> None:
        """Write one example.

        Args:
            picture: RGB, as shown.
            mask: bool (H, W) of the picture.
            prompt: what it names.
            file: the picture as it was uploaded, which is copied as it is; None: it is written as PNG.

        Raises:
            InputError: there are too many, or the folder cannot be written to.
        """
        with self._turn:
            lines = self._lines() if self._listing.is_file() else []
            if len(lines) >= MOST_EXAMPLES:
                raise InputError(f"{self.path} holds {MOST_EXAMPLES} examples, which is all it may. Remove some first.")
            copied = file is not None and file.suffix.lower() in IMAGE_SUFFIXES
            image = blake2b(picture.tobytes() + b"%d" % picture.width, digest_size=8).hexdigest()
            name = f"{image}-{token_hex(4)}"
            image += file.suffix.lower() if file is not None and copied else ".png"
            try:
                for part in ("images", "masks"):
                    (self.path / part).mkdir(parents=True, exist_ok=True)
                if not (self.path / "images" / image).exists():
                    copyfile(file, self.path / "images" / image) if file is not None and copied else picture.save(
                        self.path / "images" / image
                    )
                Image.fromarray(mask).save(self.path / "masks" / f"{name}.png")
                entry = {"id": name, "image": image, "mask": f"{name}.png", "prompt": prompt}
                self._write([*lines, json.dumps(entry, ensure_ascii=False)])
            except OSError as error:
                raise InputError(f"The example was not kept: {error.strerror or error} ({self.path}).") from error

    def remove(self, kept: Kept) -> None:
        """Take one example out, with its mask and, if no other is about it, its picture; foreign files stay.

        Raises:
            InputError: it is not there any more, or the folder cannot be written to.
        """
        with self._turn:
            lines = self._lines() if self._listing.is_file() else []
            if kept.line not in lines:
                raise InputError("This example is gone already: somebody else removed it.")
            lines.remove(kept.line)
            entry = json.loads(kept.line)
            try:
                self._write(lines)
                name, image = str(entry.get("id")), str(entry["image"])
                if entry.get("mask") == f"{name}.png" and name.rpartition("-")[0] == Path(image).stem:  # written here
                    (self.path / "masks" / f"{name}.png").unlink(missing_ok=True)
                    if not any(json.dumps(image) in line for line in lines):
                        (self.path / "images" / image).unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"The example was not removed: {error.strerror or error} ({self.path}).") from error
        self._thumbnails.pop(kept.line, None)

    def thumbnail(self, kept: Kept) -> Image.Image:
        """Its picture with its masks, small.

        Raises:
            BrokenRecordError: a file is missing or damaged.
        """
        if kept.line not in self._thumbnails:
            picture, masks = kept.record.load_image(), kept.record.masks()
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            self._thumbnails[kept.line] = mask_overlay(picture, torch.from_numpy(masks), unit=0.7)
        return self._thumbnails[kept.line]

    @property
    def _listing(self) -> Path:
        return self.path / "prompts.jsonl"

    def _lines(self) -> list[str]:
        """Lines by their number; the last one is not empty."""
        return self._listing.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")

    def _write(self, lines: list[str]) -> None:
        """Whole or not at all: whoever reads meanwhile, or ends us, finds the old lines or the new ones."""
        new = self._listing.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(new, self._listing)
