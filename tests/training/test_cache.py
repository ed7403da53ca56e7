"""Training from cached features: the same losses without the base; a folder that is whole, fresh and of this head."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import PreTrainedModel

from lens_adapter import LensAdapter
from lens_adapter.data.examples import Example
from lens_adapter.errors import InputError, LensConfigError, LensError, StaleFeaturesError, UnsupportedModelError
from lens_adapter.signals import LensSignals
from lens_adapter.training import CachedFeatures, cache_features
from lens_adapter.training.cache.layer_arguments import require_kernel, take_apart
from lens_adapter.training.cache.read import FeatureBatch, collate_features
from lens_adapter.training.cache.store import FeatureStore
from lens_adapter.training.collate import LensCollator
from tests.tiny.adapters import tiny_adapter, tiny_trio
from tests.tiny.decoders import DECODERS
from tests.tiny.pairs import tiny_pair
from tests.tiny.processes import run_two
from tests.tiny.sam import tiny_sam, tiny_sam_model
from tests.tiny.training import curve, make_trainer, toy_samples
from tests.zoo.specimens import ZOO

EXACT = 1e-4  # of losses between 3 and 20: rounding of other batches, grown over four steps of training
SMALL = 0.05  # with float16 features


def example_set(count: int = 5) -> list[Example]:
    """Pictures of several sizes, prompts of several lengths, one about nothing, one picture twice, one with a region to
    ignore."""
    samples = toy_samples(count, absent=(2,))
    ignore = np.zeros_like(samples[1].mask)
    ignore[30:, 40:] = True
    return [*samples[:1], replace(samples[1], ignore=ignore), *samples[2:], replace(samples[0], prompt="a red cup")]


def trio(architecture: str, fusion: str, attention: str, decoder: str = "") -> tuple[LensAdapter, PreTrainedModel]:
    """The same at each call: a base, `decoder` in it where one is named, and an adapter attached to it."""
    if architecture == "gemma3":  # image tokens see each other
        model, processor = ZOO["gemma3"].build()
        model.set_attn_implementation(attention)
    else:
        text = DECODERS[decoder] if decoder else None
        model, processor = tiny_pair(architecture, attention=attention, text=text)
    sliding = {"tap_layer": 2} if decoder else {}
    return tiny_adapter(model, processor, fusion, **sliding), model


# -- the same training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture, fusion, attention, decoder",
    [
        ("llava", "lite", "sdpa", ""),
        ("llava", "mirror", "sdpa", ""),
        ("qwen2_vl", "lite", "eager", ""),
        ("qwen2_vl", "mirror", "eager", ""),  # M-RoPE
        ("qwen3_vl", "mirror", "sdpa", ""),
        ("llava", "mirror", "eager", "gemma2"),  # a sliding layer, and soft-capped scores
        ("llava", "mirror", "sdpa", "mistral"),  # sliding windows
        ("gemma3", "mirror", "sdpa", ""),
    ],
)
def test_losses_are_those_of_live_training(tmp_path, architecture, fusion, attention, decoder):
    data, held_out = example_set(), example_set(3)
    live = make_trainer(
        tmp_path, trio(architecture, fusion, attention, decoder)[0], samples=data, eval_dataset=held_out, max_steps=4
    )
    live.train()
    adapter, model = trio(architecture, fusion, attention, decoder)
    features = cache_features(adapter, data, tmp_path / "train", batch_size=1, shard_size=4)
    validation = cache_features(adapter, held_out, tmp_path / "validation", batch_size=3)
    lengths = {len(row.tensors["hidden"]) for row in features}
    assert len(lengths) > 1  # so batches are padded
    if fusion == "mirror":
        plain = [not len(row.tensors["layer.sees"]) for row in features]
        assert not any(plain) if decoder or architecture == "gemma3" else all(plain)
    adapter.detach()
    model.to("meta")
    cached = make_trainer(tmp_path, adapter, samples=features, eval_dataset=validation, max_steps=4)
    cached.train()
    np.testing.assert_allclose(curve(cached), curve(live), atol=EXACT)
    expected, got = live.evaluate(), cached.evaluate()
    for name in ("eval_loss", "eval_giou", "eval_ciou", "eval_no_target_accuracy"):
        assert got[name] == pytest.approx(expected[name], abs=2e-3), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Whole features of `example_set` for the tiny LLaVA and a lite head, three to a shard."""
    folder = tmp_path_factory.mktemp("features") / "lite"
    cache_features(tiny_trio()[0], example_set(), folder, shard_size=3, batch_size=2)
    return folder


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    for file in folder.iterdir():
        (tmp_path / "features").mkdir(exist_ok=True)
        (tmp_path / "features" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "features"


def same_features(one: CachedFeatures, two: CachedFeatures) -> None:
    assert len(one) == len(two)
    for mine, theirs in zip(one, two, strict=True):
        assert mine.image == theirs.image and torch.equal(mine.embedding, theirs.embedding)
        torch.testing.assert_close(mine.tensors, theirs.tensors, atol=0, rtol=0)


def test_neither_base_nor_image_encoder(tmp_path):
    sam = {**tiny_sam(include_image_encoder=False), "weights": str(tmp_path / "sam")}
    tiny_sam_model(tiny_sam()).save_pretrained(tmp_path / "sam")
    adapter = tiny_trio(sam=sam)[0]
    features = cache_features(adapter, example_set(), tmp_path / "features")
    assert adapter.decoder.image_encoder is None  # borrowed
    assert features.key["sam_weights"] is not None
    adapter.detach()
    trainer = make_trainer(tmp_path, adapter, samples=features, max_steps=1)
    trainer.train()
    assert adapter.decoder.image_encoder is None and not adapter.is_attached
    trainer.save_model()
    assert not LensAdapter.from_pretrained(tmp_path).decoder.unsaved_keys


def test_a_picture_is_stored_once(folder):
    features = CachedFeatures(folder)
    assert [row.image for row in features] == [0, 1, 2, 3, 4, 0]
    assert features.store.index["counts"] == {"samples": 6, "images": 5}
    batch = collate_features([features[0], features[5], features[-2]])["batch"]
    assert len(batch.embeddings) == 2 and batch.image_index.tolist() == [0, 0, 1]
    with pytest.raises(IndexError, match="features of 6 examples; got the index 6"):
        features[6]


def test_what_comes_back(folder):
    for row, example in zip(CachedFeatures(folder), example_set(), strict=True):
        (sample,) = collate_features([row])["batch"].samples
        assert sample.prompt == example.prompt and sample.image is None
        np.testing.assert_array_equal(sample.mask, example.mask)
        assert (sample.ignore is None) == (example.ignore is None)
        if example.ignore is not None:
            np.testing.assert_array_equal(sample.ignore, example.ignore)


def test_targets_are_those_of_the_live_collator(folder):
    live = LensCollator(tiny_trio()[0])(example_set())["batch"].targets
    cached = collate_features(list(CachedFeatures(folder)))["batch"].targets
    assert torch.equal(cached.masks, live.masks) and torch.equal(cached.heat, live.heat)
    assert all(map(torch.equal, cached.ignored, live.ignored))


def test_workers_get_no_more_than_they_need(folder):
    batch = collate_features(list(CachedFeatures(folder))[:2])
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors_in(batch)}
    assert sum(storages.values()) <= sum(x.nbytes for x in tensors_in(batch))  # no view that drags a shard along
    assert pickle.loads(pickle.dumps(CachedFeatures(folder)))[1].image == 1


