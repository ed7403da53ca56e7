"""The folder tree that LISA trains on, as its README lays it out; who has it need not move a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lens_adapter.data.breakage import OnError
from lens_adapter.data.coco import read_coco
from lens_adapter.data.reason_seg import read_reason_seg
from lens_adapter.data.records import Record
from lens_adapter.data.refer import read_refer
from lens_adapter.data.semantic import LabelMaps, read_classes
from lens_adapter.errors import InputError, brief
from lens_adapter.reading import only_our_errors


@dataclass(frozen=True)
class _Maps:
    """Where label maps lie, {split} filled in from `splits`, and how they count (see LabelMaps)."""

    images: str
    labels: str
    classes: str
    splits: dict[str, str]
    first: int = 0
    ignore: int = 255


_LABEL_MAPS = {
    "ade20k": _Maps(
        images="ade20k/images/{split}",
        labels="ade20k/annotations/{split}",
        classes="ade20k/objectInfo150.txt",
        splits={"train": "training", "val": "validation"},
        first=1,
        ignore=0,
    ),
    "cocostuff": _Maps(
        images="coco/{split}",
        labels="cocostuff/{split}",
        classes="cocostuff/labels.txt",
        splits={"train": "train2017", "val": "val2017"},
    ),
    "mapillary": _Maps(
        images="mapillary/{split}/images",
        labels="mapillary/{split}/v2.0/labels",
        classes="mapillary/config_v2.0.json",
        splits={"train": "training", "val": "validation"},
    ),
}
# annotations, images
_COCO = {
    "paco_lvis": ("vlpart/paco/annotations/paco_lvis_v1_{split}.json", "coco"),
    "pascal_part": ("vlpart/pascal_part/{split}.json", "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages"),
}
_REFER = ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")
LISA_DATASETS = (*_LABEL_MAPS, *_COCO, *_REFER, "reason_seg")


@only_our_errors
def read_lisa(
    root: str | Path,
    name: str,
    split: str = "train",
    *,
    classes: str | Path | Sequence[str] | None = None,
    on_error: OnError = "raise",
) -> Sequence[Record]:
    """One data set of LISA's mix.

    Args:
        root: LISA's `dataset` folder.
        name: one of `LISA_DATASETS`.
        split: "train" or "val"; of referring and reasoning sets also their others, such as "testA".
        classes: of label maps, their names or a file of them (LISA keeps those with its code, as
            utils/ade20k_classes.json and utils/cocostuff_classes.txt). None: the list that the data set itself brings.
        on_error: "raise" over a broken record, or "skip" it with a warning; of label maps, broken ones show later.

    COCO-Stuff's classes with a hyphen ("wall-brick") are not asked for: LISA leaves them out.
    """
    root = Path(root)
    if not isinstance(name, str) or name not in LISA_DATASETS:
        raise InputError(f"LISA has no data set {brief(name)}; expected one of {', '.join(LISA_DATASETS)}.")
    if name in _LABEL_MAPS:
        return _label_maps(root, name, split, classes)
    if name in _COCO:
        annotations, images = _COCO[name]
        return read_coco(root / annotations.format(split=split), root / images, on_error=on_error)
    if name in _REFER:
        return read_refer(root / "refer_seg", name, split, on_error=on_error)
    return read_reason_seg(root / "reason_seg" / "ReasonSeg" / split, on_error)


def _label_maps(root: Path, name: str, split: str, classes: str | Path | Sequence[str] | None) -> LabelMaps:
    maps = _LABEL_MAPS[name]
    if split not in maps.splits:
        raise InputError(f"{name} has no split {split!r}; expected one of {', '.join(maps.splits)}.")
    if classes is None or isinstance(classes, str | Path):
        classes = read_classes(classes or root / maps.classes)
    names: list[str | None] = [each.lower() for each in classes]
    ignore = maps.ignore
    if name == "cocostuff":
        names = names[names[:1] == ["unlabeled"] :]  # the file counts from 1, pixels from 0
        names = [None if "-" in str(each) else each for each in names]
    elif "unlabeled" in names:
        ignore = names.index("unlabeled")
    images, labels = (root / place.format(split=maps.splits[split]) for place in (maps.images, maps.labels))
    return LabelMaps(images, labels, names, first=maps.first, ignore=ignore)
