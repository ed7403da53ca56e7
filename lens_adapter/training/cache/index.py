"""What index.json of a folder of features says, checked before anything is read by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens_adapter.data.files import read_json
from lens_adapter.errors import StaleFeaturesError, brief
from lens_adapter.reading import only_our_errors

FORMAT = 1
KINDS = ("samples", "images")
_SHARD = re.compile(rf"({'|'.join(KINDS)})-\d{{5,9}}\.safetensors")
_MOST = 10**6  # shards of a kind; each is named, and looked for


@only_our_errors
def read_index(file: Path) -> dict[str, Any]:
    """The index in `file`.

    Raises:
        InputError: it cannot be read.
        StaleFeaturesError: of another format, or none.
    """
    index = read_json(file)
    found = index.get("format") if isinstance(index, dict) else index
    if found != FORMAT or not isinstance(index, dict):
        raise StaleFeaturesError(
            f"{file}: expected features in the format {FORMAT}, got {brief(found)}. Have them made "
            "anew in another folder, or read them with the version of lens_adapter that wrote them."
        )
    if wrong := _wrong(index):
        raise StaleFeaturesError(
            f"{file} is damaged: got {wrong}. Delete the folder and have the features made again, or take the file "
            "from a copy."
        )
    return index


def read_facts(file: Path) -> tuple[str, dict[str, Any]]:
    """(name of the shard, what is known of it), of the JSON beside a shard.

    Raises:
        InputError: it cannot be read.
        StaleFeaturesError: it is no such file.
    """
    name, facts = f"{file.stem}.safetensors", read_json(file)
    if wrong := _wrong_shard(name, facts):
        raise StaleFeaturesError(f"{file} is damaged: got {wrong}. Delete it: its shard is then made again.")
    return name, facts


def _wrong(index: Mapping[str, Any]) -> str:
    """What is no index, in words; empty where all is well."""
    key, size, counts, shards = (index.get(name) for name in ("key", "shard_size", "counts", "shards"))
    if not isinstance(key, dict) or not isinstance(counts, dict) or not isinstance(shards, dict):
        return f"the key {brief(key)}, the counts {brief(counts)} and the shards {brief(shards)}"
    if type(size) is not int or not 1 <= size < 2**53:
        return f"the shard_size {brief(size)}"
    if wrong := [kind for kind in KINDS if not _is_count(counts.get(kind)) or counts[kind] > _MOST * size]:
        return f"{brief(counts.get(wrong[0]))} {wrong[0]} in shards of {size}"
    if wrong := [said for name, facts in shards.items() if (said := _wrong_shard(name, facts))]:
        return wrong[0]
    images = index.get("image_of", [])
    good = isinstance(images, list) and all(_is_count(image) and image < counts["images"] for image in images)
    return "" if good and len(images) in (0, counts["samples"]) else f"the images {brief(images)} of the samples"


def _wrong_shard(name: str, facts: Any) -> str:
    good: Any = _SHARD.fullmatch(name) and isinstance(facts, dict) and isinstance(facts.get("sha256"), str)
    if good and name.startswith("samples"):
        good = isinstance(facts.get("layer_constants"), dict)
    return "" if good else f"the shard {brief(name)} with {brief(facts)}"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53
