"""`cache_features`: what training needs of the frozen parts, computed once and written to a folder.

Of each example: hidden states at the tap, the query token's attention in the layers that the head reads, for a mirror
the arguments of the tapped layer, where its image tokens look, and its mask. Of each distinct picture: SAM's embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lens_adapter.adapter import LensAdapter
from lens_adapter.data.examples import Example, Examples
from lens_adapter.errors import InputError, LensConfigError, LensError
from lens_adapter.finite import is_finite
from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.training.cache.layer_arguments import constants, require_kernel, take_apart
from lens_adapter.training.cache.read import CachedFeatures, feature_key, require_same
from lens_adapter.training.cache.store import FeatureStore
from lens_adapter.training.collate import Batch, LensCollator, check_example

DTYPES = ("exact", "float16")


def cache_features(
    adapter: LensAdapter,
    examples: Examples | Sequence[Example],
    folder: str | Path,
    *,
    dtype: str = "exact",
    data_key: str | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    shard_size: int = 64,
) -> CachedFeatures:
    """Write what training needs of the frozen parts, or what is still missing of it; every process its share.

    Called again, it goes on after the last whole shard, or only checks. SAM's image encoder is loaded if it has to be,
    and let go again.

    Args:
        adapter: attached, with its processor.
        examples: `lens_adapter.data.examples.Examples` or any sequence; the same picture and mask at each reading.
        folder: of its own for every base, head configuration and data.
        dtype: "exact" keeps every number as the frozen parts gave it; "float16" makes floating ones half precision.
        data_key: a text that changes with the data, if there is one: else every example is read to see whether they are
            those of the folder.
        batch_size: rows of a prefill.
        num_workers: processes that read examples meanwhile.
        shard_size: examples, or pictures, in a file.

    Returns:
        The folder as a dataset.

    Raises:
        StaleFeaturesError: the folder holds features of something else, or a damaged shard.
        UnsupportedModelError: the base's layers are called with what cannot be stored (mirror only).
        NotAttachedError: the adapter has no base.
        InputError: an example that cannot be used.
        LensConfigError: an impossible argument, or a base that is sharded over processes.
    """
    if dtype not in DTYPES or min(batch_size, shard_size) < 1:
        raise LensConfigError(
            f"dtype must be one of {DTYPES}, batch_size and shard_size at least 1; got {dtype!r}, {batch_size} and "
            f"{shard_size}."
        )
    _require_whole_base(adapter)
    store = FeatureStore(folder)
    with _image_encoder(adapter.decoder, not store.index or any(name.startswith("images") for name in store.missing())):
        key = {**feature_key(adapter), "dtype": dtype, "data_key": data_key}
        if key["attention"] is not None:
            require_kernel(key["attention"])
        _fill(store, adapter, examples, key, batch_size, num_workers, shard_size)
    return CachedFeatures(folder)


def _fill(
    store: FeatureStore,
    adapter: LensAdapter,
    examples: Examples | Sequence[Example],
    key: dict[str, Any],
    batch_size: int,
    num_workers: int,
    shard_size: int,
) -> None:
    state = PartialState(cpu=adapter.device.type == "cpu")  # what accelerate launched, unless that is known already
    if store.index:
        require_same(store.folder, store.index["key"], key)
    read = partial(_read, examples, workers=num_workers, state=state)
    if not store.index or key["data_key"] is None or store.index["key"]["data_key"] is None:
        digests = _survey(read, len(examples), batch_size, state)
        key["data"] = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
        if store.index:
            require_same(store.folder, store.index["key"], key)
        elif state.is_main_process:
            images = list(dict.fromkeys(picture for _, picture in digests))
            number = {picture: k for k, picture in enumerate(images)}
            store.begin(
                key=key,
                shard_size=shard_size,
                counts={"samples": len(digests), "images": len(images)},
                images=images,
                image_of=[number[picture] for _, picture in digests],
            )
        state.wait_for_everyone()
        store.reload()
    missing = store.missing()
    state.wait_for_everyone()  # nobody writes before all have seen what is missing
    mine = missing[state.process_index :: state.num_processes]
    shrink = _halved if key["dtype"] == "float16" else dict
    _write_samples(adapter, store, [name for name in mine if name.startswith("samples")], read, batch_size, shrink)
    _write_images(
        adapter.decoder, store, [name for name in mine if name.startswith("images")], read, batch_size, shrink
    )
    state.wait_for_everyone()
    if state.is_main_process:
        store.finish()
    state.wait_for_everyone()


@contextmanager
def _image_encoder(decoder: MaskDecoder, wanted: bool) -> Iterator[None]:
    """Inside, there is one, if it is wanted; outside, only if there was before."""
    borrowed = wanted and decoder.image_encoder is None
    if borrowed:
        decoder.load_image_encoder()
    try:
        yield
    finally:
        if borrowed:
            decoder.image_encoder = None


def _require_whole_base(adapter: LensAdapter) -> None:
    if any(isinstance(parameter, DTensor) for parameter in adapter.base.model.parameters()):
        raise LensConfigError(
            "Every process writes features by itself, with a base of its own; this one is sharded over processes. Load "
            "it whole, in fewer bits, or with device_map='auto' in one process."
        )


# -- reading the data -------------------------------------------------------------------------------------------------


Read = Callable[..., Iterator[Any]]
Shrink = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _read(
    examples: Examples | Sequence[Example],
    batches: list[list[int]],
    collate: Callable[[list[Example]], Any],
    what: str,
    *,
    workers: int,
    state: PartialState,
) -> Iterator[Any]:
    """`collate` of the examples of each batch, with a progress bar that counts examples."""
    items = cast(Dataset[Example], examples)  # for torch, whatever has a length and items is one
    loader = DataLoader(items, batch_sampler=batches, collate_fn=collate, num_workers=workers)
    silent = not batches or not state.is_local_main_process
    with tqdm(total=sum(map(len, batches)), desc=what, unit="example", disable=silent) as bar:
        for batch, made in zip(batches, loader, strict=True):
            yield made
            bar.update(len(batch))


def _survey(read: Read, count: int, batch_size: int, state: PartialState) -> list[tuple[str, str]]:
    """Of every example, a digest of all it says, and one of its picture; each process reads its share."""
    if not count:
        raise InputError("There are no examples to make features of.")
    mine = list(range(count))[state.process_index :: state.num_processes]
    found = [pair for pairs in read(_chunks(mine, batch_size), _digests, "reading the data") for pair in pairs]
    everyone = gather_object(list(zip(mine, found, strict=True)))
    return [tuple(pair) for _, pair in sorted(everyone)]


def _digests(examples: list[Example]) -> list[tuple[str, str]]:
    pairs = []
    for example in examples:
        check_example(example)
        whole, picture = hashlib.sha256(example.prompt.encode()), picture_digest(example.image)
        whole.update(picture.encode() + example.mask.tobytes())
        whole.update(b"" if example.ignore is None else example.ignore.tobytes())
        pairs.append((whole.hexdigest()[:32], picture))
    return pairs


def picture_digest(image: Image.Image) -> str:
    """Changes with any pixel."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]


