"""Files that appear whole or not at all: written aside, then renamed to their final name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp

from lens_adapter.errors import InputError, brief


def require_here(path: str | os.PathLike[str]) -> None:
    """Refuse an address, such as s3://bucket/masks: as a path it would name a new folder here, `s3:`.

    Raises:
        InputError: it is one.
    """
    given = os.fspath(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+:)/", given)  # a Path has lost the second slash; C:/ is a drive
    if scheme and not os.path.isdir(scheme[1]):
        raise InputError(
            f"{brief(given, 300)} is an address, and results are written to disks here alone. Name a folder or file of "
            "this machine, and copy it there afterwards (docs/ten-million-pictures.md of the repository)."
        )


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write to; at the end of the context it takes the place of `path` in one step.

    However the process ends, and if the disk is full, `path` holds what it held before or all that is new. After an
    exception the file aside is gone; after `kill -9` it may remain, hidden, named ".NAME.*.part".

    Args:
        path: the final name. A link stays one: what it points to is written. An existing file keeps its permissions; of
            a new one, the user's mask decides.

    Raises:
        InputError: nothing can be written there.
    """
    require_here(path)
    final = Path(os.path.realpath(path))
    try:
        handle, name = mkstemp(prefix=f".{final.name[:100]}.", suffix=".part", dir=final.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be written: {error.strerror}. Choose another place.") from error
    aside = Path(name)
    try:
        aside.chmod(final.stat().st_mode & 0o777 if final.exists() else new_file_mode())
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, final)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, whole or not at all; lines end as they do in `text`.

    Raises:
        InputError: nothing can be written there.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def new_file_mode() -> int:
    """The permissions of a new file, as the user's mask has them.

    That mask can be read by setting it only, for all threads: it is read from the system where that tells it.
    """
    try:
        status = Path("/proc/self/status").read_text()
        mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:")), 8)
    except (OSError, StopIteration):
        mask = os.umask(0o022)
        os.umask(mask)
    return 0o666 & ~mask
