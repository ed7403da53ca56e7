"""COCO's annotations of instances: one JSON file with images, annotations and categories."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lens_adapter.data.breakage import OnError, collect
from lens_adapter.data.files import read_json, require_folder, within
from lens_adapter.data.ids import by_id, entry_of, id_of, same_ids
from lens_adapter.data.masks import annotation_regions, is_crowd
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError
from lens_adapter.reading import only_our_errors


def readable(name: str) -> str:
    """A category as people say it: "cup_(drink):inner_side" is "the inner side of the cup"."""
    words = [re.sub(r"_?\([^)]*\)", "", part).replace("_", " ").strip() for part in name.split(":")]
    return f"the {words[1]} of the {words[0]}" if len(words) == 2 else words[0]


@only_our_errors
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

    Raises:
        InputError: these are no annotations of COCO; an id that several images, categories or annotations have.
    """
    file, folder = Path(annotations), require_folder(Path(images), "images")
    content = read_json(file)
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise InputError(f"{str(file)!r} must hold the lists images, annotations and categories.")
    pictures, categories = (by_id(content[name], name, file, on_error) for name in ("images", "categories"))
    double = same_ids(content["annotations"], "annotations")

    def build(group: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        for index, _ in group:
            if index in double:
                raise InputError(double[index])
        annotations = [one for _, one in group]
        picture = entry_of(pictures, annotations[0]["image_id"], "image_id", "the file")
        category = entry_of(categories, annotations[0]["category_id"], "category_id", "the file")
        target, crowd = (
            [part for one in annotations if is_crowd(one) is crowds for part in annotation_regions(one, picture)]
            for crowds in (False, True)
        )
        return {
            "image": within(folder, picture["file_name"]),
            "prompts": [say(category["name"])],
            "regions": [target],
            "ignored": crowd or None,
            "id": f"{id_of(picture['id'])}/{id_of(category['id'])}",
        }

    groups = [(group[0][0], group) for group in _group(content["annotations"])]
    return collect(file, groups, build, on_error)


def _group(annotations: list[Any]) -> list[list[tuple[int, dict[str, Any]]]]:
    """Annotations of one image and category with their positions; groups of crowds alone are left out."""
    groups: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for index, one in enumerate(annotations):
        try:
            key: Any = (id_of(one["image_id"]), id_of(one["category_id"]))
        except Exception:  # refused in its turn, as a record of its own
            key = index
        groups.setdefault(key, []).append((index, one))
    return [group for group in groups.values() if not all(_is_surely_a_crowd(one) for _, one in group)]


def _is_surely_a_crowd(annotation: Any) -> bool:
    return isinstance(annotation, dict) and annotation.get("iscrowd") in (1, True)
