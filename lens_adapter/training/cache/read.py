"""Features of the frozen parts, read from where `cache_features` wrote them, in the place of examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, distributed, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from lens_adapter.adapter import LensAdapter
from lens_adapter.data.examples import Example
from lens_adapter.data.shapes import fill_runs
from lens_adapter.errors import InputError, LensConfigError, StaleFeaturesError
from lens_adapter.sam.families import encoding_facts, family_of
from lens_adapter.signals import LensSignals, Reading, TokenLayout
from lens_adapter.training.cache.layer_arguments import padded, put_together
from lens_adapter.training.cache.store import FeatureStore
from lens_adapter.training.losses import Targets

# Of `LensConfig.sam`: what an image embedding, or a target in the frame of the mask decoder, depends on.
_SAM = (
    *("image_size", "patch_size", "window_size", "relative_position", "out_channels", "embed_dim", "depth"),
    *("num_heads", "mlp_ratio", "global_attention_layers", "pixel_mean", "pixel_std"),
)
_NO_PICTURE: Any = None  # what an `Example` has in the place of one
_SAMPLED = 4096  # values of each tensor that a fingerprint reads


@dataclass(frozen=True)
class Features:
    """Of one example: what a head learns from.

    Attributes:
        tensors: as `cache_features` stores them.
        image: number of its picture in the cache.
        embedding: (E, g, g), SAM's embedding of that.
        cache: where it is from.
    """

    tensors: dict[str, Tensor]
    image: int
    embedding: Tensor
    cache: CachedFeatures

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        height, width = self.tensors["size"].tolist()
        return height, width


class CachedFeatures(Dataset[Features]):
    """A folder that `cache_features` filled, as a dataset that `LensTrainer` takes in the place of examples.

    Args:
        folder: where it is.
        verify: compare every shard with its checksum first, which reads them all once (several processes share that).

    Attributes:
        key: what the features are of, see `feature_key`.
        layer_constants: arguments of the tapped layer that are the same for all.

    Raises:
        StaleFeaturesError: unfinished, damaged, or none.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True):
        self.store = FeatureStore(folder)
        self.store.require_complete()
        if verify:
            several = distributed.is_initialized()
            self.store.verify(*((distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)))
        self.key: dict[str, Any] = self.store.index["key"]
        constants = [self.store.index["shards"][name]["layer_constants"] for name in self.store.names("samples")]
        if not constants or len(self.store.index.get("image_of", ())) != len(self):
            raise StaleFeaturesError(
                f"{folder} holds features of no example, or does not say of which pictures. Have them made anew in "
                "another folder."
            )
        if other := next((one for one in constants if one != constants[0]), None):
            raise StaleFeaturesError(
                f"{folder}: layers were called with {constants[0]} for some samples and {other} for others, which "
                'cannot be in one batch. Train without cached features, or with fusion="lite".'
            )
        self.layer_constants: dict[str, Any] = constants[0]

    def __len__(self) -> int:
        return int(self.store.index["counts"]["samples"])

    def __getitem__(self, index: int) -> Features:
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are features of {len(self)} examples; got the index {index}.")
        index %= len(self)
        image = self.store.index["image_of"][index]
        return Features(self.store.read("samples", index), image, self.store.read("images", image)["embedding"], self)

    def require(self, adapter: LensAdapter) -> None:
        """Refuse an adapter that these features were not made for; a base that is not attached is not asked.

        Raises:
            StaleFeaturesError: names what differs.
        """
        require_same(self.store.folder, self.key, feature_key(adapter))


def feature_key(adapter: LensAdapter) -> dict[str, Any]:
    """What features of the frozen parts depend on, as far as the adapter knows; None where it does not.

    A revision says little about a base that was fine-tuned or merged since: `base_weights` and `sam_weights` are
    fingerprints of the weights themselves.
    """
    config = adapter.config
    mirror = config.fusion == "mirror"
    key = {
        "base": config.base_model_type,
        "base_revision": config.base_model_revision,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "tap_layer": config.tap_layer,
        "attention_layers": list(dict.fromkeys(config.attention_layers)),
        "prompt_template": config.prompt_template,
        "layer_arguments": mirror,
        # What layers are called with changes with the version.
        "transformers": ".".join(transformers.__version__.split(".")[:2]) if mirror else None,
        "sam": {name: config.sam[name] for name in _SAM}
        if family_of(config.sam) is None
        else encoding_facts(config.sam),
        "sam_weights": None,
        "base_weights": None,
        "processor": None,
        "attention": None,
    }
    if (encoding := adapter.decoder.encoding) is not None:
        key["sam_weights"] = fingerprint(encoding)
    if adapter.is_attached:
        anatomy = adapter.base.anatomy
        key["base"] = anatomy.architecture
        key["base_revision"] = getattr(anatomy.config, "_commit_hash", None)
        key["base_weights"] = fingerprint(anatomy.model)
        key["processor"] = _processor_fingerprint(adapter.base.processor)
        key["attention"] = anatomy.attention_implementation(config.tap_layer) if mirror else None
    return key