def _texts(example: Example) -> dict[str, str]:
    """All that an example says in words."""
    return {name: value for name, value in vars(example).items() if isinstance(value, str)}


def _chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


# -- reading the frozen parts -----------------------------------------------------------------------------------------


def _write_samples(
    adapter: LensAdapter, store: FeatureStore, names: list[str], read: Read, batch_size: int, shrink: Shrink
) -> None:
    chunks = {name: _chunks(store.rows(name), batch_size) for name in names}
    batches = read([chunk for name in names for chunk in chunks[name]], LensCollator(adapter), "reading the base")
    for name in names:
        samples: list[dict[str, Tensor]] = []
        for _ in chunks[name]:
            taken, same = _take(adapter, next(batches)["batch"])
            samples += map(shrink, taken)
        store.write(name, samples, layer_constants=same)  # CachedFeatures sees to it that they are one and the same
    _finish(batches)


def _write_images(
    decoder: MaskDecoder, store: FeatureStore, names: list[str], read: Read, batch_size: int, shrink: Shrink
) -> None:
    index = store.index
    first = {number: k for k, number in reversed(list(enumerate(index["image_of"])))}  # an example that shows it
    chunks = {name: _chunks(store.rows(name), batch_size) for name in names}
    batches = read([[first[k] for k in chunk] for name in names for chunk in chunks[name]], _pictures, "reading SAM")
    for name in names:
        embeddings: list[dict[str, Tensor]] = []
        for numbers in chunks[name]:
            pictures = next(batches)
            if [picture_digest(picture) for picture in pictures] != [index["images"][k] for k in numbers]:
                raise InputError(
                    "A dataset gave another picture than before for the same index. Features can be cached of "
                    "examples that are the same each time; leave random changes out."
                )
            encoded = decoder.encode_images(pictures)
            if not is_finite(encoded):
                raise LensError(
                    f"SAM's image encoder, in {str(decoder.dtype).removeprefix('torch.')}, computed numbers that are "
                    "infinite or none (NaN); expected finite ones. Load the head in bfloat16 or float32."
                )
            embeddings += [shrink({"embedding": one}) for one in encoded]
        store.write(name, embeddings)
    _finish(batches)


