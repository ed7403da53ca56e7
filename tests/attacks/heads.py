"""Heads that somebody made to do harm, or that a disk has damaged: config, base config, weights and index."""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import CONFIG_MAPPING

from lens_adapter import LensAdapter
from lens_adapter.hub.card import model_card
from tests.attacks.registry import Outcome, attack
from tests.attacks.workers import tried
from tests.tiny.adapters import tiny_trio
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

KINDS = ("lite", "mirror", "readout", "sharded")
NUMBERS = (2**31, 2**31 - 1, 2**40, 2**63, 2**64, 10**400, -1, -(2**31), 0, 1, 3, 0.5, 4.0, 1e30, 1e308, -0.0)
STRANGE = (
    *NUMBERS,
    *(float("nan"), float("inf"), float("-inf"), None, True, False, "", "x", "2", "../../etc/passwd", "owner/kernel"),
    *("\x00", "é" * 3, "{prompt}" * 3, "x" * 20_000, [], {}, [2**31], [1] * 3000, [None], {"a": 1}, [[]], [[2, 2**31]]),
    *({"model_type": "detr"}, {"": 0}, ["float32"], {"rope_type": "yarn", "factor": 1e30}),
)
# What names an implementation, code, or another place to take weights from.
SOURCES: tuple[dict[str, Any], ...] = (
    *(
        {key: "owner/kernel"}
        for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    ),
    *(
        {key: "owner/kernel:layer"}
        for key in ("experts_implementation", "_experts_implementation", "mlp_implementation")
    ),
    {"attn_implementation": {"text_config": "owner/kernel", "vision_config": "owner/kernel"}},
    {"auto_map": {"AutoConfig": "owner/code--remote.Remote", "AutoModel": "owner/code--remote.Remote"}},
    {"backbone": "owner/resnet", "use_timm_backbone": True, "use_pretrained_backbone": True},
    {"backbone": "microsoft/resnet-50", "use_pretrained_backbone": True, "backbone_config": None},
    {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "hf_hub:owner/net",
            "use_pretrained_backbone": True,
        }
    },
    {"trust_remote_code": True, "code_revision": "main", "_name_or_path": "owner/base", "_commit_hash": "a" * 40},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"transformers_weights": "../../model.safetensors", "gguf_file": "owner/file.gguf"},
    {"use_kernels": True, "kernel_config": {"RMSNorm": "owner/kernel:RMSNorm"}},
    {"_name_or_path": "owner/other", "name_or_path": "owner/other", "semantic_model_config": {"_name_or_path": "o/x"}},
)
TOWERS: tuple[dict[str, Any], ...] = (
    {"model_type": "timm_wrapper", "architecture": "hf_hub:timm/resnet18.a1_in1k"},
    {"model_type": "timm_wrapper", "architecture": "hf-hub:timm/resnet18.a1_in1k", "do_pooling": True},
    {"model_type": "timm_wrapper", "architecture": "local-dir:/etc"},
    {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"pretrained_cfg": "hf_hub:a/b"}},
    {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "/etc/passwd"}},
    {"model_type": "timm_backbone", "backbone": "hf_hub:timm/resnet18.a1_in1k", "use_pretrained_backbone": True},
    {"model_type": "gemma3n_vision", "architecture": "hf_hub:timm/resnet18.a1_in1k"},
    *(
        {"model_type": kind, "backbone": "resnet50", "use_pretrained_backbone": True}
        for kind in ("detr", "dpt", "vitpose")
    ),
    *({"model_type": kind} for kind in ("detr", "table-transformer", "conditional_detr", "dab-detr", "tvp", "upernet")),
    {"model_type": "rag"},
    {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "detr"}, "decoder": {"model_type": "rwkv"}},
    *({"model_type": kind} for kind in ("rwkv", "yoso", "mra", "xcodec", "musicgen", "dpt", "omdet-turbo", "vitmatte")),
)


@cache
def folders() -> dict[str, Path]:
    """A whole head of each kind, for the tiny LLaVA."""
    root = Path(tempfile.mkdtemp(prefix="lens-attacked-"))
    for kind in KINDS:
        adapter, _, _ = tiny_trio(fusion="lite" if kind == "sharded" else kind)
        adapter.save_pretrained(root / kind, **({"max_shard_size": 40_000} if kind == "sharded" else {}))
    return {kind: root / kind for kind in KINDS}


# -- what is done to a head: (random numbers, folder) -> a line about it ----------------------------------------------