@pytest.mark.parametrize("fusion", ["mirror", "lite"])
def test_all_that_a_head_reads_is_moved_at_once(tmp_path, fusion, monkeypatch):
    cache_features(tiny_trio(fusion=fusion)[0], example_set(), tmp_path)
    batch = collate_features(list(CachedFeatures(tmp_path)))["batch"]
    stay = {"layouts", "sizes", "truths"}  # small, or read on the CPU

    def read(batch: FeatureBatch) -> list[Tensor]:
        return tensors_in([value for name, value in vars(batch).items() if name not in stay])

    moved = send_to_device({"batch": batch}, "meta")["batch"]  # as Trainer's loader does
    assert {tensor.device.type for tensor in read(moved)} == {"meta"} and moved.truths is batch.truths
    assert [tensor.shape for tensor in read(moved)] == [tensor.shape for tensor in read(batch)]
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self + 0)  # there is no accelerator to pin it for
    pinned = pin_memory({"batch": batch})["batch"]  # as torch's loader does
    assert all(map(torch.equal, read(pinned), read(batch)))
    assert not {tensor.data_ptr() for tensor in read(pinned)} & {tensor.data_ptr() for tensor in read(batch)}


def tensors_in(thing: Any) -> list[Tensor]:
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, dict):
        return tensors_in(list(thing.values()))
    if isinstance(thing, list | tuple):
        return [x for item in thing for x in tensors_in(item)]
    return tensors_in(list(vars(thing).values())) if hasattr(thing, "__dataclass_fields__") else []


