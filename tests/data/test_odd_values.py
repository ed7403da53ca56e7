"""Whatever stands in place of a value: a record, or an error of ours; with "skip" the other records are read."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_adapter.data.coco import read_coco
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.data.hub import Columns, read_hub
from lens_adapter.data.masks import ShownSize, decode
from lens_adapter.data.reason_seg import read_reason_seg
from lens_adapter.data.refer import read_refer
from lens_adapter.errors import InputError
from tests.data.formats import annotation, box, corners, instances, picture, reference, runs, write_image, write_levels

BOX = box(2, 1, 7, 5)


def deep(depth: int) -> list:
    return [deep(depth - 1)] if depth else []


ODD: list[Any] = [
    *(None, True, False, 0, -1, 7, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308),
    *("", " ", "1", "false", "null", "x" * 300, "x" * 5000, "../a.jpg", "/etc/passwd", "a\0b", "\ud800", "data:,x"),
    *("https://example.org/a.png", [], {}, [[]], [None], [{}], [1], [1, 2, 3], [[1, 2], [3]], ["a"], [True] * 12),
    *({"size": [8, 12]}, {"size": [8, 12], "counts": "P"}, {"size": [10**9, 10**9], "counts": [1]}, {"bytes": None}),
    *(deep(50), deep(300), [[0] * 12] * 8, [[0.5] * 12] * 7, [[[1, 2, 3]] * 12] * 8),
]
LIVE = [
    b"",
    b"%!PS",
    np.zeros((0, 3)),
    np.array("x"),
    np.full((8, 12), None),
    torch.zeros(2, 2, 2),
    object(),
    {1, 2},
    1j,
]
COLUMNS = Columns("image", "text", "mask", ignored="void", id="id", subset="kind")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(root: Path, content: Any) -> list:
    write(root / "a.json", content)
    return read_coco(root / "a.json", root / "images", on_error="skip")


def folder(root: Path, content: Any) -> list:
    lines = content if isinstance(content, list) else [content]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return read_folder(root, "skip")


def reason_seg(root: Path, content: Any) -> list:
    write(root / "images" / "a.json", content)
    return read_reason_seg(root / "images", "skip")


def refer(root: Path, content: Any) -> list:
    whole = content if isinstance(content, dict) else {}
    write(root / "refcoco" / "refs(unc).json", whole.get("refs"))
    write(root / "refcoco" / "instances.json", whole.get("instances"))
    return read_refer(root, images=root / "images", on_error="skip")


def hub(root: Path, content: Any) -> list:
    return read_hub(content, COLUMNS, "skip")


PICTURE, DRAWN = picture(1, "a.jpg"), annotation(11, 1, [corners(2, 1, 7, 5)])
LINE = {
    "image": "a.jpg",
    "prompts": ["it", "that"],
    "masks": ["a.png", [corners(2, 1, 7, 5)]],
    "ignore": runs(BOX),
    "id": 1,
}
SHAPES = [
    {"label": "target", "shape_type": "rectangle", "points": [[2, 1], [6, 4]]},
    {"label": "ignore", "shape_type": "circle", "points": [[2, 1], [3, 1]]},
]
CONTENTS = {
    coco: instances([PICTURE, picture(2, "b.jpg")], [DRAWN, annotation(12, 2, runs(BOX), iscrowd=0)]),
    folder: [LINE, {"image": "a.jpg", "prompt": "it", "mask": None, "subset": "short"}],
    reason_seg: {"text": ["it"], "is_sentence": True, "shapes": SHAPES},
    refer: {
        "refs": [reference(1, 11, 1, ["it"]), reference(2, [11, 12], 1, ["them"])],
        "instances": instances([PICTURE], [DRAWN, annotation(12, 1, runs(BOX), iscrowd=1)]),
    },
    hub: [{"image": "a.jpg", "text": ["it"], "mask": runs(BOX), "void": BOX.tolist(), "id": 1, "kind": "short"}] * 2,
}


def altered(content: Any, rng: random.Random, odd: list[Any]) -> Any:
    """A copy with one to three places taken by odd values, or taken out."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        at = content
        while isinstance(at, dict | list) and at:
            key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
            if not isinstance(at[key], dict | list) or rng.random() < 0.25:
                if rng.random() < 0.1:
                    del at[key]
                else:
                    at[key] = copy.deepcopy(rng.choice(odd))
                break
            at = at[key]
    return content


@pytest.mark.parametrize("read", CONTENTS, ids=lambda read: read.__name__)
@pytest.mark.filterwarnings("ignore")
def test_odd_values_break_nothing_but_their_record(tmp_path, read, monkeypatch):
    monkeypatch.setattr("lens_adapter.data.breakage.logger.warning", lambda *_: None)
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "images" / name)
    write_levels(tmp_path / "masks" / "a.png", BOX)
    monkeypatch.chdir(tmp_path / "images")  # where the rows' pictures are
    rng = random.Random(0)
    odd = ODD + LIVE * (read is hub)
    read_well = loaded = 0
    for _ in range(300):
        try:
            examples = Examples(read(tmp_path, altered(CONTENTS[read], rng, odd)), "skip")
            read_well += 1
        except InputError as error:
            assert len(str(error)) < 1500
            continue
        for example in examples:
            assert example.mask.dtype == bool and example.mask.shape == (8, 12)
            loaded += 1
        assert max([0, *(len(str(error)) for error in examples.broken)]) < 1500, [
            str(error)[:300] for error in examples.broken
        ]
    assert read_well > 50 and loaded > 10


@pytest.mark.filterwarnings("ignore")
def test_odd_values_are_no_masks_or_whole_ones():
    rng = random.Random(1)
    values = ODD + LIVE
    values += (
        [[value] for value in values] + [[value] * 12 for value in values] + [[[value] * 12] * 8 for value in values]
    )
    values += [{"size": [8, 12], key: value} for value in values for key in ("counts", "polygons")]
    values += [rng.sample(ODD, 3) for _ in range(300)]
    for value in values:
        try:
            mask = decode(value, ShownSize((8, 12), 6))
        except InputError as error:
            assert len(str(error)) < 1500
        else:
            assert mask.dtype == bool and mask.shape == (8, 12)