def _dicts(value: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """All dicts inside, with their paths."""
    found = [(path, value)] if isinstance(value, dict) else []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [pair for key, part in parts for pair in _dicts(part, f"{path}.{key}")]


def _edited(folder: Path, edit: Callable[[dict[str, Any]], str]) -> str:
    file = folder / "config.json"
    facts = json.loads(file.read_text())
    said = edit(facts)
    file.write_text(json.dumps(facts))
    return said


def strange_value(rng: random.Random, folder: Path) -> str:
    """One or two values of the config, anywhere in it, are other ones, or gone."""

    def edit(facts: dict[str, Any]) -> str:
        said = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            path, holder = rng.choice([(path, part) for path, part in _dicts(facts) if part])
            key = rng.choice(sorted(holder))
            if rng.random() < 0.1:
                del holder[key]
                said.append(f"{path}.{key} gone")
            else:
                holder[key] = copy.deepcopy(rng.choice(STRANGE))
                said.append(f"{path}.{key} = {holder[key]!r:.60}")
        return "; ".join(said)

    return _edited(folder, edit)


def source(rng: random.Random, folder: Path) -> str:
    """Somewhere in the config it says where code or weights come from."""

    def edit(facts: dict[str, Any]) -> str:
        said = []
        for _ in range(rng.choice((1, 1, 2))):
            path, holder = rng.choice(_dicts(facts))
            extra = copy.deepcopy(rng.choice(SOURCES))
            holder |= extra
            said.append(f"{path} |= {extra!r:.120}")
        return "; ".join(said)

    return _edited(folder, edit)


def other_part(rng: random.Random, folder: Path) -> str:
    """The base is, or a part of it is, of another model type."""

    def edit(facts: dict[str, Any]) -> str:
        base = facts["base_config"]
        key = rng.choice(("vision_config", "vision_config", "text_config", "model_type"))
        kinds = sorted(CONFIG_MAPPING.keys())
        if key == "model_type":
            base[key] = rng.choice(kinds)
        elif rng.random() < 0.5:
            base[key] = copy.deepcopy(rng.choice(TOWERS))
        else:
            kept = base[key] if rng.random() < 0.5 else {}
            base[key] = {**kept, "model_type": rng.choice(kinds)}
        if rng.random() < 0.3:
            base[rng.choice(("audio_config", "qformer_config", "vq_config"))] = copy.deepcopy(rng.choice(TOWERS))
        return f"base_config.{key} = {base[key]!r:.160}"

    return _edited(folder, edit)


def other_json(rng: random.Random, folder: Path) -> str:
    """config.json is damaged, is no object, or is no JSON."""
    file = folder / "config.json"
    text = file.read_bytes()
    whole = (
        *(
            b"",
            b"null",
            b"3",
            b"[]",
            b"[1, 2]",
            b'"lens"',
            b"true",
            b"{}",
            b"1" + b"0" * 400,
            b"1" + b"0" * 5000,
            b"NaN",
        ),
        *(b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe\x00", b"\x00" * 50, b'{"model_type": null}'),
        *(b'{"model_type": ["lens"]}', b'{"model_type": "lens", "training": [' + b'{"a":[' * 900 + b"]}" * 900 + b"]}"),
        *(b'{"model_type": "lens", "base_config": ' + b'{"a":' * 400 + b"1" + b"}" * 400 + b"}",),
    )
    what = rng.random()
    if what < 0.3:
        data = rng.choice(whole)
    elif what < 0.6:
        data = text[: rng.randrange(len(text))]
    else:
        changed = bytearray(text)
        for _ in range(rng.choice((1, 2, 8))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed)
    file.write_bytes(data)
    return f"config.json is {data[:40]!r} of {len(data)} bytes"


def weights(rng: random.Random, folder: Path) -> str:
    """The header of the weights says other things, or bytes are others."""
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    what = rng.random()
    if what < 0.2:
        data, said = data[: rng.randrange(len(data))], "cut"
    elif what < 0.4:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 4))):
            changed[rng.randrange(min(len(data), size + 8) if rng.random() < 0.7 else len(data))] ^= 1 << rng.randrange(
                8
            )
        data, said = bytes(changed), "bits flipped"
    elif what < 0.5:
        data, said = rng.randrange(2**64).to_bytes(8, "little") + data[8:], "another length of the header"
    else:
        header = json.loads(data[8 : 8 + size])
        name = rng.choice(sorted(header))
        if name == "__metadata__" or rng.random() < 0.2:
            header[name] = copy.deepcopy(rng.choice(STRANGE))
        elif rng.random() < 0.2:
            header[rng.choice(("x" * 5000, "../x", "head.x", "decoder.x"))] = header.pop(name)
        else:
            key = rng.choice(sorted(header[name]))
            dtypes = ("I64", "F8_E4M3", "BOOL", "F64", "F16", "BF16", "U4", "x")
            lists = ([], [0], [2**31, 2**31], [2**62, 4], [-1], [0, 2**63], [4, 0], [1] * 5000)
            header[name][key] = rng.choice(dtypes) if key == "dtype" else copy.deepcopy(rng.choice((*lists, *STRANGE)))
        text = json.dumps(header).encode()
        data, said = len(text).to_bytes(8, "little") + text + data[8 + size :], f"{name}: {header.get(name)!r:.80}"
    file.write_bytes(data)
    return f"{file.name}: {said}"


