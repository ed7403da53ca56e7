from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lens_adapter import LensAdapter, LensConfig
from lens_adapter.errors import CheckpointMismatchError, LensConfigError
from tests.tiny.adapters import GRID, PAIRED, assert_close, learn, same_output, tiny_adapter, tiny_trio
from tests.tiny.models import ARCHITECTURES, tiny_model
from tests.tiny.pairs import tiny_pair
from tests.tiny.processes import run_alone
from tests.tiny.sam import noise_image, tiny_sam

ROOT = Path(__file__).parents[1]
FILES = ["README.md", "config.json", "model.safetensors"]
IMAGE, PROMPTS = noise_image(50, 70), ["the cat", "a large dog on the left"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A lite head for the tiny LLaVA; read only."""
    folder = tmp_path_factory.mktemp("lens")
    tiny_trio()[0].save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it to be damaged."""
    for name in FILES:
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | changes))


# -- there and back


def _segment_in_another_process(folders: list[Path]) -> None:
    for folder in folders:
        adapter = LensAdapter.from_pretrained(folder).attach(*tiny_pair(folder.name.split("-")[0]))
        out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
        out.image = None
        torch.save(vars(out), folder.with_suffix(".pt"))


def test_a_fresh_process_finds_the_same_masks(tmp_path):
    expected = {}
    for architecture, fusion in PAIRED:
        adapter, model, processor = tiny_trio(architecture, fusion)
        learn(adapter, processor)  # so that no fresh start could look like a loaded head
        folder = tmp_path / f"{architecture}-{fusion}"
        adapter.save_pretrained(folder)
        assert sorted(os.listdir(folder)) == FILES
        loaded = LensAdapter.from_pretrained(folder).attach(model, processor)
        expected[folder] = loaded.segment(IMAGE, PROMPTS, return_logits=True)
        assert_close(expected[folder], adapter.segment(IMAGE, PROMPTS, return_logits=True))
    assert run_alone(_segment_in_another_process, list(expected)) == 0
    for folder, out in expected.items():
        found = torch.load(folder.with_suffix(".pt"))
        assert same_output(type(out)(**found), out)


@pytest.mark.parametrize(("architecture", "fusion"), GRID)
def test_everything_is_loaded_and_the_frozen_stays_frozen(architecture, fusion, tmp_path):
    adapter, _, _ = tiny_trio(architecture, fusion)
    adapter.save_pretrained(tmp_path)
    loaded, info = LensAdapter.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded.is_attached and not loaded.training and not any(info[key] for key in info if "keys" in key)
    assert loaded.config.to_diff_dict() == LensConfig.from_pretrained(tmp_path).to_diff_dict()
    for kind in ("named_parameters", "named_buffers"):
        mine, theirs = dict(getattr(adapter, kind)()), dict(getattr(loaded, kind)())
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype, name
            assert tensor.requires_grad == theirs[name].requires_grad, name
    learns = {name.split(".")[1] for name, p in loaded.named_parameters() if p.requires_grad and "decoder." in name[:8]}
    assert learns == {"mask_decoder"}
    assert all(parameter.requires_grad for parameter in loaded.head.parameters())


def test_what_is_not_a_tensor_of_the_checkpoint_is_right_too():
    # Built on the meta device in transformers 5; plain attributes and derived buffers must come out of it alive.
    adapter, model, processor = tiny_trio("qwen3_vl", "mirror")
    assert not [name for name, tensor in adapter.named_buffers() if tensor.is_meta]
    rebuilt = LensAdapter(adapter.config)
    rebuilt.load_state_dict(adapter.state_dict())
    expected = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    assert_close(rebuilt.attach(model, processor).segment(IMAGE, PROMPTS, return_logits=True), expected)


def test_saved_twice_is_the_same(saved, tmp_path):
    LensAdapter.from_pretrained(saved).save_pretrained(tmp_path)
    assert (saved / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert (saved / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_an_attached_adapter_saves_nothing_of_the_base(tmp_path):
    adapter, model, _ = tiny_trio(fusion="mirror")
    adapter.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(adapter.state_dict()) and not names & set(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(saved, dtype, tmp_path):
    adapter = LensAdapter.from_pretrained(saved, dtype=dtype)
    assert {parameter.dtype for parameter in adapter.parameters()} == {dtype}
    adapter.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    back = LensAdapter.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}
    if dtype == torch.bfloat16:
        out = adapter.attach(*tiny_pair("llava")).segment(IMAGE, PROMPTS, return_logits=True)
        assert out.logits.isfinite().all()


def test_subfolder_local_only_and_offline(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    LensAdapter.from_pretrained(saved).save_pretrained(tmp_path / "heads" / "lite")
    for loaded in (
        LensAdapter.from_pretrained(tmp_path, subfolder="heads/lite"),
        LensAdapter.from_pretrained(str(tmp_path / "heads" / "lite"), local_files_only=True),
    ):
        assert loaded.state_dict().keys() == load_file(saved / "model.safetensors").keys()


def test_config_overrides_on_loading(saved):
    assert LensAdapter.from_pretrained(saved, mask_threshold=0.3).config.mask_threshold == 0.3
    with pytest.raises(LensConfigError, match="mask_threshold"):
        LensAdapter.from_pretrained(saved, mask_threshold=3)


@pytest.mark.parametrize("included", [True, False])
def test_image_encoder_travels_only_if_asked(included, tmp_path):
    adapter, _, _ = tiny_trio(sam=tiny_sam(include_image_encoder=included))
    adapter.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert included == any(name.startswith("decoder.image_encoder.") for name in names)
    assert any(name.startswith("decoder.prompt_encoder.") for name in names)
    assert (LensAdapter.from_pretrained(tmp_path).decoder.image_encoder is not None) == included


# -- the wrong base


@pytest.mark.parametrize("fusion", ["lite", "mirror"])
@pytest.mark.parametrize("other", [name for name in ARCHITECTURES if name != "llava"])
def test_another_architecture_is_refused(fusion, other):
    adapter = tiny_adapter(tiny_model("llava"), fusion=fusion)
    adapter.detach()
    with pytest.raises(CheckpointMismatchError, match=f"architecture llava.*got {other}"):
        adapter.attach(tiny_model(other))
    assert not adapter.is_attached


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 64),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 4),
        ("intermediate_size", 40),
        ("vocab_size", 200),
    ],
)
def test_another_build_of_the_same_architecture_is_refused(architecture, key, value):
    text = {key: value}
    if architecture == "qwen2_5_vl":
        sections = {"hidden_size": [2, 2, 4], "num_attention_heads": [2, 2, 4]}.get(key, [1, 1, 2])
        text["rope_scaling"] = {"rope_type": "default", "mrope_section": sections}
    right, wrong = tiny_model(architecture), tiny_model(architecture, **text)
    adapter = tiny_adapter(right)
    with pytest.raises(CheckpointMismatchError, match=rf"{key} \d+ \(got {value}\)"):
        adapter.attach(wrong)
    assert adapter.base.model is right  # the earlier attachment holds
    adapter.detach()
    with pytest.raises(CheckpointMismatchError, match="Load the base that the head names"):
        adapter.attach(wrong)
    assert not adapter.is_attached