def test_workers_change_nothing(tmp_path, folder):
    adapter = tiny_trio()[0]
    helped = cache_features(adapter, example_set(), tmp_path / "f", shard_size=3, batch_size=2, num_workers=1)
    same_features(helped, CachedFeatures(folder))
    curves = []
    for workers in (0, 1):
        trainer = make_trainer(tmp_path, samples=helped, max_steps=2, dataloader_num_workers=workers)
        trainer.train()
        curves.append(curve(trainer))
    assert curves[0] == curves[1]


def test_parts_of_caches(tmp_path, folder):
    features = CachedFeatures(folder)
    for data in (Subset(features, [0, 3]), ConcatDataset([features, features])):
        trainer = make_trainer(tmp_path, samples=data, max_steps=1)
        trainer.train()
        assert np.isfinite(curve(trainer)).all()


# -- float16 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["lite", "mirror"])
def test_half_precision_is_half_as_large_and_nearly_as_good(tmp_path, fusion):
    curves, sizes = [], []
    for dtype in ("exact", "float16"):
        adapter = tiny_trio(fusion=fusion)[0]
        features = cache_features(adapter, example_set(), tmp_path / dtype, dtype=dtype)
        sizes.append(features[0].tensors["hidden"].nbytes + features[0].embedding.nbytes)
        trainer = make_trainer(tmp_path, adapter, samples=features)
        trainer.train()
        curves.append(curve(trainer))
    assert 2 * sizes[1] == sizes[0]
    assert curves[0] != curves[1]
    np.testing.assert_allclose(curves[1], curves[0], rtol=SMALL)


def test_numbers_beyond_half_precision(tmp_path):
    adapter, model, _ = tiny_trio()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e7)
    with pytest.raises(LensError, match=r"'hidden' holds numbers up to .*e\+0.* ends at 65504.*exact"):
        cache_features(adapter, example_set(), tmp_path / "f", dtype="float16")
    with pytest.raises(LensConfigError, match="dtype must be one of"):
        cache_features(adapter, example_set(), tmp_path / "f", dtype="float8")


# -- stopped, damaged, stale ------------------------------------------------------------------------------------------


