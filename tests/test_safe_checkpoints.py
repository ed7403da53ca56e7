"""A checkpoint from anywhere: names no code and no other place, asks for nothing enormous, is whole or refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.bounds import MOST_SAM, names_a_source, require_bounded, without_sources
from lens_adapter.checkpoint import SAVED, current, saving
from lens_adapter.errors import CheckpointMismatchError, InputError, LensConfigError, LensError
from lens_adapter.vlm.rebuilding import build_layers
from tests.attacks.heads import SOURCES, TOWERS
from tests.attacks.saves import STEPS, dying, full_after
from tests.attacks.workers import closed_sockets
from tests.tiny.adapters import tiny_trio
from tests.tiny.models import tiny_model


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> dict[str, Path]:
    """A head of each kind, to be copied."""
    root = tmp_path_factory.mktemp("heads")
    for fusion in ("lite", "mirror"):
        tiny_trio(fusion=fusion)[0].save_pretrained(root / fusion)
    return {fusion: root / fusion for fusion in ("lite", "mirror")}


@pytest.fixture
def lite(heads, tmp_path) -> Path:
    return Path(shutil.copytree(heads["lite"], tmp_path / "lite"))


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads((folder / "config.json").read_text())
    edit(facts)
    (folder / "config.json").write_text(json.dumps(facts))


def keys_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(key for part in value.values() for key in keys_in(part))}
    return {key for part in value for key in keys_in(part)} if isinstance(value, list) else set()


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """Warnings of the config."""
    messages: list[str] = []
    logger = transformers_logging.get_logger("lens_adapter.config")
    monkeypatch.setattr(logger, "warning", lambda text, *args: messages.append(text % args))
    return messages


# -- it names no code and no other place

PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "config": lambda facts: facts,
    "base": lambda facts: facts["base_config"],
    "text": lambda facts: facts["base_config"]["text_config"],
    "vision": lambda facts: facts["base_config"]["vision_config"],
    "in a list": lambda facts: facts["base_config"].setdefault("stages", [[{}]])[0][0],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: next(iter(source)))
def test_what_names_a_source_is_dropped_with_one_word_about_it(heads, said, place, source):
    facts = json.loads((heads["mirror"] / "config.json").read_text())
    PLACES[place](facts).update(source)
    config = LensConfig.from_dict(facts)
    assert not any(map(names_a_source, keys_in(config.base_config)))
    assert getattr(config, "_attn_implementation", None) in (None, "eager", "sdpa")
    assert not hasattr(config, "auto_map") and not hasattr(config, "quantization_config")
    quiet = ("_name_or_path", "name_or_path", "_commit_hash")
    inside = {*source} if place == "config" else keys_in(source)  # a key that is unknown takes its value along
    spoken = {key for key in inside if names_a_source(key) and key not in quiet}
    about = [text for text in said if "does not say which implementation" in text]
    assert len(about) == bool(spoken), said
    with closed_sockets() as wanted:
        build_layers(config.base_config, [2])
    assert not wanted


@pytest.mark.parametrize("place", PLACES)
def test_a_head_that_names_a_kernel_loads_without_it(heads, tmp_path, place):
    folder = Path(shutil.copytree(heads["mirror"], tmp_path / "head"))
    named = {"_attn_implementation": "owner/kernel", "auto_map": {"AutoModel": "owner/code--remote.Remote"}}
    edit_config(folder, lambda facts: PLACES[place](facts).update(named))
    with closed_sockets() as wanted:
        loaded = LensAdapter.from_pretrained(folder)
    assert not wanted and loaded.digest() == LensAdapter.from_pretrained(heads["mirror"]).digest()
    for module in loaded.modules():
        assert "owner" not in str(getattr(getattr(module, "config", None), "_attn_implementation", ""))


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: f"{tower['model_type']}-{len(tower)}")
def test_no_part_of_a_base_is_fetched(part, tower):
    facts = tiny_model("llava").config.to_dict() | {part: tower}
    with closed_sockets() as wanted, suppress(LensError):
        assert len(build_layers(facts, [2])) == 1  # the default tower stands in
    assert not wanted


def test_a_folder_that_sends_transformers_elsewhere_is_refused(lite):
    named = {"base_model_name_or_path": "owner/other", "peft_type": "LORA"}
    (lite / "adapter_config.json").write_text(json.dumps(named))
    with closed_sockets() as wanted, pytest.raises(CheckpointMismatchError, match=r"adapter_config\.json"):
        LensAdapter.from_pretrained(lite)
    assert not wanted


# -- it asks for nothing enormous

HUGE = (2**31, 2**63, 10**400, -1, 0, 1.5, float("nan"), "x", [2**31], None)
COUNTS = ("fusion_layers", "num_keypoints", "hidden_size", "num_hidden_layers", "num_attention_heads", "fusion_width")


@pytest.mark.parametrize("key", COUNTS)
def test_numbers_of_a_head_have_ends(key):
    for value in HUGE:
        with pytest.raises(LensConfigError, match=rf"LensConfig\.{key}\b"):
            LensConfig(**{"fusion": "lite", key: value})


@pytest.mark.parametrize("key", MOST_SAM)
def test_numbers_of_sam_have_ends(key):
    for value in (2**31, 10**400, -1, float("nan"), "x", [3], None):
        with pytest.raises(LensConfigError, match=r"LensConfig\.sam\['"):
            LensConfig(sam={"variant": "vit_b", key: value})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"suppression_radius": 1e300}, "suppression_radius"),
        ({"attention_layers": [1] * 100_000}, "attention_layers"),
        ({"prompt_template": "{prompt}" + "x" * 10**6}, "prompt_template"),
        ({"readout": {"heads": [[0, 0]] * 5000}, "fusion": "readout"}, "readout"),
        ({"sam": {"variant": ["vit_b"]}}, "variant"),
        ({"sam": {"image_size": 4096, "patch_size": 1}}, "image_size"),
        ({"fusion_width": 8192, "fusion_layers": 64}, "GB"),
        ({"hidden_size": 65_536, "fusion": "mirror", "num_hidden_layers": 8}, "GB"),
        ({"dtype": "float9000"}, "dtype"),
        ({"dtype": 3}, "dtype"),
        ({"torch_dtype": ["float32"]}, "torch_dtype"),
        ({"architectures": "LensAdapter"}, "architectures"),
        ({"transformers_version": 5}, "transformers_version"),
        ({"head_sha256": "x"}, "head_sha256"),
        ({"base_config": {"model_type": 3}}, "base_config"),
        ({"base_config": {"model_type": "llava", "text_config": {"num_hidden_layers": 2**31}}}, "num_hidden_layers"),
        ({"base_config": {"text_config": {"hidden_size": -(2**31)}}}, "hidden_size"),
        ({"base_config": {"vision_config": {"depth": 10**400}}}, "depth"),
        ({"base_config": {"text_config": {"layer_types": [2**40]}}}, "layer_types"),
        ({"base_config": {"text_config": {"num_hidden_layers": 512, "n_routed_experts": 4096}}}, "experts"),
        ({"base_config": {"text_config": {"rms_norm_eps": float("nan")}}}, "rms_norm_eps"),
        ({"base_config": {"text_config": {"num_labels": 2**31}}}, "num_labels"),
        ({"base_config": {"a": list(range(1_100_000))}}, "values"),
        ({"base_config": {"dtype": ["float32"]}}, "dtype"),
        ({"fusion": "readout", "readout": {"more": {"dtype": 0.5}}}, "dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_head_has_is_refused_by_name(fields, named):
    with pytest.raises(LensConfigError, match=named):
        LensConfig(**{"fusion": "lite", **fields})


def test_what_is_nested_too_deeply_is_refused():
    deep: Any = 1
    for _ in range(400):
        deep = {"a": [deep]}
    for field in ({"base_config": deep}, {"training": [deep]}, {"readout": deep}):
        with pytest.raises(LensConfigError, match="levels deep"):
            LensConfig(fusion="lite", **field)


def test_published_sizes_are_far_from_the_ends():
    facts = {
        "max_position_embeddings": 10_485_760,
        "rope_theta": 10**11,
        "vocab_size_per_layer_input": 262_144,
        "num_hidden_layers": 126,
        "num_experts": 512,
        "num_attention_heads": 128,
        "hidden_size": 16_384,
        "intermediate_size": 53_248,
        "time_step_limit": [0.0, float("inf")],
        "max_window_layers": 100_000,
        "layer_types": ["full_attention"] * 126,
        "bos_token_id": -1,
    }
    words = dict.fromkeys(("layers", "experts", "head", "backbone", "dtype", "attn_implementation"), 150000)
    base = {"text_config": facts, "vocabulary_map": words, "label2id": words}
    assert without_sources(base) == (base, [])  # of words nothing is a setting
    require_bounded(base)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": -48},
        {"intermediate_size": 2**31 - 1, "hidden_size": 65_536},
        {"num_attention_heads": "x"},
        {"num_attention_heads": 0},
        {"rope_scaling": {"rope_type": "nowhere"}},
        {"max_position_embeddings": None, "vocab_size": None},
        {"hidden_act": "boom"},
        {"model_type": "nothing"},
        {"id2label": {"x": 1}},
        {"model_type": "rwkv"},
    ],
    ids=str,
)
def test_a_base_that_cannot_be_built_is_an_error_of_ours(changes):
    facts = tiny_model("llava").config.to_dict()
    facts["text_config"] |= changes
    with pytest.raises(LensError):
        build_layers(facts, [2])


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"3", b"[1]", b'"lens"', b"1" + b"0" * 5000, b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"{"],
    ids=lambda content: str(content[:12]),
)
def test_a_config_that_is_none_is_an_error_of_ours(lite, content):
    (lite / "config.json").write_bytes(content)
    for load in (LensAdapter.from_pretrained, LensConfig.from_pretrained):
        with pytest.raises(LensConfigError, match=r"config\.json|model_type"):
            load(lite)


def test_nothing_is_made_of_a_config_that_its_weights_do_not_fit(lite, monkeypatch):
    """transformers would make the tensors first, of any size, and then say that they do not fit."""
    edit_config(lite, lambda facts: facts.update(fusion_width=2048, fusion_layers=20))  # 4 GB
    made: list[torch.Size] = []
    empty = torch.empty

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        made.extend([tensor.shape] if tensor.numel() > 10**6 and not tensor.is_meta else [])
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    with pytest.raises(CheckpointMismatchError, match="mismatched_keys"):
        LensAdapter.from_pretrained(lite)
    assert not made


# -- config and weights are of one save


def test_weights_of_another_save_are_refused(lite):
    tensors = load_file(lite / "model.safetensors")
    tensors["head.descriptors.text_vector"] += 1e-6
    save_file(tensors, lite / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointMismatchError, match=r"not of one save: expected .* got .* head_sha256"):
        LensAdapter.from_pretrained(lite)
    edit_config(lite, lambda facts: facts.pop("head_sha256"))
    assert LensAdapter.from_pretrained(lite)  # of before there were digests


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_digest_is_of_the_files_whatever_they_are_loaded_as(lite, dtype, tmp_path):
    loaded = LensAdapter.from_pretrained(lite, dtype=dtype)
    loaded.save_pretrained(tmp_path / "again")
    assert LensAdapter.from_pretrained(tmp_path / "again", dtype=torch.float32).config.head_sha256 == loaded.digest()


@pytest.mark.parametrize("name", builtin.HEADS)
def test_heads_that_ship_load(name):
    assert LensAdapter.from_pretrained(builtin.HEADS[name]).config.fusion == name.removesuffix("-sam2")


def test_a_new_file_has_the_permissions_of_a_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        tiny_trio()[0].save_pretrained(tmp_path)
        modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert modes == {0o640}


def test_a_head_in_shards(tmp_path):
    adapter, _, _ = tiny_trio(fusion="mirror")
    adapter.save_pretrained(tmp_path, max_shard_size=30_000)
    shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 and LensAdapter.from_pretrained(tmp_path).digest() == adapter.digest()
    (tmp_path / shards[0]).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointMismatchError, match="which is not there"):
        LensAdapter.from_pretrained(tmp_path)
    adapter.save_pretrained(tmp_path)  # in one file: the shards go
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors", "elsewhere"}
    assert LensAdapter.from_pretrained(tmp_path).digest() == adapter.digest()


@pytest.mark.parametrize("name", ["../lite/model.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", 3, None])
def test_an_index_that_leads_out_of_the_folder_is_refused(lite, name):
    (lite / "model.safetensors").rename(lite / "model-00001-of-00001.safetensors")
    (lite / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"head.x": name}}))
    with pytest.raises(CheckpointMismatchError, match="index"):
        LensAdapter.from_pretrained(lite)


# -- one save or another, never both

OLD = {"config.json": "old", "model.safetensors": "old weights", "README.md": "old", "notes.txt": "mine"}
NEW = {"config.json": "new", "model.safetensors": "new weights, more", "README.md": "new", "evaluation.json": "new"}


def _save(folder: Path, files: dict[str, str]) -> None:
    with saving(folder) as aside:
        for name, text in files.items():
            (aside / name).write_text(text)


def _read(folder: Path) -> dict[str, str]:
    place = current(folder)
    return {name: (place / name).read_text() for name in ("config.json", "model.safetensors", "README.md")}


class Dead(OSError):
    """What everything answers in a process that was killed: nothing changes any more, no cleaning up either."""


@pytest.mark.parametrize("linked", [True, False])
def test_a_save_that_is_killed_at_any_step_leaves_the_old_or_the_new(tmp_path, linked, monkeypatch):
    """As `python -m tests.attacks saves` does by real kills, of real heads."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and of use against power cuts alone
    seen = []
    for step in range(200):
        folder, left = tmp_path / str(step), [step]
        _save(folder, OLD)

        def counted(name: str, call: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Dead
                if name == "link" and not linked:
                    raise OSError("no links on this file system")
                return call(*args, **kwargs)

            return called

        with monkeypatch.context() as patched, suppress(Dead, InputError):
            for name in STEPS:
                patched.setattr(os, name, counted(name, getattr(os, name)))
            _save(folder, NEW)
        found = _read(folder)
        seen.append({"old": OLD, "new": NEW}[found["config.json"]])
        assert found.items() <= seen[-1].items() and (folder / "notes.txt").read_text() == "mine", step
        for again in (OLD, NEW):  # whatever is left, the next save is whole
            _save(folder, again)
            assert _read(folder).items() <= again.items() and not (folder / SAVED).exists()
        if left[0] >= 0:
            break
    assert 15 < len(seen) < 200 and seen[0] is OLD and seen[-1] is NEW
    assert seen == sorted(seen, key=lambda files: files is NEW)  # there is one step from which it counts


@pytest.mark.parametrize("size", [0, 5, 12])
def test_a_full_disk_leaves_the_old(tmp_path, size):
    _save(tmp_path, OLD)
    assert dying(lambda: _save(tmp_path, NEW), lambda: full_after(size)) == 1
    assert _read(tmp_path).items() <= OLD.items() and sorted(os.listdir(tmp_path)) == sorted(OLD)


def test_an_error_while_saving_changes_nothing(lite, monkeypatch):
    before = {file.name: file.read_bytes() for file in lite.iterdir()}
    adapter = tiny_trio(mask_threshold=0.3)[0]
    monkeypatch.setattr("lens_adapter.hub.card.write_model_card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapter.save_pretrained(lite)
    assert {file.name: file.read_bytes() for file in lite.iterdir()} == before


def test_loading_reads_what_an_interrupted_save_has_left_and_changes_nothing(heads, tmp_path):
    folder = Path(shutil.copytree(heads["lite"], tmp_path / "head"))
    adapter = tiny_trio(mask_threshold=0.3, fusion_layers=2)[0]
    adapter.save_pretrained(folder / SAVED)
    before = sorted(str(path) for path in folder.rglob("*"))
    for loaded in (LensAdapter.from_pretrained(folder), LensAdapter.from_pretrained(tmp_path, subfolder="head")):
        assert loaded.digest() == adapter.digest() and loaded.config.mask_threshold == 0.3
    assert LensConfig.from_pretrained(folder).fusion_layers == 2
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_where_nothing_can_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        tiny_trio()[0].save_pretrained(tmp_path / "file")


def test_processes_that_are_not_the_main_one_write_nothing(tmp_path):
    tiny_trio()[0].save_pretrained(tmp_path / "head", is_main_process=False)
    assert not (tmp_path / "head").exists()
