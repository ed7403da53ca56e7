"""Pickles that hold nothing but data, also those that Python 2 wrote; anything that could run code is refused."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lens_adapter.data.files import require_regular
from lens_adapter.errors import InputError, brief

_LARGEST = 2**28  # bytes of a file; RefCOCO's have a tenth of it
_MOST_IN_A_TUPLE = 100  # things, on all levels: Python goes through them each time that it is a key
_LONGEST_NUMBER = 8  # bytes; of larger ones many may have one hash, and a dict of such keys becomes slow,
_MOST_LARGE_NUMBERS = 1000  # so there are few


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds: dicts, lists, tuples, sets, numbers (numpy's become Python's), texts, bools and None.

    Texts that Python 2 wrote as bytes are decoded as UTF-8, or as Latin-1 where that fails.

    Raises:
        InputError: the file is missing, damaged, too large, made to take memory or time without end, or holds anything
            else. Nothing of it has been run then.
    """
    try:
        require_regular(path)
        if path.stat().st_size > _LARGEST:
            raise InputError(f"it has more than {_LARGEST >> 20} megabytes; expected less.")
        raw = path.read_bytes()
        _require_tame(raw)
        buffered = io.BufferedReader(io.BytesIO(raw))  # of the bare bytes it would ask for each one by one
        return _plain(_PlainUnpickler(buffered, encoding="bytes").load(), {})
    except InputError as error:
        raise InputError(f"The pickle {brief(str(path), 300)} was refused: {error}") from error
    except OSError as error:
        raise InputError(f"The file {brief(str(path), 300)} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle fails in whatever way comes first
        raise InputError(f"The file {brief(str(path), 300)} is no readable pickle: {brief(error, 200)}") from error


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
        (module, name): set  # not frozen, it cannot be a key
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset")
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


_PUT, _GET, _PLAIN, _OTHER = range(4)  # notes a thing, repeats one, makes one of nothing but its argument; all else


def _kind(operation: pickletools.OpcodeInfo) -> int:
    if "PUT" in operation.name or operation.name == "MEMOIZE":
        return _PUT
    if operation.name.endswith("GET"):
        return _GET
    plain = not operation.stack_before and len(operation.stack_after) == 1
    return _OTHER if not plain or operation.name in ("MARK", "LONG", "LONG1", "LONG4", "INT") else _PLAIN


# What an operation does: its kind, how long its argument is (as pickletools says; 0: there is none), how many things it
# takes off the stack, whether also all down to the last mark, and how many it leaves there.
_OPERATIONS = {
    ord(operation.code): (
        _kind(operation),
        0 if operation.arg is None else operation.arg.n,
        sum(1 for thing in operation.stack_before if thing.name not in ("mark", "stackslice")),
        any(thing.name == "stackslice" for thing in operation.stack_before),
        sum(1 for thing in operation.stack_after if thing.name != "mark"),
    )
    for operation in pickletools.opcodes
}
_WIDTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _require_tame(raw: bytes) -> None:
    """Go through the operations of a pickle, without making anything, and refuse what would take long or much.

    That is a tuple in tuples in tuples as a key (to look it up, Python goes through all of it, however often one tuple
    is in another, and without a limit to its depth), a place in the memo far beyond those in use, and many numbers of
    one hash.

    Raises:
        InputError: names it.
        Exception: the pickle is damaged.
    """
    sizes: list[int] = []  # of the things on the stack: how many are in it, on all levels, where that is a tuple
    marks: list[int] = []
    memo: dict[int, int] = {}
    position = operations = large = 0
    while True:
        code = raw[position]
        operations += 1
        kind, width, taken, to_mark, left = _OPERATIONS[code]
        start = position = position + 1
        if width >= 0:
            position += width
        elif width == pickletools.UP_TO_NEWLINE:
            position = raw.index(b"\n", position) + 1
            if code in b"ci":  # two lines
                position = raw.index(b"\n", position) + 1
        else:
            start += _WIDTHS[width]
            position = start + int.from_bytes(raw[position:start], "little")
        if position > len(raw):
            raise EOFError(f"its operation {operations} is cut off")
        if kind == _PLAIN:
            sizes.append(1)
            continue
        if kind == _PUT:
            place = len(memo) if code == 0x94 else _number(code, raw[start:position])
            if not 0 <= place <= operations:
                raise InputError(f"it notes its thing {operations} under the number {place}; expected them in order.")
            memo[place] = sizes[-1]
            continue
        if kind == _GET:
            sizes.append(memo[_number(code, raw[start:position])])
            continue
        if code in b"\x8a\x8bLI":
            large += position - start > (_LONGEST_NUMBER if code in b"\x8a\x8b" else 20)
            if large > _MOST_LARGE_NUMBERS:
                raise InputError(f"it holds more than {_MOST_LARGE_NUMBERS} numbers beyond 64 bits.")
        if code == 0x28:  # a mark
            marks.append(len(sizes))
            continue
        if code == 0x30 and marks and marks[-1] == len(sizes):  # POP takes a mark like a thing
            marks.pop()
            continue
        inside = 0
        if to_mark:
            mark = marks.pop()
            inside = sum(sizes[mark:])
            del sizes[mark:]
        if code == 0x6F:  # OBJ: what it takes lies above the mark
            taken = 0
        if len(sizes) - taken < (marks[-1] if marks else 0):
            raise pickle.UnpicklingError(f"its operation {operations} finds nothing on the stack")
        if code == 0x2E:  # the end
            return
        if code == 0x32:  # once more
            sizes.append(sizes[-1])
            continue
        if taken:
            inside += sum(sizes[-taken:])
            del sizes[-taken:]
        if code in b"t\x85\x86\x87\x91":
            if inside >= _MOST_IN_A_TUPLE:
                raise InputError(
                    f"it holds a tuple of more than {_MOST_IN_A_TUPLE} things, those in its tuples included; expected "
                    "lists. Write it anew with lists, or as JSON."
                )
            sizes.append(1 + inside)
        else:
            sizes.extend((1,) * left)


def _number(code: int, argument: bytes) -> int:
    return int(argument[:20]) if code in b"pg" else int.from_bytes(argument, "little")


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