def test_stopped_and_gone_on_with(tmp_path, folder, monkeypatch):
    write, written = FeatureStore.write, []

    def stop(store: FeatureStore, name: str, *args: Any, **kwargs: Any) -> None:
        if len(written) == 1:
            (store.folder / f".{name}.99.part").write_bytes(b"half a shard")
            (store.folder / name).write_bytes(b"")  # renamed, but the run died before it could say so
            raise KeyboardInterrupt
        written.append(name)
        write(store, name, *args, **kwargs)

    adapter = tiny_trio()[0]
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            cache_features(adapter, example_set(), tmp_path / "f", shard_size=3, batch_size=2)
    with pytest.raises(StaleFeaturesError, match=r"lacks 3 of 4 shards.*goes on where it was stopped"):
        CachedFeatures(tmp_path / "f")
    rows, read = [], adapter.base.read
    monkeypatch.setattr(
        adapter.base, "read", lambda images, *rest, **more: rows.append(len(images)) or read(images, *rest, **more)
    )
    features = cache_features(adapter, example_set(), tmp_path / "f", shard_size=99, batch_size=2)
    assert sum(rows) == 3  # the second shard's
    same_features(features, CachedFeatures(folder))
    assert sorted(file.name for file in (tmp_path / "f").iterdir()) == sorted(file.name for file in folder.iterdir())
    cache_features(adapter, example_set(), tmp_path / "f")
    assert sum(rows) == 3


def test_a_damaged_shard(copied, folder):
    file = copied / "samples-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    CachedFeatures(copied, verify=False)
    with pytest.raises(
        StaleFeaturesError, match=r"samples-00001.safetensors is damaged: expected the SHA-256 .*Delete"
    ):
        CachedFeatures(copied)
    file.unlink()
    with pytest.raises(StaleFeaturesError, match=r"lacks 1 of 4 shards, e.g. samples-00001"):
        CachedFeatures(copied)
    same_features(cache_features(tiny_trio()[0], example_set(), copied, batch_size=2), CachedFeatures(folder))
    with pytest.raises(StaleFeaturesError, match=r"holds no index.json"):
        CachedFeatures(copied.parent)


def test_features_of_something_else(copied):
    def refused(complaint: str, adapter: LensAdapter, data: list[Example] | None = None, **options: Any) -> None:
        with pytest.raises(StaleFeaturesError, match=complaint):
            cache_features(adapter, data or example_set(), copied, **options)

    adapter, model, processor = tiny_trio()
    refused("tap_layer: expected 1, got 2", tiny_adapter(model, processor, tap_layer=1, attention_layers=[1, 2]))
    refused(r"attention_layers: expected \[2\], got \[1, 2\]", tiny_adapter(model, processor, attention_layers=[2]))
    refused("layer_arguments: expected True, got False", tiny_adapter(model, processor, "mirror"))
    refused("prompt_template: expected", tiny_adapter(model, processor, prompt_template="{prompt}?"))
    refused("sam: expected .*'patch_size': 16", tiny_adapter(model, processor, sam=tiny_sam(patch_size=16)))
    refused("dtype: expected float16, got exact", adapter, dtype="float16")
    refused("processor: expected", tiny_adapter(*tiny_pair("llava", "squash")))
    data = example_set()
    data[3].mask[0, 0] ^= True
    refused("data: expected", adapter, data)
    refused("data: expected", adapter, data[:3])
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 3] += 1
    refused("base_weights: expected .*, got .*Name another folder", adapter)
    adapter = tiny_trio()[0]
    with torch.no_grad():
        adapter.decoder.image_encoder.neck[0].weight[0] += 1
    refused("sam_weights: expected", adapter)
    adapter.detach()
    with pytest.raises(StaleFeaturesError, match="sam_weights"):
        make_trainer(copied, adapter, samples=CachedFeatures(copied))


def test_a_key_of_the_data_saves_reading_them(tmp_path, monkeypatch):
    adapter, data = tiny_trio()[0], example_set()
    cache_features(adapter, data, tmp_path / "f", data_key="v1")
    with monkeypatch.context() as patch:
        patch.setattr("lens_adapter.training.cache.write._survey", None)
        cache_features(adapter, data, tmp_path / "f", data_key="v1")
        with pytest.raises(StaleFeaturesError, match="data_key: expected v2, got v1"):
            cache_features(adapter, data, tmp_path / "f", data_key="v2")
    cache_features(adapter, data, tmp_path / "f")


