"""From tasks to rows: the next pictures are opened while the model works on these."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.annotation.rows import Row, error_row, rows_of
from lens_adapter.annotation.tasks import Opened, Task, is_whole_text, opened
from lens_adapter.errors import (
    CheckpointMismatchError,
    InputError,
    LensConfigError,
    LensError,
    NotAttachedError,
    UnsupportedModelError,
    brief,
)
from lens_adapter.output import LensOutput

ErrorPolicy = Literal["record", "stop"]
Segmenter = Callable[[list[Image.Image], list[list[str]]], Sequence[LensOutput]]
BATCH_SIZE = 8  # prompts
WORKERS = 4  # threads that open pictures
_OF_THE_MODEL = (CheckpointMismatchError, LensConfigError, NotAttachedError, UnsupportedModelError)
_SAYS_NOTHING = "A prompt must be a text that says what to find."


@dataclass(frozen=True, eq=False)
class _Question:
    """What is asked about one picture: at least one prompt that says something.

    Attributes:
        image: its name.
        picture: RGB.
        size: its (H, W) at full size, at which masks are drawn.
        prompts: texts.
    """

    image: str
    picture: Image.Image
    size: tuple[int, int]
    prompts: list[str]


@dataclass(frozen=True)
class Annotator:
    """Makes rows of tasks.

    Attributes:
        segmenter: an attached adapter, or a function: pictures (RGB), and the prompts of each -> an output for each,
            with a mask for every prompt, whatever its score is.
        mask_threshold: as for `LensAdapter.segment`.
        score_threshold: what `found` is judged by.
        batch_size: prompts that run together, of several pictures too.
        on_error: "record" makes a row of what cannot be annotated; "stop" raises.
        workers: threads that open pictures.
        draft_side: as for `load_draft`. With it, the segmenter must be an adapter.
    """

    segmenter: LensAdapter | Segmenter
    mask_threshold: float | None
    score_threshold: float
    batch_size: int = BATCH_SIZE
    on_error: ErrorPolicy = "record"
    workers: int = WORKERS
    draft_side: int | None = None

    def rows(self, tasks: Iterable[Task], seen: Callable[[int], Any] = lambda _: None) -> Iterator[Row]:
        """The rows of tasks, in their order: one for each prompt, or one with an error where there is no prompt.

        Pictures of two batches are in memory at a time.

        Args:
            seen: is told how many pictures are done, whenever some are.

        Raises:
            InputError: a picture or a prompt cannot be used, and `on_error` is "stop".
        """
        waiting: deque[list[tuple[Task, Future[Opened | str]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="open")
        try:
            for batch in self._batches(tasks):
                waiting.append([(task, pool.submit(opened, task, self.draft_side)) for task in batch])
                if len(waiting) > 1:
                    yield from self._answered(waiting.popleft(), seen)
            while waiting:
                yield from self._answered(waiting.popleft(), seen)
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        """Tasks together as long as their prompts are not more than `batch_size`; one with more is alone."""
        batch: list[Task] = []
        prompts = 0
        for task in tasks:
            count = max(1, len(task.prompts))
            if batch and prompts + count > self.batch_size:
                yield batch
                batch, prompts = [], 0
            batch.append(task)
            prompts += count
        if batch:
            yield batch

    def _answered(
        self, batch: Sequence[tuple[Task, Future[Opened | str]]], seen: Callable[[int], Any]
    ) -> Iterator[Row]:
        """The rows of one batch."""
        pictures = [(task, future.result()) for task, future in batch]
        made = self._asked(
            [
                _Question(task.image, *picture, [prompt for prompt in task.prompts if _says_something(prompt)])
                for task, picture in pictures
                if not isinstance(picture, str)
            ]
        )
        for task, picture in pictures:
            for prompt in task.prompts or [None]:
                if isinstance(picture, str):
                    row = error_row(task.image, prompt, picture)
                elif not _says_something(prompt):
                    row = error_row(task.image, prompt, _SAYS_NOTHING, picture[1])
                else:
                    row = next(made)
                if row["error"] is not None and self.on_error == "stop":
                    raise InputError(f"{brief(task.image, 300)}, prompt {brief(prompt)}: {row['error']}")
                yield row
        seen(len(batch))

    def _asked(self, questions: Iterable[_Question]) -> Iterator[Row]:
        """A row per prompt; where one picture has more of them than run together, some after the others."""
        size = self.batch_size
        pieces = [
            replace(question, prompts=question.prompts[start : start + size])
            for question in questions
            for start in range(0, len(question.prompts), size)
        ]
        fits = sum(len(piece.prompts) for piece in pieces) <= size
        return chain.from_iterable(map(self._ask, [pieces] if fits else [[piece] for piece in pieces]))

    def _ask(self, questions: list[_Question]) -> list[Row]:
        """A row per prompt. If something cannot be used, all are asked one by one, and the rest is kept."""
        try:
            outputs = self._segment(questions) if questions else []
        except LensError as error:
            if isinstance(error, _OF_THE_MODEL):
                raise
            (first, *others) = questions
            if others:
                return [row for question in questions for row in self._ask([question])]
            if len(first.prompts) > 1:
                return [row for prompt in first.prompts for row in self._ask([replace(first, prompts=[prompt])])]
            return [error_row(first.image, first.prompts[0], str(error), first.size)]
        return [
            row
            for question, output in zip(questions, outputs, strict=True)
            for row in rows_of(question.image, output, self.score_threshold)
        ]

    def _segment(self, questions: list[_Question]) -> Sequence[LensOutput]:
        pictures, prompts = [one.picture for one in questions], [one.prompts for one in questions]
        if not isinstance(self.segmenter, LensAdapter):
            return self.segmenter(pictures, prompts)
        return self.segmenter.segment(
            pictures,
            prompts,
            image_sizes=[one.size for one in questions],
            batch_size=self.batch_size,
            mask_threshold=self.mask_threshold,
            score_threshold=0.0,  # every mask is kept, and `found` can be judged anew
        )


def _says_something(prompt: Any) -> bool:
    return isinstance(prompt, str) and is_whole_text(prompt) and bool(prompt.strip())
