"""A folder of tensors, written shard by shard by any number of processes, and checked when it is read.

index.json                      what the tensors are of (`key`), how many there are, and the SHA-256 of every shard
samples-00000.safetensors ...   `shard_size` samples each
images-00000.safetensors ...    `shard_size` images each

A shard is whole or not there: it is written under another name, and then renamed. Until all of them are there, what is
to be said of each is in a small JSON beside it; then that goes into the index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lens_adapter.data.files import is_file
from lens_adapter.errors import StaleFeaturesError
from lens_adapter.training.cache.index import FORMAT, KINDS, read_facts, read_index
from lens_adapter.writing import require_here, written_aside

INDEX = "index.json"


class FeatureStore:
    """See above. One process, the main one, calls `begin` and `finish`; every process may `write`.

    Attributes:
        index: `{"format", "key", "shard_size", "counts": {kind: n}, "shards": {file name: {"sha256", ...}}, ...}`;
            empty before `begin`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index: dict[str, Any] = {}
        self.reload()

    def reload(self) -> None:
        """Read what the folder holds by now."""
        file = self.folder / INDEX
        if not is_file(file):
            return
        self.index = read_index(file)
        self.index["shards"] |= dict(read_facts(file) for file in self.folder.glob("*-*.json"))

    def begin(self, **index: Any) -> None:
        """Write the index of what is to come: `key`, `shard_size`, `counts` and whatever else is to be kept."""
        require_here(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.index = {"format": FORMAT, **index, "shards": {}}
        self._write(INDEX, json.dumps(self.index).encode())

    def finish(self) -> None:
        """Gather in the index what is known of every shard."""
        self.reload()
        self._write(INDEX, json.dumps(self.index).encode())
        for name in self.index["shards"]:
            (self.folder / name).with_suffix(".json").unlink(missing_ok=True)
        for left_over in self.folder.glob(".*.part"):  # of runs that were killed
            left_over.unlink()

    def names(self, kind: str) -> list[str]:
        """File names of all shards of a kind, in order, whether or not they are there."""
        return [f"{kind}-{k:05}.safetensors" for k in range(-(-self.index["counts"][kind] // self.index["shard_size"]))]

    def rows(self, name: str) -> range:
        """Which samples, or images, a shard holds."""
        kind, number = name.removesuffix(".safetensors").rsplit("-", 1)
        size = self.index["shard_size"]
        return range(self.index["counts"][kind])[int(number) * size : (int(number) + 1) * size]

    def missing(self) -> list[str]:
        """Names of the shards that have yet to be written."""
        names = [name for kind in KINDS for name in self.names(kind)]
        return [name for name in names if name not in self.index["shards"] or not (self.folder / name).is_file()]

    def write(self, name: str, samples: Sequence[Mapping[str, Tensor]], **facts: Any) -> None:
        """Write a shard: of each of its samples, tensors of the same names, of any length along their first axis.

        Args:
            facts: to be kept in the index.
        """
        names = sorted(samples[0])
        lengths = torch.tensor([[len(sample[name]) for name in names] for sample in samples])
        tensors = {name: torch.cat([sample[name] for sample in samples]).cpu().contiguous() for name in names}
        data = save({**tensors, "/ends": lengths.cumsum(0)})
        self._write(name, data)
        facts |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        self._write(f"{Path(name).stem}.json", json.dumps(facts).encode())

    def read(self, kind: str, index: int) -> dict[str, Tensor]:
        """The tensors of one sample, or image."""
        number, row = divmod(index, self.index["shard_size"])
        with safe_open(self.folder / f"{kind}-{number:05}.safetensors", framework="pt") as file:
            names = sorted(set(file.keys()) - {"/ends"})
            ends = file.get_slice("/ends")[max(row - 1, 0) : row + 1]
            starts = ends[0] if row else torch.zeros_like(ends[0])
            spans = zip(names, starts.tolist(), ends[-1].tolist(), strict=True)
            return {name: file.get_slice(name)[start:end] for name, start, end in spans}

    def require_complete(self) -> None:
        """Refuse a folder that lacks shards.

        Raises:
            StaleFeaturesError: says how many, and what to do.
        """
        if not self.index:
            raise StaleFeaturesError(
                f"{self.folder} holds no {INDEX}: there are no features. cache_features makes them."
            )
        if missing := self.missing():
            total = sum(len(self.names(kind)) for kind in KINDS)
            raise StaleFeaturesError(
                f"{self.folder} lacks {len(missing)} of {total} shards, e.g. {missing[0]}. cache_features, or "
                "`lens-adapter train` with `features`, goes on where it was stopped."
            )

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Compare every shard, or the `part`-th of `parts` of them, with its checksum.

        Raises:
            StaleFeaturesError: one is damaged.
        """
        mine = sorted(self.index["shards"])[part::parts]
        for name in tqdm(mine, desc="checking features", unit="shard", disable=part > 0 or len(mine) < 8):
            with open(self.folder / name, "rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
            expected = self.index["shards"][name]["sha256"]
            if got != expected:
                raise StaleFeaturesError(
                    f"{self.folder / name} is damaged: expected the SHA-256 {expected}, got {got}. Delete this file "
                    "and have the features made again: all others are kept."
                )

    def _write(self, name: str, data: bytes) -> None:
        """All of it, or nothing."""
        with written_aside(self.folder / name) as aside:
            aside.write_bytes(data)
