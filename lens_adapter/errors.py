"""Everything that can go wrong, by name. An error says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # else they would be names of this module, which holds errors
    from collections.abc import Iterable
    from typing import Any


class LensError(ValueError):
    """Base of every error this package raises on purpose."""


class UnsupportedModelError(LensError):
    """The architecture cannot work: no spatial image tokens, no text-to-image attention, or attention out of reach."""


class NotAttachedError(LensError):
    """A method that needs the frozen model was called before `attach` (or after `detach`)."""


class CheckpointMismatchError(LensError):
    """The checkpoint was trained for another base model, or its tensors do not fit its config."""


class LensConfigError(LensError):
    """A configuration value is impossible; the message names the key, the value and what is allowed."""


class InputError(LensError):
    """An image or a prompt cannot be used as given."""


class FitError(LensError):
    """A readout points no better than chance on pictures that it had not seen."""


class HubError(LensError):
    """The Hugging Face Hub refuses, or cannot be reached."""


class StaleFeaturesError(LensError):
    """Cached features are damaged, unfinished, or of another base, head or data than those in hand."""


class CalibrationError(LensError):
    """No score threshold can be chosen on these data."""


class BrokenRecordError(InputError):
    """A record of a data set cannot be used.

    Attributes:
        file: what describes the record; "" if it was made in memory.
        index: its position there, counted from 0; None if it has none. The message says the line of a file of lines
            (`prompts.jsonl`), counted from 1 as editors do.
    """

    def __init__(self, reason: str, file: str = "", index: int | None = None):
        in_lines = file.endswith((".jsonl", ".ndjson"))
        place = f"line {index + 1}" if index is not None and in_lines else f"record {index} (counted from 0)"
        super().__init__(f"{file}, {place}: {reason}" if file else reason)
        self.file = file
        self.index = index


def did_you_mean(given: Any, known: Iterable[str]) -> str:
    """What to append to a message about a name that is not known: a question with the nearest one, or nothing.

    Args:
        given: the name, or several.
        known: those that there are.

    Examples:
        >>> did_you_mean("mirorr", ["lite", "mirror"]), did_you_mean("x", ["lite", "mirror"])
        (" Did you mean 'mirror'?", '')
    """
    choices = list(known)
    names = given if isinstance(given, list | tuple | set) else [given]
    nearest = [difflib.get_close_matches(name[:80], choices, n=1) for name in names if isinstance(name, str)]
    found = dict.fromkeys(repr(name) for match in nearest for name in match)
    return f" Did you mean {' and '.join(found)}?" if found else ""


def brief(value: object, most: int = 80) -> str:
    """`value` as a message may repeat it: `most` letters and no more, however large or deep it is."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother, shown.maxlong = 3, 4 * most, 4 * most, 4 * most
    shown.maxlist = shown.maxtuple = shown.maxdict = shown.maxset = shown.maxfrozenset = shown.maxarray = 30
    try:
        cut = value[: most + 1] if isinstance(value, str | bytes) else value
        text = shown.repr(cut)
    except ValueError:  # a number of more digits than Python writes
        return f"a very large {type(value).__name__}"
    return text if len(text) <= most + 2 else f"{text[:most]}..."


def one_line(error: BaseException) -> str:
    """The message without line breaks; behind "couldn't connect", what the server said if it did answer."""
    text = " ".join(str(error).split()) or type(error).__name__
    cause = error.__cause__
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status not in (None, 401, 404) and not _names_the_status(text, status):
            return f"{text} The server said: {' '.join(str(cause).split())}"
        cause = cause.__cause__
    return text


def _names_the_status(text: str, status: int) -> bool:
    """Whether `text` says the status as a number of its own, not as a part of an address, a port or a digest."""
    return re.search(rf"(?<![\w:/.%-]){status}(?![\w/%-]|\.\w)", text) is not None
