"""Every benchmark runs, on a base that is as small as can be, and measures what it says; no figure is judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bases, memory
from benchmarks.harness import Comparison, Row, Stage, proportions
from benchmarks.released import ReleasedPipeline
from benchmarks.suite import BENCHMARKS, base, compiling, counting, heads, host, images, rivals, sams, whole
from benchmarks.suite.registry import PROMPTS, ask, picture
from benchmarks.suite.steps import Steps
from lens_adapter import LensAdapter, config
from lens_adapter.head.keypoints import find_keypoints
from lens_adapter.sam import families
from lens_adapter.sam.published import PUBLISHED, Published
from tests.tiny.families import tiny_config

MINI_SAM = {
    **{"image_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 2, "out_channels": 32},
    **{"global_attention_layers": [1], "decoder_num_heads": 2, "decoder_mlp_dim": 32, "iou_head_dim": 32},
}
LLAMA = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ALL_KINDS = dict(host.KINDS)
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _tiny_sam2() -> Published:
    """What a mini SAM of `MINI_SAM` and this have in common is the decoder's width."""
    return Published("sam2", "nowhere/sam2", 0, 0, 0, 0, tiny_config("sam2"))


@pytest.fixture(scope="module")
def mini() -> Iterator[str]:
    """The name of a base of four layers; every SAM is tiny, and every axis is short."""
    with pytest.MonkeyPatch.context() as patch:
        text = {**LLAMA, **HEADS, "max_position_embeddings": 1000}
        facts = {**bases._LLAVA, "text_config": text, "vision_config": bases._clip(**{**VISION, "image_size": 56})}
        made = bases.Base(facts, lambda side: bases._llava_processor(side or 4), {"variant": "vit_b"})
        patch.setitem(bases.BASES, "mini", made)
        for name, sizes in list(config.SAM_VARIANTS.items()):
            patch.setitem(config.SAM_VARIANTS, name, {**sizes, **MINI_SAM})
        patch.setitem(families.PUBLISHED, "sam2", _tiny_sam2())
        for room, name, value in (
            *((room, "SEVERAL", (2, 3)) for room in (base, images, rivals)),
            (heads, "LARGE", ("mini",)),
            (images, "SIZE_4K", (108, 192)),
            (sams, "PUBLISHED", {**dict.fromkeys(("vit_b", "vit_h"), PUBLISHED["vit_b"]), "sam2": _tiny_sam2()}),
            (sams, "BESIDE", ("sam2",)),
            (sams, "GOAL_OF", "sam2"),
            (whole, "FUSIONS", ("lite",)),
            (whole, "SIDES", (3, 4)),
            (whole, "COUNTS", (1, 2)),
            (whole, "LAYERS", (4, 5)),
            (whole, "FEW", 4),
            (host, "SIZES", {0.02: (120, 150), 0.03: (150, 200)}),
            (host, "KINDS", {"LLaVA-1.5": host._llava, "Qwen2.5-VL": host._qwen}),
            (compiling, "OPTIONS", {"backend": "eager"}),
        ):
            patch.setattr(room, name, value)
        yield "mini"


@pytest.fixture
def stage(mini) -> Stage:
    return Stage("cpu", mini, repeats=1, tokens=(40, 80))


