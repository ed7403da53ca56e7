"""What is written down: a row per picture and prompt, and the Parquet files of them, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pycocotools import mask as coco

from lens_adapter.annotation.tasks import is_whole_text
from lens_adapter.errors import InputError, LensError, brief
from lens_adapter.output import LensOutput, is_found
from lens_adapter.writing import written_aside

Row = dict[str, Any]
METADATA = b"lens_adapter"  # in a shard's schema: what made it, as JSON
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("prompt", pa.string()),
        ("found", pa.bool_()),
        ("score", pa.float32()),
        ("rle", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("box", pa.list_(pa.float32())),
        ("area", pa.int64()),
        ("keypoints", pa.list_(pa.list_(pa.float32()))),
        ("error", pa.string()),
    ]
)


def rows_of(image: str, output: LensOutput, score_threshold: float) -> list[Row]:
    """A row per prompt of a picture. The mask, its box and its keypoints are those drawn, whatever `found` says.

    Args:
        image: the picture's name.
        output: made with a score threshold of 0, so that no mask is left out.
        score_threshold: what `found` is judged by.
    """
    height, width = output.image_size
    masks = output.to_coco_rle()
    encoded = [{**mask, "counts": mask["counts"].encode()} for mask in masks]
    areas, boxes = coco.area(encoded).tolist(), coco.toBbox(encoded).reshape(-1, 4).tolist()
    return [
        {
            "image": image,
            "width": width,
            "height": height,
            "prompt": prompt,
            "found": is_found(score, score_threshold),
            "score": score,
            "rle": {"size": [height, width], "counts": mask["counts"]},
            "box": [left, top, left + wide, top + high],
            "area": area,
            "keypoints": points.tolist(),
            "error": None,
        }
        for prompt, score, mask, (left, top, wide, high), area, points in zip(
            output.prompts, output.scores.float().tolist(), masks, boxes, areas, output.keypoints, strict=True
        )
    ]


def error_row(image: str, prompt: Any, error: str, size: tuple[int, int] | None = None) -> Row:
    """A row of what could not be annotated; `size` is (H, W) where the picture could be read."""
    height, width = size or (None, None)
    prompt = prompt if is_whole_text(prompt) else None if prompt is None else brief(prompt)
    empty = dict.fromkeys(SCHEMA.names)
    said = error.encode("utf-8", "backslashreplace").decode()
    return {**empty, "image": image, "width": width, "height": height, "prompt": prompt, "found": False, "error": said}


def shard_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def write_shard(path: Path, rows: pa.Table | Sequence[Row], made_with: Mapping[str, Any]) -> None:
    """Write rows as one Parquet file, which appears under its name when it is whole."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({METADATA: json.dumps(made_with)})
    with written_aside(path) as aside:
        parquet.write_table(table, aside, compression="zstd")


def shard_facts(path: Path) -> dict[str, Any]:
    """What made a shard, as it says itself.

    Raises:
        InputError: it is no Parquet file, or not one of ours.
    """
    try:
        found = json.loads((parquet.read_schema(path).metadata or {})[METADATA])
        return dict(found)
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} is no file of annotations, or is damaged ({type(error).__name__}). Delete it to have it made anew."
        ) from error


def shards_in(folder: Path) -> list[Path]:
    """The finished shards of a folder, in order."""
    found = [path for path in folder.glob("part-*.parquet") if path.stem.removeprefix("part-").isdecimal()]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("part-")))


def read_rows(shards: Iterable[Path], columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of some shards, one by one; of each file a few are in memory.

    Raises:
        LensError: a file is damaged.
    """
    for path in shards:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(256, columns=columns and list(columns)):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise LensError(f"{path} is damaged ({error}). Delete it, and have it made anew by --resume.") from error


def judge_anew(path: Path, score_threshold: float, made_with: Mapping[str, Any]) -> None:
    """Write a shard again, with `found` by another score threshold.

    Args:
        made_with: what the shard says of itself from now on.
    """
    table = parquet.read_table(path)
    scores = table.column("score").to_pylist()
    found = [score is not None and is_found(score, score_threshold) for score in scores]
    place = table.schema.get_field_index("found")
    judged = table.set_column(place, "found", pa.array(found, pa.bool_()))
    write_shard(path, judged.cast(SCHEMA), made_with)  # a column that is read has a number of its own