def test_pictures_that_change(tmp_path):
    class Restless(list):
        def __getitem__(self, index: int) -> Example:
            example = super().__getitem__(index)
            example.image.putpixel(
                (0, 0), tuple(np.random.default_rng(time.monotonic_ns()).integers(0, 256, 3).tolist())
            )
            return example

    with pytest.raises(InputError, match="another picture than before"):
        cache_features(tiny_trio()[0], Restless(example_set()), tmp_path / "f")
    with pytest.raises(InputError, match="There are no examples"):
        cache_features(tiny_trio()[0], [], tmp_path / "g")


# -- what cannot be cached --------------------------------------------------------------------------------------------


def test_arguments_that_are_not_understood():
    adapter = tiny_trio(fusion="mirror")[0]
    anatomy, rows = adapter.base.anatomy, [torch.arange(4)]
    mask = torch.zeros(1, 1, 4, 4)
    for arguments, complaint in (
        ({"alibi": torch.zeros(1, 4, 4)}, r"'alibi' \(torch.float32 \(1, 4, 4\)\).*named one of"),
        ({"shared": {}}, "'shared'"),
        ({"position_ids": torch.zeros(1, 5)}, "position_ids"),
        ({"position_embeddings": torch.zeros(1, 4, 2, dtype=torch.complex64)}, "complex64"),
        ({"attention_mask": mask - 0.5}, "other numbers than 0"),
        ({"attention_mask": mask.expand(1, 2, 4, 4)}, r"\(1, 2, 4, 4\)"),
        ({"attention_mask": torch.ones(1, 4)}, r"\(1, 4\)"),
    ):
        signals = LensSignals(hidden=torch.zeros(1, 4, 8), layer_kwargs=arguments)
        with pytest.raises(UnsupportedModelError, match=complaint):
            take_apart(signals, anatomy, 2, rows)
    with pytest.raises(UnsupportedModelError, match=r"'flash_attention_2'. Load the base with .*'eager', 'sdpa'"):
        require_kernel("flash_attention_2")


def test_trainers_that_cannot_be(tmp_path, folder):
    features = CachedFeatures(folder)
    with pytest.raises(LensConfigError, match="either all or none"):
        make_trainer(tmp_path, samples=features, eval_dataset=example_set())
    with pytest.raises(LensConfigError, match="pictures, which cached features do not hold"):
        make_trainer(tmp_path, samples=features, sample_grid_steps=1, eval_dataset={"some": features})
    with pytest.raises(InputError, match=r"Expected items of CachedFeatures.*got Example"):
        make_trainer(tmp_path, samples=features).predict(example_set())
    with pytest.raises(InputError, match=r"must be an Example.*got Features"):
        make_trainer(tmp_path).predict(features)
    with pytest.raises(StaleFeaturesError, match="tap_layer: expected 3, got 2"):
        make_trainer(tmp_path, tiny_trio(tap_layer=3)[0], samples=features)


# -- processes --------------------------------------------------------------------------------------------------------


def _one_of_two(rank: int, folder: Path) -> None:
    write = FeatureStore.write

    def noted(store: FeatureStore, name: str, *args: Any, **kwargs: Any) -> None:
        (folder / f"{rank}-{name}").touch()
        write(store, name, *args, **kwargs)

    FeatureStore.write = noted
    cache_features(tiny_trio()[0], example_set(), folder / "features", shard_size=3, batch_size=2)
    torch.distributed.destroy_process_group()


def test_two_processes_write_what_one_does(tmp_path, folder):
    run_two(_one_of_two, tmp_path)
    same_features(CachedFeatures(tmp_path / "features"), CachedFeatures(folder))
    assert sorted(file.name for file in tmp_path.glob("?-*")) == [
        "0-images-00000.safetensors",
        "0-samples-00000.safetensors",
        "1-images-00001.safetensors",
        "1-samples-00001.safetensors",
    ]
