"""Lists whose entries refer to one another by id: images, annotations and categories, as COCO and REFER have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens_adapter.data.breakage import Breakage, OnError, reason
from lens_adapter.data.files import as_label
from lens_adapter.errors import BrokenRecordError, InputError, brief


def id_of(value: Any) -> str:
    """An id as a text: 7, 7.0 and "7" are one.

    Raises:
        InputError: it is none, or neither a text nor a whole number.
    """
    if type(value) is int:  # nearly all, of hundreds of thousands
        return str(value)
    name = as_label(value, "An id")
    if not name:
        raise InputError(f"An id must be a text or a whole number, got {brief(value)}.")
    return name


def same_ids(entries: list[Any], what: str) -> dict[int, str]:
    """{position: complaint} of the entries whose id others have, too. Of those without an id nothing is said."""
    places: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        try:
            places.setdefault(id_of(entry["id"]), []).append(index)
        except Exception:  # no entry, or one without an id: refused where it is used
            continue
    return {
        index: f"The id {brief(name)} is that of {what} {' and '.join(map(str, found[:5]))} (counted from 0): "
        "which is meant?"
        for name, found in places.items()
        if len(found) > 1
        for index in found
    }


def by_id(entries: Any, what: str, file: Path, on_error: OnError) -> dict[str, dict[str, Any]]:
    """{id: entry} of the list `what` in `file`.

    Args:
        entries: the list.
        what: its name: "images", "annotations", "categories".
        file: for messages.
        on_error: what to do about an entry without an id, and about several of one id ("skip" leaves all these out).

    Raises:
        InputError: it is no list.
    """
    if not isinstance(entries, list):
        raise InputError(f"{str(file)!r} must hold the list {what}, got {type(entries).__name__}.")
    found, double, breakage = {}, same_ids(entries, what), Breakage(on_error)
    for index, entry in enumerate(entries):
        try:
            if index in double:
                raise InputError(double[index])
            found[id_of(entry["id"])] = entry
        except Exception as error:  # whatever is there in place of an entry
            breakage.meet(BrokenRecordError(f"In {what}: {reason(error)}", str(file), index), error)
    return found


def entry_of(entries: Mapping[str, dict[str, Any]], name: Any, what: str, where: str) -> dict[str, Any]:
    """That of `entries` with the id `name`; `what` it is and `where` it should be is said if there is none."""
    try:
        return entries[id_of(name)]
    except KeyError:
        raise InputError(f"Its {what} {brief(name)} is not in {where}.") from None
