"""What is written is read by those who know nothing of us: pycocotools, pandas, datasets, supervision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from lens_adapter import annotate
from lens_adapter.annotation.rows import METADATA, read_rows, shards_in
from lens_adapter.data.coco import read_coco
from tests.annotation.standin import standin, write_jsonl, write_pictures

PROMPTS = ["a dog", 'the "large" cat, Käse', "a blank"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Annotations of five pictures and a broken one, one of them asked about twice."""
    folder = tmp_path_factory.mktemp("outputs")
    write_pictures(folder / "pictures", 5)
    Image.new("RGB", (6, 5), "white").save(folder / "pictures" / "white.png")  # in which all masks are empty
    (folder / "pictures" / "broken.png").write_bytes(b"no picture")
    names = [*(f"{k:05d}.png" for k in range(5)), "white.png", "broken.png"]
    rows = [{"image": name, "prompts": PROMPTS} for name in names] + [{"image": names[0], "prompt": "once more"}]
    listed = write_jsonl(folder / "pictures" / "list.jsonl", rows)
    annotate(standin, listed, folder / "out", format="coco", shard_size=3, score_threshold=0.4)
    return folder


def masks_of(rows) -> list[np.ndarray]:
    return [coco_mask.decode({**row["rle"], "counts": row["rle"]["counts"].encode()}).astype(bool) for row in rows]


def found_in(folder: Path) -> list[dict]:
    return [row for row in read_rows(shards_in(folder / "out")) if row["found"] and row["area"]]


def test_pycocotools_reads_the_coco_file(folder, capsys):
    coco, expected = COCO(str(folder / "out" / "annotations.json")), found_in(folder)
    assert len(coco.imgs) == 6 and [one["name"] for one in coco.loadCats(coco.getCatIds())] == [*PROMPTS, "once more"]
    annotations = [coco.anns[key] for key in sorted(coco.anns)]
    assert len(annotations) == len(expected) > 3
    for annotation, row, mask in zip(annotations, expected, masks_of(expected), strict=True):
        assert (coco.annToMask(annotation) == mask).all() and annotation["area"] == mask.sum()
        assert coco.imgs[annotation["image_id"]]["file_name"] == row["image"]
        assert coco.cats[annotation["category_id"]]["name"] == row["prompt"]
        left, top, width, height = map(int, annotation["bbox"])
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
    results = [{key: one[key] for key in ("image_id", "category_id", "segmentation", "score")} for one in annotations]
    assert len(coco.loadRes(results).anns) == len(annotations)
    errors = coco.dataset["info"]["errors"]
    assert [(one["image"], one["prompt"]) for one in errors] == [("broken.png", prompt) for prompt in PROMPTS]
    assert coco.dataset["info"]["not_found"] == sum(
        not row["found"] and row["error"] is None for row in read_rows(shards_in(folder / "out"))
    )
    assert coco.dataset["info"]["made_with"]["score_threshold"] == 0.4


def test_our_own_reader_takes_the_coco_file(folder):
    records = read_coco(folder / "out" / "annotations.json", folder / "pictures")
    masks = {
        (Path(record.image).name, p): m
        for record in records
        for p, m in zip(record.prompts, record.masks(), strict=True)
    }
    expected = found_in(folder)
    assert expected
    for row, mask in zip(expected, masks_of(expected), strict=True):
        assert (masks[row["image"], row["prompt"]] == mask).all()


def test_supervision_reads_the_coco_file(folder):
    supervision = pytest.importorskip("supervision")
    data = supervision.DetectionDataset.from_coco(
        str(folder / "pictures"), str(folder / "out" / "annotations.json"), force_masks=True
    )
    expected = found_in(folder)
    found = [detections for _, _, detections in data]
    assert sum(map(len, found)) == len(expected)
    assert sum(detections.mask.sum() for detections in found if len(detections)) == sum(row["area"] for row in expected)


def test_pandas_reads_the_folder(folder, tmp_path):
    pandas = pytest.importorskip("pandas")
    annotate(standin, folder / "pictures" / "list.jsonl", tmp_path / "out", shard_size=3, preview=1)
    table = pandas.read_parquet(tmp_path / "out")  # beside the manifest and the page
    assert len(table) == 22 and table["found"].dtype == bool
    for _, row in table[table["found"]].iterrows():
        assert coco_mask.decode(row["rle"]).sum() == row["area"]
    assert list(table["error"].notna()) == [False] * 18 + [True] * 3 + [False]


def test_datasets_reads_the_shards(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_parquet(sorted(map(str, (folder / "out").glob("*.parquet"))), cache_dir=str(tmp_path))
    assert list(rows) == list(read_rows(shards_in(folder / "out")))


def test_every_shard_says_what_made_it(folder):
    from pyarrow import parquet

    for path in shards_in(folder / "out"):
        facts = json.loads(parquet.read_schema(path).metadata[METADATA])
        assert facts["segmenter"] == "tests.annotation.standin.standin" and facts["score_threshold"] == 0.4
        assert facts["versions"]["lens_adapter"] and facts["data_sha256"] and facts["pictures"] == 8