def require_same(folder: Path, got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse features whose key differs where both sides know.

    Raises:
        StaleFeaturesError: names what differs.
    """
    both = [name for name in expected if expected[name] is not None and got.get(name) is not None]
    if wrong := [f"{name}: expected {expected[name]}, got {got[name]}" for name in both if expected[name] != got[name]]:
        raise StaleFeaturesError(
            f"The features in {folder} are of something else. {'; '.join(wrong)}. Name another folder for them, delete "
            "this one to have it made anew, or go back to what it was made for."
        )


def fingerprint(module: nn.Module) -> str:
    """Changes with the names, shapes, types and values of a module's tensors.

    Of each tensor, up to 4096 values spread evenly over it are read. Of one that has no plain values (offloaded, or of
    a class of its own, as some kinds of quantization have it), none.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if type(tensor) is Tensor and not tensor.is_meta and tensor.numel():
            values = tensor.detach().flatten()
            values = values[:: -(-len(values) // _SAMPLED)].contiguous().cpu()
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _processor_fingerprint(processor: Any) -> str | None:
    if processor is None:
        return None
    image_processor = getattr(processor, "image_processor", processor)
    template = getattr(processor, "chat_template", None) or getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    )
    return hashlib.sha256(f"{image_processor.to_json_string()} {template}".encode()).hexdigest()[:16]


def caches_in(datasets: Sequence[Any]) -> list[CachedFeatures]:
    """The caches that some datasets are made of; none if they hold examples.

    Raises:
        LensConfigError: some are cached, and some are not.
    """
    found = [_caches_of(dataset) for dataset in datasets]
    if any(found) and not all(found):
        raise LensConfigError(
            "Some of the datasets are cached features and some are examples; cache_features makes the former of the "
            "latter: give either all or none of them so."
        )
    return [cache for caches in found for cache in caches]


def _caches_of(dataset: Any) -> list[CachedFeatures]:
    if isinstance(dataset, CachedFeatures):
        return [dataset]
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else []
    parts = [dataset.dataset] if isinstance(dataset, Subset) else parts
    return [cache for part in parts for cache in _caches_of(part)]


@dataclass
class FeatureBatch:
    """N prompts about B pictures, as `collate.Batch`, but read from a cache: neither base nor image encoder is asked.

    Attributes:
        signals: padded on the left.
        layouts: one per row.
        embeddings: (B, E, g, g).
        image_index, targets, sizes: as those of `Batch`.
        truths: of each row, what `samples` are made of.
    """

    signals: LensSignals
    layouts: list[TokenLayout]
    embeddings: Tensor
    image_index: Tensor
    targets: Targets
    sizes: list[tuple[int, int]]
    truths: list[dict[str, Tensor]]

    @property
    def samples(self) -> list[Example]:
        """The examples, with their masks at full size, but without their pictures: `image` is None."""
        return [_example(truth, size) for truth, size in zip(self.truths, self.sizes, strict=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FeatureBatch:
        """The same with all that a head reads on a device: accelerate's loader calls this."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FeatureBatch:
        """The same in memory that an accelerator copies from fast: torch's loader calls this, in a thread of its own
        where there are workers."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> FeatureBatch:
        signals, targets = self.signals, self.targets
        ignored = targets.ignored
        return replace(
            self,
            signals=replace(
                signals,
                hidden=change(signals.hidden),
                attention={layer: change(rows) for layer, rows in signals.attention.items()},
                layer_kwargs=_changed(signals.layer_kwargs, change),
                attention_mask=None if signals.attention_mask is None else change(signals.attention_mask),
                queries=None if signals.queries is None else change(signals.queries),
            ),
            embeddings=change(self.embeddings),
            image_index=change(self.image_index),
            targets=Targets(
                change(targets.masks),
                change(targets.heat),
                None if ignored is None else (change(ignored[0]), change(ignored[1])),
            ),
        )

    def read(self, adapter: LensAdapter) -> Reading:
        """What the base said about the N prompts when the cache was made."""
        return Reading(self.signals, self.layouts, self.sizes, tap_layer=adapter.config.tap_layer)

    def encode_images(self, adapter: LensAdapter) -> Tensor:
        """SAM's embeddings (B, E, g, g) of the pictures."""
        return self.embeddings.to(adapter.decoder.device)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` of all tensors inside dicts and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_changed(item, change) for item in value)
    if isinstance(value, dict):
        return {name: _changed(item, change) for name, item in value.items()}
    return value


def collate_features(rows: Sequence[Features]) -> dict[str, Any]:
    """Items of `CachedFeatures` -> `{"attention_mask", "batch"}`; the mask tells Trainer how many rows there are.

    Raises:
        InputError: they are something else.
    """
    if wrong := [type(row).__name__ for row in rows if not isinstance(row, Features)]:
        raise InputError(
            f"Expected items of CachedFeatures, as this trainer was made with, got {wrong[0]}. Have their features "
            "cached too, or evaluate them with a trainer that has the base."
        )
    names = [(str(row.cache.store.folder), row.image) for row in rows]
    pictures = {name: row.embedding for name, row in zip(names, rows, strict=True)}
    index = torch.tensor([list(pictures).index(name) for name in names])
    signals = _signals(rows)
    total = signals.hidden.shape[1]
    batch = FeatureBatch(
        signals=signals,
        layouts=[_layout(row.tensors, total) for row in rows],
        embeddings=torch.stack(list(pictures.values())),
        image_index=index,
        targets=_targets([row.tensors for row in rows]),
        sizes=[row.size for row in rows],
        truths=[{name: row.tensors[name].clone() for name in ("texts", "runs", "ignored.runs")} for row in rows],
    )
    return {"attention_mask": signals.attention_mask, "batch": batch}


def _signals(rows: Sequence[Features]) -> LensSignals:
    key, tensors = rows[0].cache.key, [row.tensors for row in rows]
    lengths = [len(row["hidden"]) for row in tensors]
    total = max(lengths)
    hidden = padded([row["hidden"] for row in tensors])  # (B, T, D)
    attention = {}
    if key["attention_layers"]:
        heat = padded([row["attention"] for row in tensors]).float()  # (B, T, layers, heads)
        heads = key["num_attention_heads"]
        for k, layer in enumerate(key["attention_layers"]):
            count = heads if isinstance(heads, int) else heads[layer]
            attention[layer] = heat[:, :, k, :count].mT[:, :, None]
    arguments: dict[str, Any] = {}
    if key["layer_arguments"]:
        samples = [_layer_arguments(row) for row in tensors]
        arguments = put_together(samples, rows[0].cache.layer_constants, key["attention"], lengths, hidden.dtype)
    mask = torch.arange(total) >= total - torch.tensor(lengths)[:, None]
    queries = torch.full((len(rows), 1), total - 1)
    return LensSignals(
        hidden, attention, arguments, attention_mask=mask.long(), queries=queries, kernel=key["attention"]
    )


def _layer_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    arguments = {name.removeprefix("layer."): x for name, x in tensors.items() if name.startswith("layer.")}
    length, bits = len(tensors["hidden"]), arguments.pop("sees").numpy()
    sees = np.unpackbits(bits, count=length**2 if len(bits) else 0).astype(bool)
    arguments = {name: x if x.is_floating_point() else x.long() for name, x in arguments.items()}
    return {**arguments, "sees": torch.from_numpy(sees).view(-1, length)}  # (0, t): each sees all before it, and itself


def _layout(tensors: Mapping[str, Tensor], total: int) -> TokenLayout:
    grid = tuple(tensors["grid"].tolist()) or None
    return TokenLayout(tensors["positions"].long() + total - len(tensors["hidden"]), tensors["boxes"].clone(), grid)


def _example(truth: Mapping[str, Tensor], size: tuple[int, int]) -> Example:
    texts, runs, ignored = (truth[name].numpy().tobytes() for name in ("texts", "runs", "ignored.runs"))

    ignore = fill_runs(ignored, size) if ignored else None
    return Example(image=_NO_PICTURE, mask=fill_runs(runs, size), ignore=ignore, **json.loads(texts))


def _targets(tensors: Sequence[Mapping[str, Tensor]]) -> Targets:
    masks, heat = (torch.stack([row[name] for row in tensors]).float() for name in ("masks", "heat"))
    if not any(len(row["ignored.runs"]) for row in tensors):
        return Targets(masks, heat)
    ignored = [
        torch.stack([row[name] if len(row[name]) else torch.zeros_like(like) for row in tensors])
        for name, like in (("ignored.masks", masks[0] > 0), ("ignored.heat", heat[0] > 0))
    ]
    return Targets(masks, heat, (ignored[0], ignored[1]))
