"""One prompt about one picture, and its mask: what a head learns from, and what a model is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lens_adapter.data.records import Record, Sample
from lens_adapter.data.samples import OnError, Samples, one_per_prompt


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt about one picture.

    Attributes:
        image: RGB; the same object in several examples of a batch is encoded once.
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


class Examples:
    """Records as examples, one per prompt, each read when asked for: for a torch DataLoader, or to go through once.

    Args:
        records: of any reader in `lens_adapter.data`.
        on_error: "raise" over a broken record, or "skip" it with a warning, as `Samples` does.

    Examples:
        >>> left = [[True, False, False], [True, False, False]]
        >>> record = Record(Image.new("RGB", (3, 2)), ["the left column", "a cup"], [left, None])
        >>> [(example.prompt, int(example.mask.sum())) for example in Examples([record])]
        [('the left column', 2), ('a cup', 0)]
    """

    def __init__(self, records: Sequence[Record], on_error: OnError = "raise"):
        self._samples = Samples(one_per_prompt(records, on_error), on_error)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        return _example(self._samples[index])

    def __iter__(self) -> Iterator[Example]:
        return map(_example, self._samples)

    def numbered(self, indices: Iterable[int]) -> Iterator[tuple[int, Example]]:
        """(index, example) of these; broken ones are left out, where `[index]` puts the next in their place."""
        return ((k, _example(sample)) for k in indices if (sample := self._samples.get(k)) is not None)


def _example(sample: Sample) -> Example:
    record = sample.record
    return Example(
        image=sample.image,
        prompt=sample.prompts[0],
        mask=sample.masks[0],
        ignore=sample.ignore,
        subset=record.subset,
        id=record.id,
        image_id=record.image_id,
    )