def _pictures(examples: list[Example]) -> list[Image.Image]:
    return [example.image for example in examples]


def _finish(batches: Iterator[Any]) -> None:
    """Let a generator come to its end."""
    next(batches, None)


def _take(adapter: LensAdapter, batch: Batch) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """What to store of each row of a batch, and the arguments of the tapped layer that are the same for all."""
    reading = batch.read(adapter)
    signals = reading.signals
    mask = signals.attention_mask
    count, total = signals.hidden.shape[:2]
    mask = torch.ones(count, total, dtype=torch.bool) if mask is None else mask.cpu() != 0
    tokens = [row.nonzero().flatten() for row in mask]
    config = adapter.config
    layers: list[dict[str, Tensor]] = [{} for _ in tokens]
    same: dict[str, Any] = {}
    if config.fusion == "mirror":
        layers = take_apart(signals, adapter.base.anatomy, config.tap_layer, tokens)
        same = constants(signals)
    attended = [signals.attention[layer][:, :, -1] for layer in dict.fromkeys(config.attention_layers)]  # (B, heads, T)
    samples = []
    for row, kept in enumerate(tokens):
        place = mask[row].cumsum(0) - 1  # of each token among those that are kept
        layout, example = reading.layouts[row], batch.samples[row]
        masks, heat = batch.targets.masks[row], batch.targets.heat[row]
        ignored = masks[:0] > 0, heat[:0] > 0
        if example.ignore is not None and batch.targets.ignored is not None:
            ignored = batch.targets.ignored[0][row], batch.targets.ignored[1][row]
        sample = {
            "hidden": signals.hidden[row].cpu()[kept],  # (t, D)
            "positions": place[layout.positions.cpu()].int(),
            "boxes": layout.boxes.float().cpu(),
            "grid": torch.tensor(layout.grid or (), dtype=torch.int32),
            "size": torch.tensor(reading.image_sizes[row], dtype=torch.int32),
            "masks": masks,
            "heat": heat,
            "ignored.masks": ignored[0],
            "ignored.heat": ignored[1],
            "runs": _runs(example.mask),
            "ignored.runs": torch.empty(0, dtype=torch.uint8) if example.ignore is None else _runs(example.ignore),
            "texts": _bytes(json.dumps(_texts(example)).encode()),
        }
        if attended:  # layers may have different numbers of heads
            most = max(heads.shape[1] for heads in attended)
            columns = [pad(heads[row].cpu()[:, kept].mT, (0, most - heads.shape[1])) for heads in attended]
            sample["attention"] = torch.stack(columns, dim=1)  # (T, layers, heads)
        if layers[row]:
            sees = layers[row].pop("sees")
            sample["layer.sees"] = torch.from_numpy(np.packbits(sees.cpu().numpy()))
            arguments = layers[row].items()
            sample |= {f"layer.{name}": x.cpu() if x.is_floating_point() else x.cpu().int() for name, x in arguments}
        samples.append(sample)
    return samples, same


def _runs(mask: np.ndarray) -> Tensor:
    """bool (H, W) -> COCO's compressed run lengths."""
    return _bytes(coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision, but for boxes, whose edges are compared with one another.

    Raises:
        LensError: a number is too large for it.
    """
    small = {k: x.half() if x.is_floating_point() and k != "boxes" else x for k, x in tensors.items()}
    if large := [k for k, x in small.items() if x.is_floating_point() and not x.isfinite().all()]:
        raise LensError(
            f"{large[0]!r} holds numbers up to {tensors[large[0]].abs().max():.3g}, and float16 ends at 65504. Cache "
            'these features with dtype="exact".'
        )
    return small
