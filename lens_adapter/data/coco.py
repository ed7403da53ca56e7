"""COCO's annotations of instances: one JSON file with images, annotations and categories."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lens_adapter.data.breakage import OnError, collect
from lens_adapter.data.files import by_id, read_json, require_folder
from lens_adapter.data.masks import annotation_regions
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError


def readable(name: str) -> str:
    """A category as people say it: "cup_(drink):inner_side" is "the inner side of the cup"."""
    words = [re.sub(r"_?\([^)]*\)", "", part).replace("_", " ").strip() for part in name.split(":")]
    return f"the {words[1]} of the {words[0]}" if len(words) == 2 else words[0]


def read_coco(
    annotations: str | Path,
    images: str | Path,
    *,
    say: Callable[[str], str] = readable,
    on_error: OnError = "raise",
) -> list[Record]:
    """A record per image and category: all its instances are the target, its crowds count neither way.

    A category that shows only as a crowd makes no record.

    Args:
        annotations: the JSON file.
        images: the folder that its file names are relative to.
        say: makes a prompt of a category's name.
        on_error: "raise" over a broken record (e.g. its category is missing), or "skip" it with a warning.
    """
    file, folder = Path(annotations), require_folder(Path(images), "images")
    content = read_json(file)
    try:
        pictures, categories = by_id(content["images"]), by_id(content["categories"])
        groups = _group(content["annotations"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(file)!r} must hold the lists images, annotations and categories: {error!r}.") from error

    def build(group: list[dict[str, Any]]) -> Record:
        picture, category = (
            _entry(entries, group[0][key], key)
            for entries, key in ((pictures, "image_id"), (categories, "category_id"))
        )
        target, crowd = (
            [part for one in group if bool(one.get("iscrowd")) is is_crowd for part in annotation_regions(one, picture)]
            for is_crowd in (False, True)
        )
        return Record(
            image=folder / picture["file_name"],
            prompts=[say(category["name"])],
            regions=[target],
            ignored=crowd or None,
            id=f"{picture['id']}/{category['id']}",
        )

    return collect(file, groups, build, on_error)


def _group(annotations: list[Any]) -> list[tuple[int, list[dict[str, Any]]]]:
    """Annotations of one image and category, with the position of the first; those of crowds alone are left out."""
    groups: dict[Any, tuple[int, list[dict[str, Any]]]] = {}
    for index, one in enumerate(annotations):
        key = (one.get("image_id"), one.get("category_id")) if isinstance(one, dict) else index
        groups.setdefault(key, (index, []))[1].append(one)
    return [
        (index, group)
        for index, group in groups.values()
        if not all(isinstance(one, dict) and one.get("iscrowd") for one in group)
    ]


def _entry(entries: dict[Any, dict[str, Any]], name: Any, key: str) -> dict[str, Any]:
    if name not in entries:
        raise InputError(f"Its {key} {name!r} is not in the file.")
    return entries[name]