@pytest.fixture(scope="module")
def folder(mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the whole command wrote."""
    folder = tmp_path_factory.mktemp("benchmarks")
    _run(folder, "--tokens", "40", "80")
    return folder


@pytest.fixture(scope="module")
def found(folder) -> dict[str, list[Comparison]]:
    """The comparisons by benchmark."""
    written = json.loads((folder / "suite-mini-cpu.json").read_text())
    return {name: list(map(Comparison.read, entry["comparisons"])) for name, entry in written.items()}


def _run(folder: Path, *options: str) -> None:
    places = ["--records", str(folder), "--docs", str(folder / "docs")]
    command.main(["--base", "mini", "--repeats", "1", *places, *options])


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_benchmark_says_what_it_measured(found, name):
    titles = [(comparison.title, comparison.quantity) for comparison in found[name]]
    assert titles and len(set(titles)) == len(titles)
    for comparison in found[name]:
        names = [row.name for row in comparison.rows]
        assert comparison.reference in names and len(set(names)) == len(names) > 1
        assert comparison.goals.keys() <= set(names)
        assert all(isfinite(row.ratio) and row.low <= row.ratio <= row.high for row in comparison.rows)


def test_page_and_figures_are_written_again_from_the_records(folder, capsys):
    page = folder / "docs" / "benchmarks.md"
    text = page.read_text()
    assert "| [head](#head) | mini, cpu | One prompt: time of lite head |" in text
    assert text.count("| One image, lite head |") == 1
    page.unlink()
    for name in ("benchmarks.png", "benchmarks-profile.png", "benchmarks-host.png"):
        assert (folder / "docs" / name).stat().st_size > 10_000 and name in text
        (folder / "docs" / name).unlink()
    _run(folder, "--render")
    assert page.read_text() == text and not capsys.readouterr().out
    assert len(list((folder / "docs").glob("benchmarks*.png"))) == 3


def test_growth_has_places_on_its_axes(found):
    places = {comparison.title: [row.at for row in comparison.rows] for comparison in found["growth"]}
    assert places["lite: image tokens"] == [9, 16] and places["lite: layers of the base"] == [4, 5]


def test_the_hosts_share_is_measured_for_every_size_and_judged_for_new_ones(found):
    assert [comparison.title for comparison in found["host"]] == [
        f"{kind}: {megapixels} megapixels" for kind in ("LLaVA-1.5", "Qwen2.5-VL") for megapixels in (0.02, 0.03)
    ]
    assert all(comparison.goals == {host.NEW: 1.0} for comparison in found["host"])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_processors_of_the_host_are_whole(kind, monkeypatch):
    """Each lays its pictures out by its real sizes."""
    monkeypatch.setattr(host, "KINDS", ALL_KINDS)
    laid = host.laid(kind, (240, 322))
    (layout,) = laid.known()
    assert len(layout.positions) >= 88 and layout.boxes[:, 2:].max() <= 1
    (beside,) = laid.new()
    assert len(beside.positions) and laid.beside == (239, 320)


def test_peak_memory_is_counted_to_the_byte():
    size = 2**20

    def work() -> None:
        first = torch.empty(size, dtype=torch.uint8)
        second = first.clone()
        del first
        third = second.clone()
        del second, third
        torch.empty(size // 2, dtype=torch.uint8)

    assert memory.peak_bytes(work, "cpu") == 2 * size
    assert memory.peak_bytes(lambda: None, "cpu") == 0
    assert memory.available_bytes("cpu") > 2**20


def test_memory_inside_kernels_counts_too():
    matrix = torch.rand(64, 32, 32)
    assert memory.peak_bytes(lambda: torch.linalg.det(matrix), "cpu") > matrix.nbytes


def test_peak_memory_of_everything_is_what_is_computed(stage):
    model, _ = stage.pair
    inputs = ask(stage, tokens=80)
    length = inputs["input_ids"].shape[1]
    wanted, beside = base.everything_bytes(model.config.get_text_config(), length, 4)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
        assert wanted == sum(part.nbytes for part in (*output.attentions, *output.hidden_states))
        del output
        peak = memory.peak_bytes(
            lambda: model(**inputs, output_attentions=True, output_hidden_states=True), stage.device
        )
    assert peak > wanted and beside == 2 * 4 * 4 * length**2


def test_what_does_not_fit_is_not_run(stage, monkeypatch):
    monkeypatch.setattr(base, "available_bytes", lambda device: 1000)
    for comparison in BENCHMARKS["capture"](stage):
        assert base.PEER not in [row.name for row in comparison.rows]
        if comparison.quantity == "time":
            assert comparison.notes[0].startswith(f"{base.PEER}: not run.") and "1e+03 B" in comparison.notes[0]


def test_asked_lengths_are_exact(stage):
    assert ask(stage, tokens=80)["input_ids"].shape == (1, 80)
    assert ask(stage, PROMPTS)["input_ids"].shape[0] == len(PROMPTS)


def test_before_is_not_timed_and_order_alternates():
    ran = []
    ways = {name: lambda name=name: ran.append(name) for name in "ab"}
    Stage("cpu", "tiny", repeats=2).compare("letters", ways, "a", before={"b": lambda: ran.append("before b")})
    assert ran == ["a", "before b", "b"] * 2 + ["before b", "b", "a"]


def test_what_takes_long_has_fewer_rounds():
    ran = []
    stage = Stage("cpu", "tiny", repeats=5, seconds=0)
    found = stage.compare("letters", {name: lambda name=name: ran.append(name) for name in "ab"}, "a")
    assert ran == ["a", "b"] and found.rounds == 1  # the first round had to do
    assert Stage("cpu", "tiny", repeats=5).compare("letters", {"a": lambda: None}, "a").rounds == 5


def test_proportions_are_exact():
    assert proportions("t", {"a": 2, "b": 3}, "a", "bytes", goals={"b": 1}) == Comparison(
        "t", "a", [Row("a", 1, 1, 1), Row("b", 1.5, 1.5, 1.5)], [], "bytes", {"b": 1}
    )


def test_sizes_are_those_of_a_saved_adapter(stage, tmp_path: Path):
    for fusion in ("lite", "mirror"):
        adapter = LensAdapter.from_model(*stage.pair, load_sam=False, fusion=fusion, sam=bases.BASES["mini"].sam)
        found = counting.size_of_adapter("mini", fusion)
        learning = [parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad]
        assert found.trainable == sum(learning)
        adapter.bfloat16().save_pretrained(tmp_path / fusion)
        written = (tmp_path / fusion / "model.safetensors").read_bytes()
        header = 8 + int.from_bytes(written[:8], "little")  # names and shapes
        assert found.checkpoint == len(written) - header


def test_operations_are_counted_right(stage):
    flops = counting.count_flops("mini")
    text, tokens = stage.pair[0].config.get_text_config(), ask(stage)["input_ids"].shape[1]
    width, inner, kept = text.hidden_size, text.intermediate_size, text.hidden_size // 2
    attention = 2 * tokens * (2 * width * width + 2 * width * kept) + 4 * tokens**2 * width
    layer = attention + 2 * tokens * 3 * width * inner
    assert flops["bare prefill"] - flops["vision tower"] == 4 * layer
    assert flops["prefill for mirror"] - flops["vision tower"] == 2 * layer
    assert flops["prefill for lite"] - flops["prefill for mirror"] == attention
    assert 2 * layer < flops["mirror head"] and flops["lite head"] > 0


def test_the_released_pipeline_is_the_mirrors_computation(stage):
    """Same weights, same image: the same hidden states and the same attention, by another way."""
    adapter = stage.adapter("mirror")
    released = ReleasedPipeline(*stage.pair, adapter.config, adapter.decoder)
    inputs = ask(stage)
    signals = adapter.prefill(inputs)
    hidden, attention = released.fuse(signals.hidden)
    rows, refined = adapter.head.fusion.layers(signals, signals.queries)
    torch.testing.assert_close(hidden, refined)
    torch.testing.assert_close(attention[:, :, -1:], rows)
    image = picture()
    embedding = adapter.decoder.encode_images([image])
    mask = released(image, PROMPTS[0], embedding)
    assert mask.shape == (480, 640) and mask.dtype == torch.bool and mask.device.type == "cpu"
    assert torch.equal(mask, released(image, PROMPTS[0]))


def test_half_precision_goes_all_the_way(mini):
    stage = Stage("cpu", mini, repeats=1, dtype=torch.bfloat16, sam="vit_b")
    assert {parameter.dtype for parameter in stage.adapter("mirror").parameters()} == {torch.bfloat16}
    for name in ("peer", "peer_with_other_sams", "sams"):
        for comparison in BENCHMARKS[name](stage):
            assert all(isfinite(row.ratio) for row in comparison.rows)
    assert stage.record()["adapter_dtype"] == stage.record()["base_dtype"] == "bfloat16"


def test_the_released_pipelines_points_are_ours(stage):
    """Suppression and sub-pixel refinement, on a map with two peaks away from its border."""
    adapter = stage.adapter("mirror")
    released = ReleasedPipeline(*stage.pair, adapter.config, adapter.decoder)
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    heat = torch.exp(-((x - 5.3) ** 2 + (y - 4.8) ** 2) / 8) + 0.7 * torch.exp(-((x - 14.6) ** 2 + (y - 13.2) ** 2) / 8)
    settings = {
        "count": 16,
        "radius": adapter.config.suppression_radius,
        "threshold": adapter.config.keypoint_threshold,
    }
    ours = find_keypoints(heat[None], torch.tensor([[20, 20]]), **settings)
    points, valid = released.peaks(heat)
    assert valid.sum() == ours.valid.sum() == 2
    torch.testing.assert_close(points[valid], ours.points[0][ours.valid[0]])


def test_all_ways_of_sam_are_one_computation(found):
    assert len(found["compile"]) == 3
    for comparison in found["compile"]:
        assert len(comparison.notes) == len(comparison.rows) - 1
        for note in comparison.notes:
            assert float(note.split(" differs by ")[1].split()[0]) < 1e-4


@pytest.mark.parametrize("fusion", ["lite", "mirror"])
def test_steps_make_up_segment(stage, fusion):
    adapter = stage.adapter(fusion)
    steps = Steps(adapter)
    out = adapter.segment(steps.image, PROMPTS[0], mask_threshold=0.0)
    assert torch.equal(out.masks, steps.enlarge()) and out.masks.all()
