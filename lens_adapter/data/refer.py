"""Referring expressions in the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, refCLEF and gRefCOCO.

    root/refcoco/refs(unc).p        a pickle: one entry per object, with its sentences and its split
    root/refcoco/instances.json     COCO's annotations of the images used
    root/images/...                 COCO's train2014, for refCLEF saiapr_tc-12

gRefCOCO (`grefs(unc).json`) names several objects or none: `ann_id` is a list, [-1] for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens_adapter.data.breakage import OnError, collect
from lens_adapter.data.files import as_label, is_file, is_folder, read_json, require_folder, within
from lens_adapter.data.ids import by_id, entry_of, id_of
from lens_adapter.data.masks import annotation_regions, is_crowd
from lens_adapter.data.plain_pickle import read_plain_pickle
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError, brief
from lens_adapter.reading import only_our_errors

_COCO = ("images/mscoco/images/train2014", "images/train2014", "train2014")
_CLEF = ("images/saiapr_tc-12",)
# dataset: who made its usual splits, and where its images may lie
_DATASETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "refcoco": ("unc", _COCO),
    "refcoco+": ("unc", _COCO),
    "refcocog": ("umd", _COCO),
    "refclef": ("unc", _CLEF),
    "grefcoco": ("unc", _COCO),
}


@only_our_errors
def read_refer(
    root: str | Path,
    dataset: str = "refcoco",
    split: str | None = None,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    on_error: OnError = "raise",
) -> list[Record]:
    """A record per reference: an object (of gRefCOCO: several, or none) and all sentences about it.

    `Examples` counts each sentence, as the field does.

    Args:
        root: the folder that holds the data sets' folders.
        dataset: "refcoco", "refcoco+", "refcocog", "refclef" or "grefcoco".
        split: "train", "val", "testA", ...; "test" is every test split. None: all.
        split_by: "unc", "umd", "google", ...; whose split. None: umd for refcocog, else unc.
        images: the folder of images, if it is not in one of the usual places under `root`.
        on_error: "raise" over a broken record (e.g. its annotation is missing), or "skip" it with a warning.

    Returns:
        Records whose `subset` is "no_target", "one_target" or "several_targets" for gRefCOCO, else their split.
    """
    if not isinstance(dataset, str) or dataset not in _DATASETS:
        raise InputError(f"There is no REFER data set {brief(dataset)}; expected one of {', '.join(_DATASETS)}.")
    usual_split_by, places = _DATASETS[dataset]
    file = _references_file(Path(root) / dataset, split_by or usual_split_by)
    references = read_json(file) if file.suffix == ".json" else read_plain_pickle(file)
    instances = read_json(Path(root) / dataset / "instances.json")
    if not isinstance(references, list) or not isinstance(instances, dict):
        raise InputError(f"{str(file)!r} must hold a list of references, and instances.json beside it an object.")
    beside = Path(root) / dataset / "instances.json"
    annotations, pictures = (by_id(instances.get(name), name, beside, on_error) for name in ("annotations", "images"))
    folder = _image_folder(Path(root), places) if images is None else Path(images)
    require_folder(folder, f"the images of {dataset}")

    def build(reference: dict[str, Any]) -> dict[str, Any]:
        picture = entry_of(pictures, reference["image_id"], "image", "instances.json")
        targets = _targets(reference, annotations)
        region = [part for target in targets for part in annotation_regions(target, picture)] or None
        sentences = [_said(sentence) for sentence in reference["sentences"]]
        return {
            "image": within(folder, picture["file_name"]),
            "prompts": sentences,
            "regions": [region] * len(sentences),
            "id": as_label(reference["ref_id"], "ref_id"),
            "subset": _subset(targets) if dataset == "grefcoco" else as_label(reference["split"], "split"),
        }

    wanted = [(k, ref) for k, ref in enumerate(references) if split is None or _in_split(ref, split)]
    if not wanted:
        splits = sorted({_split(ref) for ref in references} - {""})
        raise InputError(f"{str(file)!r} has nothing in the split {split!r}; its splits are {', '.join(splits)}.")
    return collect(file, wanted, build, on_error)


def _references_file(folder: Path, split_by: str) -> Path:
    names = [f"{stem}({split_by}).{suffix}" for stem in ("refs", "grefs") for suffix in ("p", "json")]
    for name in names:
        if is_file(folder / name):
            return folder / name
    raise InputError(f"The folder {str(folder)!r} has none of {', '.join(names)}. Check `root` and `split_by`.")


def _image_folder(root: Path, places: tuple[str, ...]) -> Path:
    return next((root / place for place in places if is_folder(root / place)), root / places[0])


def _in_split(reference: Any, split: str) -> bool:
    """refCLEF has splits such as "testAB", which are part of testA and of testB."""
    have = _split(reference)
    if split == "test" or split in ("testA", "testB", "testC"):
        return have.startswith("test") and split.removeprefix("test") in have.removeprefix("test")
    return have == split


def _split(reference: Any) -> str:
    split = reference.get("split") if isinstance(reference, dict) else None
    return split if isinstance(split, str) else ""


def _said(sentence: dict[str, Any]) -> Any:
    said = sentence.get("sent") or sentence["raw"]
    return said.strip() if isinstance(said, str) else said


def _targets(reference: dict[str, Any], annotations: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations it names; without crowds, unless there are only crowds, as in gRefCOCO's own evaluation."""
    ids = reference["ann_id"] if isinstance(reference["ann_id"], list) else [reference["ann_id"]]
    if [id_of(one) for one in ids] == ["-1"]:
        return []
    if not ids:
        raise InputError("It names no annotation; no target is written as -1.")
    found = [entry_of(annotations, one, "annotation", "instances.json") for one in ids]
    for one in found:
        if id_of(one["image_id"]) != id_of(reference["image_id"]):
            raise InputError(
                f"It is about the image {reference['image_id']!r}, and its annotation {one['id']!r} about the image "
                f"{one['image_id']!r}."
            )
    return [one for one in found if not is_crowd(one)] or found


def _subset(targets: list[dict[str, Any]]) -> str:
    return ("no_target", "one_target", "several_targets")[min(len(targets), 2)]