def index(rng: random.Random, folder: Path) -> str:
    """The index of a sharded head names other files, or is none."""
    file = folder / "model.safetensors.index.json"
    if not file.is_file():  # a head in one file gets an index that is all it has
        single = folder / "model.safetensors"
        with safe_open(single, "pt") as tensors:
            names = list(tensors.keys())
        single.rename(folder / "model-00001-of-00001.safetensors")
        file.write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
        )
    facts = json.loads(file.read_text())
    places = (
        "../../lite/model.safetensors",
        "/etc/passwd",
        "nowhere.safetensors",
        "",
        "a/b.safetensors",
        "config.json",
    )
    places += ("model-00001-of-00001.safetensors", "x" * 5000, "..", "\x00.safetensors", "model\n.safetensors")
    name = rng.choice(sorted(facts["weight_map"]))
    what = rng.random()
    if what < 0.5:
        facts["weight_map"][name] = rng.choice((*places, *STRANGE))
        said = f"{name} in {facts['weight_map'][name]!r:.60}"
    elif what < 0.7:
        key = rng.choice(("weight_map", "metadata"))
        facts[key] = copy.deepcopy(rng.choice(STRANGE))
        said = f"{key} = {facts[key]!r:.60}"
    elif what < 0.8:
        facts["weight_map"] = {str(k): f"model-{k:05}-of-99999.safetensors" for k in range(2000)}
        said = "2000 shards"
    else:
        facts = copy.deepcopy(rng.choice((None, 3, [], "x", {}, {"weight_map": {}}, [[]], {"weight_map": {"a": {}}})))
        said = f"{facts!r:.60}"
    text = json.dumps(facts)
    file.write_text(
        text if rng.random() < 0.8 else rng.choice((text[: len(text) // 2], "[" * 100_000, "", "1" + "0" * 5000))
    )
    return f"index: {said}"


MUTATIONS = (strange_value, strange_value, strange_value, source, other_part, other_json, weights, index)


def damaged(seed: int, target: Path) -> str:
    """A copy of a head, with something done to it that follows from `seed`; a line about what."""
    rng = random.Random(seed)
    mutation = rng.choice(MUTATIONS)
    kind = rng.choice(KINDS)
    if mutation is other_part:
        kind = "mirror"
    shutil.copytree(folders()[kind], target)
    return f"{kind}: {mutation(rng, target)}"


def load_and_use(seed: int) -> None:
    """What somebody would do with it: load, read its card, attach, segment."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "head")
        damaged(seed, folder)
        adapter = LensAdapter.from_pretrained(folder)
        model_card(adapter.config)
        model, processor = tiny_pair("llava")
        with adapter.attach(model, processor):
            if adapter.config.readout or adapter.config.fusion != "readout":  # one that was fitted
                adapter.segment(noise_image(40, 50), "a cat")


def described(seed: int) -> str:
    """What `load_and_use` did with this seed."""
    with tempfile.TemporaryDirectory() as root:
        return f"{seed}, {damaged(seed, Path(root, 'head'))}"


@attack("heads", 5000)
def attack_heads(seed: int, count: int) -> Outcome:
    """Damaged and hostile heads are loaded, attached and asked for a mask, every socket closed"""
    folders(), tiny_pair("llava")  # made once, before the processes are forked
    with suppress(ImportError):
        import_module("timm")  # takes seconds
    return tried(range(seed, seed + count), load_and_use, Outcome(), described)
