"""Small files in the formats of public data sets, byte for byte as their makers wrote them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from lens_adapter.data.records import Record


def loaded_masks(record: Record) -> np.ndarray:
    """bool (N, H, W): the mask of each prompt, as the record is loaded."""
    return np.array([example.mask for example in record.load()])


def write_image(path: Path, width: int = 12, height: int = 8, mode: str = "RGB", orientation: int = 1) -> Path:
    """An image that is `width` x `height` as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new(mode, (width, height), 90).save(path, exif=exif)
    return path


def write_levels(path: Path, levels: Any, mode: str = "L") -> Path:
    """A PNG with one channel; "P" gives it a palette as label maps have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(levels, np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
    (image.convert("1", dither=Image.Dither.NONE) if mode == "1" else image).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def jpeg(width: int = 12, height: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), "navy").save(buffer, "JPEG")
    return buffer.getvalue()


def box(left: int, top: int, right: int, bottom: int, width: int = 12, height: int = 8) -> np.ndarray:
    """bool (height, width): the pixels with left <= x < right and top <= y < bottom."""
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def corners(left: int, top: int, right: int, bottom: int) -> list[float]:
    """COCO's polygon of `box`."""
    return [left, top, right, top, right, bottom, left, bottom]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths, as crowds have them: columns first, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *lengths] if flat[0] else lengths}


class Python2Pickle:
    """What `pickle.dumps` of Python 2 writes of dicts, lists, ints and texts: bytes for its str, str for unicode."""

    def __init__(self, protocol: int):
        assert protocol in (0, 2)
        self.old = protocol == 0
        self.out = bytearray(b"" if self.old else b"\x80\x02")
        self.memo: dict[bytes, int] = {}
        self.puts = 0

    def dumps(self, value: Any) -> bytes:
        self._save(value)
        return bytes(self.out + b".")

    def _put(self) -> int:
        number, self.puts = self.puts, self.puts + 1
        if self.old:
            self.out += b"p%d\n" % number
        else:
            self.out += b"q" + bytes([number]) if number < 256 else b"r" + number.to_bytes(4, "little")
        return number

    def _save(self, value: Any) -> None:
        if isinstance(value, bytes):
            self._save_str(value)
        elif isinstance(value, str):
            raw = value.encode("utf-8")
            escaped = b"V" + value.encode("raw_unicode_escape") + b"\n"
            self.out += escaped if self.old else b"X" + len(raw).to_bytes(4, "little") + raw
            self._put()
        elif isinstance(value, int):
            self.out += b"I%d\n" % value if self.old else b"J" + value.to_bytes(4, "little", signed=True)
        elif isinstance(value, list):
            self._save_items(b"l", b"]", [[item] for item in value], b"a", b"e")
        elif isinstance(value, dict):
            self._save_items(b"d", b"}", [[k, v] for k, v in value.items()], b"s", b"u")
        else:
            raise TypeError(type(value))

    def _save_items(self, old: bytes, new: bytes, items: list[list[Any]], one: bytes, many: bytes) -> None:
        self.out += b"(" + old if self.old else new
        self._put()
        if not self.old and items:
            self.out += b"("
        for item in items:
            for part in item:
                self._save(part)
            if self.old:
                self.out += one
        if not self.old and items:
            self.out += many

    def _save_str(self, value: bytes) -> None:
        if value in self.memo:  # texts that are one object are written once
            number = self.memo[value]
            if self.old:
                self.out += b"g%d\n" % number
            else:
                self.out += b"h" + bytes([number]) if number < 256 else b"j" + number.to_bytes(4, "little")
            return
        if self.old:
            self.out += b"S" + repr(value)[1:].encode("ascii") + b"\n"
        else:
            self.out += b"U" + bytes([len(value)]) + value
        self.memo[value] = self._put()


def python2(value: Any, protocol: int, encoding: str = "utf-8") -> bytes:
    """The pickle of `value` with its ASCII texts as Python 2's str, as the data sets have them; other texts too,
    in `encoding`, or as unicode where that is ""."""

    def narrowed(item: Any) -> Any:
        if isinstance(item, str):
            return item if not encoding and not item.isascii() else item.encode(encoding or "ascii")
        if isinstance(item, list):
            return [narrowed(part) for part in item]
        if isinstance(item, dict):
            return {narrowed(key): narrowed(part) for key, part in item.items()}
        return item

    return Python2Pickle(protocol).dumps(narrowed(value))


def reference(ref_id: int, ann_id: Any, image_id: int, sentences: list[str], split: str = "train") -> dict[str, Any]:
    """An entry of refs(unc).p."""
    said = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * ref_id + k, "sent": text}
        for k, text in enumerate(sentences)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in said],
        "file_name": f"COCO_train2014_{image_id:012}_{ref_id}.jpg",  # no such file: the image's own name counts
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": said,
        "category_id": 1,
    }


def picture(image_id: int, name: str, width: int = 12, height: int = 8) -> dict[str, Any]:
    """An entry of `images` of instances.json."""
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://mscoco.org/images/{image_id}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-15 02:41:42",
        "flickr_url": "http://farm.example/1.jpg",
        "id": image_id,
    }


def annotation(ann_id: int, image_id: int, segmentation: Any, category_id: int = 1, iscrowd: int = 0) -> dict[str, Any]:
    """An entry of `annotations` of instances.json."""
    return {
        "segmentation": segmentation,
        "area": 1.0,
        "iscrowd": iscrowd,
        "image_id": image_id,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "category_id": category_id,
        "id": ann_id,
    }


def instances(images: list[Any], annotations: list[Any], categories: dict[int, str] | None = None) -> dict[str, Any]:
    """The content of instances.json."""
    named = [{"supercategory": "thing", "id": k, "name": name} for k, name in (categories or {1: "person"}).items()]
    return {"info": {}, "images": images, "licenses": [], "annotations": annotations, "categories": named}
