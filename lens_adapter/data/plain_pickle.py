"""Pickles that hold nothing but data, also those that Python 2 wrote; anything that could run code is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lens_adapter.errors import InputError


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds: dicts, lists, tuples, sets, numbers (numpy's become Python's), texts, bools and None.

    Texts that Python 2 wrote as bytes are decoded as UTF-8, or as Latin-1 where that fails.

    Raises:
        InputError: the file is missing, damaged, or holds anything else. Nothing of it has been run then.
    """
    try:
        with path.open("rb") as file:
            loaded = _PlainUnpickler(file, encoding="bytes").load()
        return _plain(loaded, {})
    except InputError as error:
        raise InputError(f"The pickle {str(path)!r} was refused: {error}") from error
    except OSError as error:
        raise InputError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle fails in whatever way comes first
        raise InputError(f"The file {str(path)!r} is no readable pickle: {error!r}") from error


class _DType:
    """Stands in for numpy.dtype: keeps what a number is called, e.g. "<i8", and makes nothing."""

    def __init__(self, code: str | bytes, *_: Any):
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order


def _scalar(dtype: _DType, raw: bytes) -> int | float | bool:
    """Stands in for numpy's constructor of scalars: plain numbers only."""
    kind = np.dtype(dtype.code).newbyteorder("=" if dtype.order == "|" else dtype.order)
    if kind.kind not in "biuf" or len(raw) != kind.itemsize:
        raise InputError(f"it holds a numpy value of type {dtype.code!r}; expected numbers.")
    number: int | float | bool = np.frombuffer(raw, kind)[0].item()
    return number


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Stands in for `codecs.encode`, with which Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise InputError(f"it encodes a text as {encoding!r}; expected bytes.")
    return text.encode("latin-1")


_ATOMS = frozenset({str, int, float, bool, type(None)})
_SEQUENCES = frozenset({list, tuple, set, frozenset})
_SAFE: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in (("set", set), ("frozenset", frozenset))
    },
    **{(module, "scalar"): _scalar for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1_bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise InputError(f"it asks for {module}.{name}; expected plain data. Do not trust this file.")
        return _SAFE[module, name]


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """`value` with bytes decoded; raises over anything that is no plain data.

    Args:
        value: what the unpickler made; it lives as long as `known`.
        known: {id of a container: what became of it}, as a pickle may hold one thing in many places; None while it is
            being made.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is bytes:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if kind is not dict and kind not in _SEQUENCES:
        raise InputError(f"it holds {kind.__name__}; expected plain data.")
    if id(value) not in known:
        known[id(value)] = None
        if kind is dict:
            known[id(value)] = {_plain(key, known): _plain(item, known) for key, item in value.items()}
        else:
            known[id(value)] = kind([_plain(item, known) for item in value])
    if known[id(value)] is None:
        raise InputError("it holds a list within itself; expected plain data.")
    return known[id(value)]
