"""Readers of data, results and caches against what others wrote.

Of every input a reader makes records, or an error of ours: nothing else comes out of it, and it comes to an end.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import pickletools
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from lens_adapter.data.coco import read_coco
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import digest_folder, read_folder
from lens_adapter.data.formats import FORMATS, DataSource
from lens_adapter.data.hub import Columns, read_hub
from lens_adapter.data.lisa import read_lisa
from lens_adapter.data.masks import ShownSize, decode
from lens_adapter.data.plain_pickle import read_plain_pickle
from lens_adapter.data.reason_seg import read_reason_seg
from lens_adapter.data.refer import read_refer
from lens_adapter.data.semantic import LabelMaps, read_classes
from lens_adapter.errors import LensError
from lens_adapter.results import Evaluation, load_results
from lens_adapter.training.cache.read import CachedFeatures
from tests.attacks.registry import Outcome, attack
from tests.data.formats import annotation, box, corners, instances, picture, reference, runs, write_image, write_levels

MEMORY = 2**30  # bytes more than before: an input that asks for more is met with a MemoryError
PATIENCE = 5  # seconds of the processor for one input; the slowest takes one
LONGEST = 3000  # letters of a message

BOX = box(2, 1, 7, 5)
DEEP, HUGE = "<nested>", "<a number of many digits>"  # put in when it is written: Python's own writer refuses them
LOOP: list[Any] = []
LOOP.append(LOOP)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


ODD: list[Any] = [
    *(None, True, False, 0, -1, 7, 2**63, 10**400, -(10**400), 0.5, -0.0, float("nan"), float("inf"), 1e308),
    *("", " ", "1", "false", "null", "x" * 300, "x" * 5000, "../a.jpg", "/etc/passwd", "a\0b", "\ud800", "data:,x"),
    *("https://example.org/a.png", [], {}, [[]], [None], [{}], [1], [1, 2, 3], [[1, 2], [3]], ["a"], [True] * 12),
    *({"size": [8, 12]}, {"size": [8, 12], "counts": "P"}, {"size": [10**9, 10**9], "counts": [1]}, {"bytes": None}),
    *(nested(50), nested(300), [[0] * 12] * 8, [[0.5] * 12] * 7, [[[1, 2, 3]] * 12] * 8),
    *([10**400] * 8, [1e300, 0] * 4, ["\ud800"], {"\ud800": 1}, "a/" * 200 + "a.jpg", DEEP, HUGE, [DEEP], {"a": HUGE}),
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
    LOOP,
]
COLUMNS = Columns("image", "text", "mask", ignored="void", id="id", subset="kind")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(content))


def as_json(content: Any) -> str:
    text = json.dumps(content).replace(json.dumps(DEEP), "[" * 3000 + "]" * 3000)
    return text.replace(json.dumps(HUGE), "9" * 6000)


def coco(root: Path, content: Any, on_error: Any = "skip") -> list:
    write(root / "a.json", content)
    return read_coco(root / "a.json", root / "images", on_error=on_error)


def folder(root: Path, content: Any, on_error: Any = "skip") -> list:
    lines = content if isinstance(content, list) else [content]
    (root / "prompts.jsonl").write_text("\n".join(map(as_json, lines)))
    return read_folder(root, on_error)


def reason_seg(root: Path, content: Any, on_error: Any = "skip") -> list:
    write(root / "images" / "a.json", content)
    return read_reason_seg(root / "images", on_error)


def refer(root: Path, content: Any, on_error: Any = "skip") -> list:
    whole = content if isinstance(content, dict) else {}
    write(root / "refcoco" / "refs(unc).json", whole.get("refs"))
    write(root / "refcoco" / "instances.json", whole.get("instances"))
    return read_refer(root, images=root / "images", on_error=on_error)


def hub(root: Path, content: Any, on_error: Any = "skip") -> list:
    return read_hub(content, COLUMNS, on_error)


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
    {"label": "target", "points": [[2, 1], [6, 4], [1, 7]]},
]
REFERENCES = [reference(1, 11, 1, ["it"]), reference(2, [11, 12], 1, ["them"])]
CONTENTS: dict[Callable[..., list], Any] = {
    coco: instances([PICTURE, picture(2, "b.jpg")], [DRAWN, annotation(12, 2, runs(BOX), iscrowd=0)]),
    folder: [LINE, {"image": "a.jpg", "prompt": "it", "mask": None, "subset": "short"}],
    reason_seg: {"text": ["it"], "is_sentence": True, "shapes": SHAPES},
    refer: {"refs": REFERENCES, "instances": instances([PICTURE], [DRAWN, annotation(12, 1, runs(BOX), iscrowd=1)])},
    hub: [{"image": "a.jpg", "text": ["it"], "mask": runs(BOX), "void": BOX.tolist(), "id": 1, "kind": "short"}] * 2,
}
RECORD = {
    "protocol": "lens-1",
    "dataset": {"name": "things", "split": "val", "revision": None},
    "prompts": 3,
    "images": 2,
    "figures": {"all": {"giou": {"value": 0.5, "interval": [0.4, 0.6]}, "ciou": {"value": 0.25, "interval": None}}},
    "base_model": "org/base",
    "adapter": "org/head",
    "mask_threshold": 0.5,
    "score_threshold": 0.25,
    "versions": {"torch": "2"},
    "head_sha256": "0" * 64,
    "benchmark": {"id": "org/things", "task_id": "t", "subset": "all", "metric": "giou"},
}
INDEX = {
    "format": 1,
    "key": {"attention_layers": [1], "num_attention_heads": 4, "layer_arguments": False, "attention": None},
    "shard_size": 2,
    "counts": {"samples": 2, "images": 1},
    "image_of": [0, 0],
    "shards": {
        "samples-00000.safetensors": {"sha256": "0" * 64, "bytes": 2, "layer_constants": {}},
        "images-00000.safetensors": {"sha256": "0" * 64, "bytes": 2},
    },
}
OPTIONS: list[dict[str, Any]] = [
    {"path": ".", "format": "folder", "on_error": "skip"},
    {"path": ".", "format": "refer", "dataset": "refcoco", "split": "train", "images": "images", "split_by": "unc"},
    {"path": "a.json", "format": "coco", "images": "images", "on_error": "skip"},
    {"path": "labels", "format": "label_maps", "images": "images", "classes": "classes.txt", "first": 0, "ignore": 255},
    {"path": "labels", "format": "label_maps", "images": "images", "classes": ["sky", None, "sea"]},
    {"path": ".", "format": "lisa", "name": "reason_seg", "split": "val"},
    {"path": ".", "format": "lisa", "name": "ade20k", "classes": "classes.txt"},
    {"path": "images", "format": "reason_seg", "split": "."},
]


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
                elif isinstance(at, dict) and rng.random() < 0.1:
                    at[str(rng.choice(odd))[:5000]] = at.pop(key)
                else:
                    at[key] = copy.deepcopy(rng.choice(odd))
                break
            at = at[key]
    return content


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """With some bytes changed, cut off, doubled or taken out."""
    content = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(5):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[at : at + rng.randint(1, 30)]
            case 2:
                content[at:at] = content[at : at + 30]
            case 3:
                content[at:at] = rng.choice([b"\xff", b"\0", b"[" * 3000, b"9" * 5000, b"NaN", b"\xed\xa0\x80", b"{}"])
            case _:
                del content[at:]
    return bytes(content)


def random_pickle(rng: random.Random) -> bytes:
    """Some opcodes one behind the other, with what they ask for or not."""
    codes = [code.code.encode("latin-1") for code in pickletools.opcodes]
    tame = [
        b"]",
        b"}",
        b")",
        b"(",
        b"N",
        b"K\x01",
        b"2",
        b"0",
        b"\x85",
        b"\x86",
        b"\x94",
        b"h\x00",
        b"q\x00",
        b"a",
        b"s",
    ]
    parts = [rng.choice(tame) if rng.random() < 0.8 else rng.choice(codes) + rng.randbytes(rng.randrange(5))]
    parts += [rng.choice(tame) if rng.random() < 0.9 else rng.choice(codes) for _ in range(rng.randrange(60))]
    return b"".join(parts) + b"."


class Attack:
    """A folder with small data sets of every kind, and what can be thrown at their readers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("a.jpg", "b.jpg"):
            write_image(root / "images" / name)
        write_levels(root / "masks" / "a.png", BOX)
        write_levels(root / "labels" / "a.png", BOX)
        (root / "classes.txt").write_text("0: sky\n1: sea\n2: sand\n")
        (root / "ade20k" / "objectInfo150.txt").parent.mkdir()
        (root / "ade20k" / "objectInfo150.txt").write_text("sky\nsea\n")
        self.kinds: dict[str, Callable[[random.Random], object]] = {
            **{f"values: {read.__name__}": self._values(read) for read in CONTENTS},
            **{f"bytes: {name}": self._bytes(name) for name in self._files()},
            "names": self.names,
            "options": self.options,
            "pickles": self.pickles,
            "regions": self.regions,
            "results": self.results,
            "a pickle that grows": self.bombs,
            "index": self.index,
        }

    def _values(self, read: Callable[..., list]) -> Callable[[random.Random], object]:
        def attack(rng: random.Random) -> object:
            on_error = rng.choice(["raise", "skip", "skip"])
            content = altered(CONTENTS[read], rng, ODD + LIVE * (read is hub))
            return _gone_through(read(self.root, content, on_error), on_error)

        return attack

    def _files(self) -> dict[str, tuple[bytes, Callable[[], object]]]:
        """{file: (what is in it, who reads it)}."""
        root, plain = self.root, [dict(one) for one in REFERENCES]
        return {
            "a.json": (as_json(CONTENTS[coco]).encode(), lambda: read_coco(root / "a.json", root / "images")),
            "prompts.jsonl": ("\n".join(map(as_json, CONTENTS[folder])).encode(), lambda: read_folder(root, "skip")),
            "images/a.json": (as_json(CONTENTS[reason_seg]).encode(), lambda: read_reason_seg(root / "images", "skip")),
            "refclef/refs(unc).p": (pickle.dumps(plain, 2), self._refclef),
            "refclef/instances.json": (as_json(CONTENTS[refer]["instances"]).encode(), self._refclef),
            "masks/a.png": ((root / "masks" / "a.png").read_bytes(), lambda: read_folder(root, "skip")),
            "labels/a.png": ((root / "labels" / "a.png").read_bytes(), self._label_maps),
            "images/a.jpg": ((root / "images" / "a.jpg").read_bytes(), lambda: read_folder(root, "skip")),
            "classes.txt": ((root / "classes.txt").read_bytes(), self._label_maps),
            "results.json": (as_json(RECORD).encode(), lambda: Evaluation.load(root / "results.json").to_markdown()),
        }

    def _bytes(self, name: str) -> Callable[[random.Random], object]:
        def attack(rng: random.Random) -> object:
            files = self._files()
            for other, (raw, _) in files.items():
                (self.root / other).parent.mkdir(exist_ok=True)
                (self.root / other).write_bytes(raw)
            raw, read = files[name]
            (self.root / name).write_bytes(damaged(raw, rng))
            try:
                made = read()
                return _gone_through(made, "skip") if not isinstance(made, str) else made
            finally:
                (self.root / name).write_bytes(raw)

        return attack

    def _refclef(self) -> Any:
        return read_refer(self.root, "refclef", images=self.root / "images", on_error="skip")

    def _label_maps(self) -> Any:
        return LabelMaps(self.root / "images", self.root / "labels", read_classes(self.root / "classes.txt"))

    def names(self, rng: random.Random) -> object:
        """Files that are none, or have names that are none."""
        with TemporaryDirectory(dir=self.root) as made:
            root = Path(made)
            (root / "images").mkdir()
            for name in ("a.jpg", "a.json", "a.png", "prompts.jsonl", os.fsdecode(b"\xff.json"), "x" * 250 + ".png"):
                at = root / rng.choice([".", "images"]) / name
                match rng.randrange(6):
                    case 0:
                        os.mkfifo(at)
                    case 1:
                        at.mkdir()
                    case 2:
                        at.symlink_to(at)
                    case 3:
                        at.symlink_to("/dev/zero")
                    case 4:
                        at.symlink_to(root / "nowhere")
                    case _:
                        at.write_bytes(rng.choice([b"", b"[]", b"{}", b"null"]))
            long = "y" * 300
            reads: list[Callable[[], Any]] = [
                lambda: read_reason_seg(root / "images", "skip"),
                lambda: read_folder(root, "skip"),
                lambda: read_coco(root / "a.json", root / "images", on_error="skip"),
                lambda: LabelMaps(root / "images", root, ["a"]),
                lambda: read_refer(root / long, on_error="skip"),
                lambda: read_refer(root / "a\0b", on_error="skip"),
                lambda: read_lisa(root / long, "ade20k"),
                lambda: read_classes(root / rng.choice([long, "a.json", "a\0.txt"])),
                lambda: read_plain_pickle(root / rng.choice([long, "a.json", "a\0.p"])),
                lambda: Evaluation.load(root / rng.choice([long, "a.json", "a\0.json"])),
                lambda: DataSource.of({"path": str(root / rng.choice([long, "a\0b"]))}).describe(),
                lambda: DataSource.of(str(root / rng.choice([long, "a\0b"]))).records(),
                lambda: digest_folder(root),
                lambda: CachedFeatures(root / rng.choice([long, "a\0b", "."])),
                lambda: load_results(root / rng.choice([long, "a\0b", "."])),
            ]
            made_of = rng.choice(reads)()
            return _gone_through(made_of, "skip") if isinstance(made_of, list | LabelMaps) else made_of

    def options(self, rng: random.Random) -> object:
        for read in (coco, folder, reason_seg, refer):
            read(self.root, CONTENTS[read])
        given = altered(rng.choice(OPTIONS), rng, ODD + LIVE + [*FORMATS])
        source = DataSource.of(given)
        source.describe()
        return _gone_through(source.records(), "skip")

    def pickles(self, rng: random.Random) -> object:
        (self.root / "p").write_bytes(random_pickle(rng))
        return read_plain_pickle(self.root / "p")

    def bombs(self, rng: random.Random) -> object:
        """Small pickles that would become large, deep or slow."""
        many, index = rng.randrange(20, 3000), rng.randrange(2**20, 2**31).to_bytes(4, "little")
        twice = rng.choice([b"h\x00h\x00\x86q\x00", b"2\x86", b"\x940h\x00h\x00\x86"])
        raw = rng.choice(
            [
                b"}" + b")q\x00" + twice * many + b"Ns.",  # a tuple of itself, as a key: it is hashed whole
                b"}" + b")" + b"\x85" * (many * 100) + b"Ns.",  # a deep one
                b"}" + b")" + b"K\x01\x86" * (many * 100) + b"Ns.",
                b"]" + b"r" + index + b".",  # a place far out in the memo
                b"]" + b"p%d\n" % (rng.randrange(2**20, 2**31)) + b".",
                b"]" + b"(l" * many * 100 + b".",
                b"]" * many * 100 + b"a" * (many * 100 - 1) + b".",
                b"(" + b"\x8a\x64" + b"\xff" * 100 + b"d" * many + b".",
                b"c__builtin__\nfrozenset\nq\x00" + b"h\x00]\x85R" * many + b".",
                b"\x8e" + (2**60).to_bytes(8, "little") + b"x.",
                b"X\xff\xff\xff\x7f.",
            ]
        )
        (self.root / "p").write_bytes(raw)
        return read_plain_pickle(self.root / "p")

    def regions(self, rng: random.Random) -> object:
        value = rng.choice(ODD + LIVE)
        for _ in range(rng.randrange(3)):
            other = rng.choice(ODD + LIVE)
            forms: list[Any] = [
                [value],
                [value] * 12,
                [[value] * 12] * 8,
                [value, other],
                {"size": [8, 12], "counts": value},
            ]
            value = rng.choice([*forms, {"size": [8, 12], "polygons": value}, {"size": value, "counts": other}])
        return decode(value, ShownSize((8, 12), rng.choice([1, 6])))

    def results(self, rng: random.Random) -> object:
        content = altered(RECORD, rng, ODD)
        if rng.random() < 0.5:
            write(self.root / "results.json", content)
            made = Evaluation.load(self.root / "results.json")
        else:
            made = Evaluation.from_dict(altered(RECORD, rng, ODD + LIVE))
        made.to_markdown(), made.model_index(), made.leaderboard_file()
        made.save(self.root / "again.json")
        write(self.root / "head" / "evaluation.json", altered({"weights_sha256": "0", "records": [RECORD]}, rng, ODD))
        return load_results(self.root / "head")

    def index(self, rng: random.Random) -> object:
        whole = altered(INDEX, rng, ODD)
        write(self.root / "features" / "index.json", whole)
        for name in INDEX["shards"]:
            (self.root / "features" / name).write_bytes(b"")
        facts = altered({"sha256": "0" * 64}, rng, ODD) if rng.random() < 0.2 else {"sha256": "1" * 64}
        write(self.root / "features" / "samples-00000.json", facts if rng.random() < 0.9 else rng.choice(ODD))
        found = CachedFeatures(self.root / "features", verify=rng.random() < 0.5)
        return len(found)