def test_another_text_model_of_the_same_size_is_refused():
    adapter = tiny_adapter(tiny_model("llava"))
    with pytest.raises(CheckpointMismatchError, match=r"text model_type llama \(got mistral\)"):
        adapter.attach(tiny_model("llava", model_type="mistral"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_right_base_is_taken_whoever_saved_its_config(architecture, tmp_path):
    adapter = tiny_adapter(tiny_model(architecture))
    adapter.save_pretrained(tmp_path)
    given = tiny_model(architecture, attention="sdpa", seed=3).to(torch.bfloat16)
    given.config.name_or_path = "somebody/else"
    assert LensAdapter.from_pretrained(tmp_path).attach(given).is_attached
    # Without the base's config, the widths alone are compared.
    edit_config(tmp_path, base_config=None)
    assert LensAdapter.from_pretrained(tmp_path).attach(given).is_attached


# -- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:16] = bytes(byte ^ 0xFF for byte in data[8:16])
    path.write_bytes(data)


def huge_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def shifted_offsets(path: Path) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 4
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text_instead(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize("damage", [truncate, flip_header, huge_header, shifted_offsets, empty, text_instead])
def test_a_damaged_file_is_refused(folder, damage):
    damage(folder / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"damaged.*Fetch it again"):
        LensAdapter.from_pretrained(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "renamed", "none"])
def test_tensors_that_do_not_fit_are_refused_by_name(folder, change):
    path, name = folder / "model.safetensors", "head.descriptors.text_vector"
    tensors = load_file(path)
    if change in ("missing", "renamed"):
        moved = tensors.pop(name)
    if change == "renamed":
        tensors["head.descriptors.word_vector"] = moved
    if change == "extra":
        name = "head.stowaway"
        tensors[name] = torch.zeros(3)
    if change == "shape":
        tensors[name] = torch.zeros(len(tensors[name]) + 1)
    if change == "none":
        tensors = {}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointMismatchError, match="tensors" if change == "none" else name):
        LensAdapter.from_pretrained(folder)


def test_tensors_of_another_config_are_refused(folder):
    edit_config(folder, fusion_width=64)
    with pytest.raises(CheckpointMismatchError, match="mismatched_keys"):
        LensAdapter.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tap_layer", 99),
        ("fusion", "majestic"),
        ("num_keypoints", -3),
        ("mask_threshold", "high"),
        ("sam", {"variant": "custom", "embed_dim": 33, "num_heads": 2}),
        ("sam", "vit_xxl"),
        ("prompt_template", "no place"),
        ("hidden_size", 0),
        ("base_config", "llava"),
    ],
)
def test_impossible_values_in_config_json_are_refused(folder, key, value):
    edit_config(folder, **{key: value})
    with pytest.raises(LensConfigError, match=key):
        LensAdapter.from_pretrained(folder)


def test_a_mirror_without_its_bases_config_is_refused(folder):
    edit_config(folder, fusion="mirror", base_config=None)
    with pytest.raises(LensConfigError, match="base_config"):
        LensAdapter.from_pretrained(folder)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    tiny_model("llava").save_pretrained(tmp_path)
    with pytest.raises(LensConfigError, match="'llava': this is no LENS head"):
        LensAdapter.from_pretrained(tmp_path)


# -- what must never run


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("asked", [{}, {"use_safetensors": False}, {"weights_only": False}])
def test_pickles_are_not_read(folder, asked):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder / "exploded")))
    with pytest.raises(OSError, match="safetensors"):
        LensAdapter.from_pretrained(folder, **asked)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("where", ["config", "base_config"])
@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
def test_remote_code_is_not_run(tmp_path, where, trust):
    adapter, model, processor = tiny_trio(fusion="mirror")
    adapter.save_pretrained(tmp_path)
    (tmp_path / "remote.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'exploded')!r}).touch()\nclass Remote:\n    pass\n"
    )
    code = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForImageTextToText"), "remote.Remote")}
    base = adapter.config.base_config
    edit_config(tmp_path, **(code if where == "config" else {"base_config": base | code}))
    loaded = LensAdapter.from_pretrained(tmp_path, **trust)
    loaded.attach(model, processor).segment(IMAGE, PROMPTS)
    assert not (tmp_path / "exploded").exists()
