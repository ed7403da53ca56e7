"""The one who asks the model: loads it, collects what came at the same time, and asks about all of that at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic

from lens_adapter.adapter import LensAdapter
from lens_adapter.serving.bounds import BATCH_SIZE, COLLECTING
from lens_adapter.serving.requests import Answer, SegmentationRequest, answer_all


@dataclass(frozen=True, eq=False)
class _Waiting:
    request: SegmentationRequest
    answer: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=monotonic)


class Batcher:
    """A thread of its own with the model, and the requests that wait for it, first come first served.

    Args:
        load: gives the attached adapter; called, entered and left in the thread.
        failed: is told, in the thread, that the model could not be loaded; `error` says why.
        batch_size: prompts that run together. A request with more is asked alone.
        collecting: seconds that the first request of a batch waits for others. Those that came while the model was at
            work do not wait.

    Attributes:
        ready: whether the model is loaded.
        error: why it is not, and will not be.
    """

    def __init__(
        self,
        load: Callable[[], AbstractContextManager[LensAdapter]],
        failed: Callable[[], object] = lambda: None,
        *,
        batch_size: int = BATCH_SIZE,
        collecting: float = COLLECTING,
    ):
        self.load, self.failed = load, failed
        self.batch_size, self.collecting = batch_size, collecting
        self.ready = False
        self.error: BaseException | None = None
        self._waiting: deque[_Waiting] = deque()
        self._changed, self._closing = Condition(), False
        self._thread = Thread(target=self._work, name="batches", daemon=True)

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def submit(self, request: SegmentationRequest) -> Future[Answer]:
        """Let a request wait; the future will hold its answer, or the error that it met.

        Raises:
            RuntimeError: after `close`, or where the model could not be loaded.
        """
        waiting = _Waiting(request)
        with self._changed:
            if self._closing:
                raise RuntimeError("This batcher takes no more requests: it was closed, or has no model.")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.answer

    def close(self) -> None:
        """Take no more, and return when all that wait are answered and the model is let go."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            with self.load() as adapter:
                self.ready = True
                while batch := self._next():
                    _answer(adapter, batch, self.batch_size)
        except BaseException as error:  # is raised by who waits for the thread
            self.error = error
            self.failed()
        finally:
            self.ready = False
            with self._changed:
                self._closing = True
                for left in self._waiting:  # only after an error
                    if left.answer.set_running_or_notify_cancel():
                        left.answer.set_exception(self.error or RuntimeError("The model is gone."))

    def _next(self) -> list[_Waiting]:
        """The next requests whose prompts run together; none after `close`, when all are answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._waiting:
                left = self._waiting[0].since + self.collecting - monotonic()
                self._changed.wait_for(lambda: self._closing or self._prompts() >= self.batch_size, max(left, 0))
            batch: list[_Waiting] = []
            prompts = 0
            while self._waiting:
                prompts += len(self._waiting[0].request.prompts)
                if batch and prompts > self.batch_size:
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _prompts(self) -> int:
        return sum(len(one.request.prompts) for one in self._waiting)


def _answer(adapter: LensAdapter, batch: list[_Waiting], batch_size: int) -> None:
    wanted = [one for one in batch if one.answer.set_running_or_notify_cancel()]
    for one, answer in zip(wanted, answer_all(adapter, [one.request for one in wanted], batch_size), strict=True):
        if isinstance(answer, Exception):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)