def _gone_through(records: Any, on_error: Any) -> int:
    examples = Examples(records, on_error)
    for example in examples:
        if example.mask.dtype != bool or example.mask.shape != example.image.size[::-1]:
            raise AssertionError(f"a mask {example.mask.dtype} {example.mask.shape}")
    longest = max([0, *(len(str(error)) for error in examples.broken)])
    if longest > LONGEST:
        raise AssertionError(f"a message of {longest} letters")
    return len(examples)


class Hang(BaseException):
    """An input took longer than anybody waits."""


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """So many seconds of the processor, which others may use too, and ten times as many by the clock."""

    def stop(*_: Any) -> None:
        raise Hang

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, patience in timers:
        signal.setitimer(timer, patience)
    try:
        yield
    finally:
        for timer, _, _ in timers:
            signal.setitimer(timer, 0)
        for (_, number, _), handler in zip(timers, before, strict=True):
            signal.signal(number, handler)


def run(count: int, seed: int) -> dict[str, int]:
    """Throw `count` inputs at the readers, each kind in turn: how many were read, refused, foreign or without end."""
    found = Counter[str](inputs=0, read=0, refused=0, foreign=0, hangs=0)
    verbosity, here = logging.get_verbosity(), Path.cwd()
    logging.set_verbosity(logging.CRITICAL)
    space = resource.getrlimit(resource.RLIMIT_AS)
    with TemporaryDirectory() as root:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, space[1]))
        attack = Attack(Path(root))
        os.chdir(root)
        try:
            for turn in range(count):
                name = [*attack.kinds][turn % len(attack.kinds)]
                found["inputs"] += 1
                rng = random.Random(f"{seed} {turn}")
                try:
                    with _patience(PATIENCE):
                        attack.kinds[name](rng)
                    found["read"] += 1
                except LensError as error:
                    found["refused"] += 1
                    if len(str(error)) > LONGEST:
                        found["foreign"] += 1
                        print(f"{name}: a message of {len(str(error))} letters: {str(error)[:200]}", file=sys.stderr)
                except Hang:
                    found["hangs"] += 1
                    print(f"{name}, input {turn}: no end", file=sys.stderr)
                except Exception as error:
                    found["foreign"] += 1
                    print(f"{name}, input {turn}: {error!r}"[:400], file=sys.stderr)
        finally:
            os.chdir(here)
            resource.setrlimit(resource.RLIMIT_AS, space)
            logging.set_verbosity(verbosity)
    return dict(found)


@attack("readers", 5000)
def attack_readers(seed: int, count: int) -> Outcome:
    """Every reader of data, results and caches is given what others might have written"""
    found = run(count, seed)
    return Outcome(found["inputs"], found["refused"], found["foreign"], found["hangs"])
