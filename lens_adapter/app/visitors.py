"""Where the page keeps what visitors bring and get: one folder, which goes with the page."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp
from types import FrameType
from typing import Any

from lens_adapter.errors import InputError

FOLDER = "GRADIO_TEMP_DIR"  # the variable that names gradio's folder of uploads
# One text, whatever is wrong: whether another file of this machine exists is nobody's business.
NOT_UPLOADED = "This picture is not here, or not any more. Upload it."


@contextmanager
def visitors_folder() -> Iterator[Path]:
    """A folder of this process alone, for all that visitors bring and get; it goes when the page ends.

    Pages have to be built and served inside.
    """
    folder, before = Path(mkdtemp(prefix="lens-adapter-page-")).resolve(), os.environ.get(FOLDER)
    atexit.register(_remove, folder)  # once more, for what handlers that still ran wrote meanwhile
    os.environ[FOLDER] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[FOLDER]
        else:
            os.environ[FOLDER] = before
        _remove(folder)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and the end of the terminal end what is inside, so that what is to go goes; then the process.

    Its exit code is 128 and the signal's number, as a shell has it.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def end(number: int, _: FrameType | None) -> None:
        for one in known:
            signal.signal(one, signal.SIG_IGN)  # a second one must not end the cleaning up
        raise _EndedBySignal(128 + number)

    before = {one: signal.signal(one, end) for one in known}
    try:
        yield
    except _EndedBySignal as ended:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(ended.code)  # threads that are still at a visitor's request would make an abort of an orderly end
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class _EndedBySignal(BaseException):
    def __init__(self, code: int):
        self.code = code


def _remove(folder: Path) -> None:
    for _ in range(10):  # handlers that still run may write meanwhile
        rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def new_folder() -> Path:
    """A new folder for files of one visitor."""
    return Path(mkdtemp(prefix="result-", dir=os.environ.get(FOLDER)))


def uploaded(path: Any) -> Path:
    """The file of a visitor's that a request names, links resolved.

    Raises:
        InputError: it is no file inside the folder of uploads, or there is none.
    """
    folder = Path(os.environ.get(FOLDER) or Path(gettempdir(), "gradio"))
    with suppress(OSError, ValueError, RuntimeError, TypeError):  # no name that a file can have; links in a circle
        file = Path(path).resolve(strict=True)
        if file.is_file() and file.is_relative_to(folder.resolve()):
            return file
    raise InputError(NOT_UPLOADED)
