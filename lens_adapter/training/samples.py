"""What a trainer learns from: one prompt about one picture, and its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from lens_adapter.data import samples as loaded
from lens_adapter.data.folder import read_folder


class Sample(TypedDict, total=False):
    """One prompt about one picture.

    `image`: RGB (the same object in several samples of a batch is encoded once) · `prompt` · `mask`: bool (H, W), all
    False where the prompt names nothing · `ignore` (optional): bool (H, W), pixels that do not count.
    """

    image: Image.Image
    prompt: str
    mask: np.ndarray
    ignore: np.ndarray | None


class Samples(Dataset):
    """What a reader of data has, as `Sample`s; each is read when asked for.

    Args:
        reader: a sequence, of anything.
        convert: one of its entries -> `Sample`.
    """

    def __init__(self, reader: Sequence[Any], convert: Callable[[Any], Sample]):
        self.reader, self.convert = reader, convert

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        return self.convert(self.reader[index])


def folder_samples(folder: str | Path, on_error: loaded.OnError = "raise") -> Samples:
    """The samples of a folder laid out as `lens_adapter.data.folder` says; broken lines stop it, or are skipped."""
    records = loaded.one_per_prompt(read_folder(folder, on_error), on_error)
    return Samples(loaded.Samples(records, on_error), _of_one_prompt)


def _of_one_prompt(read: Any) -> Sample:
    return Sample(image=read.image, prompt=read.prompts[0], mask=read.masks[0], ignore=read.ignore)
