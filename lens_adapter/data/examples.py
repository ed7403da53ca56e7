"""The prompts of a data set, one by one: what a trainer, `evaluate` and `probe` go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lens_adapter.data.breakage import Breakage, OnError
from lens_adapter.data.records import Example, Record
from lens_adapter.errors import InputError

__all__ = ["Example", "Examples"]


class Examples:
    """Records as examples, one per prompt, each read when asked for: for a torch DataLoader, or to go through once.

    What has to be read to know the prompts is read at once: label maps, but no picture.

    A broken example is an error, or with `on_error="skip"` is skipped with a warning. At `[index]` the next example
    then stands in for it, so that a batch stays full; going through them leaves it out.

    Args:
        records: of any reader in `lens_adapter.data`.
        on_error: "raise" or "skip".

    Examples:
        >>> from PIL import Image
        >>> left = [[True, False, False], [True, False, False]]
        >>> record = Record(Image.new("RGB", (3, 2)), ["the left column", "a cup"], [left, None])
        >>> [(example.prompt, int(example.mask.sum())) for example in Examples([record])]
        [('the left column', 2), ('a cup', 0)]
    """

    def __init__(self, records: Sequence[Record], on_error: OnError = "raise"):
        self._breakage = Breakage(on_error)
        self._skipped: set[int] = set()
        self._singles: list[Record] = []  # of one prompt each, so that one mask is drawn and no other
        for index in range(len(records)):
            try:
                self._singles += records[index].split()
            except InputError as error:
                self._breakage.meet(error)

    @property
    def broken(self) -> list[InputError]:
        """What was wrong with the records and examples skipped so far, in the order they were met."""
        return list(self._breakage.errors)

    def __len__(self) -> int:
        return len(self._singles)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} examples; got the index {index}.")
        in_turn = ((index + step) % len(self) for step in range(len(self)))
        for _, example in self.numbered(in_turn):
            return example
        raise InputError(f"None of the {len(self)} examples can be used: all are broken.")

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self.numbered(range(len(self))))

    def numbered(self, indices: Iterable[int]) -> Iterator[tuple[int, Example]]:
        """(index, example) of these; broken ones are left out."""
        for index in indices:
            if index in self._skipped:
                continue
            try:
                (example,) = self._singles[index].load()
            except InputError as error:
                self._breakage.meet(error)
                self._skipped.add(index)
            else:
                yield index, example
