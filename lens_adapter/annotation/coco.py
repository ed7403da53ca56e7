"""Annotations as one COCO file: images, annotations, categories."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lens_adapter.annotation.rows import read_rows
from lens_adapter.writing import written_aside


def write_coco(file: Path, shards: Sequence[Path], plan: Mapping[str, Any]) -> None:
    """Write what was found as COCO's JSON; rows are read and written one by one.

    Prompts are the categories, in the order they first occur. What was found and has a pixel is an annotation, with its
    score; `segmentation` is run lengths, `iscrowd` 0. `info` holds what made them, how many prompts were not found or
    have an empty mask, and what could not be annotated. Names of pictures and prompts are in memory, nothing else.

    Args:
        file: where it goes; it appears when it is whole.
        shards: all of them.
        plan: what stands in them.
    """
    images: dict[str, int] = {}
    categories: dict[str, int] = {}
    with written_aside(file) as aside, aside.open("w", encoding="utf-8") as out:
        out.write('{"images": [\n')
        _write_list(out, _images(shards, images, categories))
        out.write('],\n"annotations": [\n')
        counts = {"not_found": 0, "empty": 0}
        _write_list(out, _annotations(shards, images, categories, counts))
        out.write('],\n"categories": [\n')
        _write_list(out, ({"id": number, "name": name} for name, number in categories.items()))
        facts = {"description": "lens_adapter annotations", "made_with": dict(plan), **counts}
        out.write(f'],\n"info": {json.dumps(facts)[:-1]}, "errors": [\n')
        _write_list(out, _errors(shards))
        out.write("]}}\n")


def _images(shards: Sequence[Path], images: dict[str, int], categories: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Those that could be read, each once; takes note of their ids, and of those of the prompts."""
    for row in read_rows(shards, ["image", "width", "height", "prompt", "error"]):
        if row["error"] is None:
            categories.setdefault(row["prompt"], len(categories) + 1)
        if row["width"] is not None and row["image"] not in images:
            number = images[row["image"]] = len(images) + 1
            yield {"id": number, "file_name": row["image"], "width": row["width"], "height": row["height"]}


def _annotations(
    shards: Sequence[Path], images: Mapping[str, int], categories: Mapping[str, int], counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    number = 0
    for row in read_rows(shards):
        if row["error"] is not None:
            continue
        if not row["found"] or not row["area"]:
            counts["empty" if row["found"] else "not_found"] += 1
            continue
        number += 1
        left, top, right, bottom = row["box"]
        yield {
            "id": number,
            "image_id": images[row["image"]],
            "category_id": categories[row["prompt"]],
            "segmentation": row["rle"],
            "bbox": [left, top, right - left, bottom - top],
            "area": row["area"],
            "iscrowd": 0,
            "score": row["score"],
        }


def _errors(shards: Sequence[Path]) -> Iterator[dict[str, Any]]:
    columns = ["image", "prompt", "error"]
    return (row for row in read_rows(shards, columns) if row["error"] is not None)


def _write_list(out: IO[str], entries: Iterable[Mapping[str, Any]]) -> None:
    for number, entry in enumerate(entries):
        out.write((",\n" if number else "") + json.dumps(entry, allow_nan=False))
    out.write("\n")
