"""For readers of what others wrote: whatever is wrong with it, they say so in an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from lens_adapter.errors import InputError, LensError, brief

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def only_our_errors(read: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """For readers of what others wrote, which breaks in whatever way comes first: any error but ours becomes an
    `InputError` with that as its cause."""

    @wraps(read)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        try:
            return read(*args, **kwargs)
        except LensError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {brief(str(error), 300)}"
            raise InputError(f"{read.__qualname__} cannot make sense of what it was given ({said}).") from error

    return call
