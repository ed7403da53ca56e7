"""A readout from a handful of examples: it finds what points, judges itself honestly, and refuses what is chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface

from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.builtin.world.labelled import KINDS, labelled_scenes
from lens_adapter.data.examples import Example
from lens_adapter.errors import (
    CheckpointMismatchError,
    FitError,
    InputError,
    LensConfigError,
    LensError,
    NotAttachedError,
)
from lens_adapter.fitting import HEADS, Seen, choose_and_judge, count_parts, reliability
from tests.tiny.adapters import hooks_in, marks_on, weights_of
from tests.tiny.pairs import tiny_pair
from tests.tiny.processes import run_two
from tests.tiny.sam import noise_image, tiny_sam

LAYERS, HEADS_OF_A_LAYER, SIDE = 32, 32, 12
NAMES = [(layer, head) for layer in range(LAYERS) for head in range(HEADS_OF_A_LAYER)]
CONFIG = LensConfig(fusion="readout", num_hidden_layers=LAYERS, num_attention_heads=HEADS_OF_A_LAYER)
PLANTED = [(5, 3), (14, 7), (20, 1)]


def seen(planted=PLANTED, *, count=24, strength=2.5, sink=0.0, permuted=False, absent=True) -> list[Seen]:
    """Attention of 1 024 heads that is noise, but for those that are hotter where the mask is."""
    draw, found = torch.Generator().manual_seed(0), []
    for group in range(count):
        y, x = torch.randint(0, SIDE - 3, (2,), generator=draw).tolist()
        cover = torch.zeros(SIDE, SIDE)
        cover[y : y + 3, x : x + 3] = 1
        logs = torch.randn(len(NAMES), SIDE, SIDE, generator=draw)
        for layer, head in planted:
            logs[NAMES.index((layer, head))] += strength * cover
        logs[:, 0, 0] += sink
        if permuted:
            y, x = torch.randint(0, SIDE - 3, (2,), generator=draw).tolist()
            cover = torch.zeros(SIDE, SIDE)
            cover[y : y + 3, x : x + 3] = 1
        mask = np.kron(cover.numpy() > 0, np.ones((4, 4), bool))
        found.append(Seen(logs, cover, mask, False, group))
        if absent:
            noise = torch.randn(len(NAMES), SIDE, SIDE, generator=draw)
            found.append(Seen(noise, 0 * cover, np.zeros_like(mask), False, group))
    return found


@pytest.mark.parametrize("sink", [0.0, 8.0])
def test_planted_heads_are_found_among_a_thousand(sink):
    report, config, readout = choose_and_judge(NAMES, CONFIG, seen(sink=sink), validation=0.25)
    assert set(report.heads[:3]) == set(PLANTED) and len(report.heads) <= HEADS
    assert report.pointing > 0.8 and report.chance == pytest.approx(9 / SIDE**2)
    assert report.absent_refused > 0.8 and report.present_accepted >= 0.9
    assert config.readout["heads"] == [list(pair) for pair in report.heads]
    assert config.tap_layer == max(layer for layer, _ in report.heads) == max(config.attention_layers)
    weight = readout.weight.abs().sum(1)
    assert weight[:3].min() > 3 * weight[3:].max()  # the others hardly count


def test_a_shallow_head_that_serves_as_well_keeps_the_reading_short():
    alike = seen([(3, 1), (3, 2)], strength=6.0)
    for one in alike:
        one.logs[NAMES.index((30, 4))] = one.logs[NAMES.index((3, 1))]  # a deep head that says the same
    report, *_ = choose_and_judge(NAMES, CONFIG, alike, validation=0.25)
    assert max(layer for layer, _ in report.heads) == 3
    assert report.by_depth[3] > 0.8 and max(report.by_depth) >= 30  # deeper was looked at
    deep, *_ = choose_and_judge(NAMES, CONFIG, seen([(30, 4)], strength=6.0), validation=0.25)
    assert max(layer for layer, _ in deep.heads) == 30


@pytest.mark.parametrize("found", [seen(permuted=True), seen([])], ids=["permuted masks", "noise alone"])
def test_chance_is_refused_with_its_figures(found):
    with pytest.raises(FitError, match=r"hottest point lies in the mask .*% of the time and a random one 6.2%"):
        choose_and_judge(NAMES, CONFIG, found, validation=0.25)


def test_what_it_is_judged_on_had_no_part_in_it():
    """A head shows the masks of one fold and is silent elsewhere: whoever had learned from that fold would see them."""
    found, fold = seen([]), range(0, 24, 4)  # that of every fourth picture
    for one in found:
        y, corner = (8, SIDE - 3) if one.group in fold else (2, 0)
        if one.present:
            one.cover.zero_()[y : y + 3, corner : corner + 3] = 1
            one.mask[:] = np.kron(one.cover.numpy() > 0, np.ones((4, 4), bool))
            own = (5, 7) if one.group in fold else (5, 3)
            one.logs[NAMES.index(own)] += 8.0 * one.cover
    report, *_ = choose_and_judge(NAMES, CONFIG, found, validation=0.25)
    assert {(5, 7), (5, 3)} <= set(report.heads)  # what is kept has learned from all pictures
    assert 0.6 < report.pointing <= 18 / 24


def test_too_few_pictures_are_refused():
    report, *_ = choose_and_judge(NAMES, CONFIG, seen(), validation=0.25)
    assert report.images == 24 and report.examples == 24 and report.absent == 24
    with pytest.raises(InputError, match="at least 4 pictures, got 3 such prompts about 3"):
        choose_and_judge(NAMES, CONFIG, seen(count=3), validation=0.25)
    one_picture = [replace(one, group=0) for one in seen()]
    with pytest.raises(InputError, match="24 such prompts about 1"):
        choose_and_judge(NAMES, CONFIG, one_picture, validation=0.25)
    with pytest.raises(InputError, match="got 0 such prompts about 0"):
        choose_and_judge(NAMES, CONFIG, [one for one in seen() if not one.present], validation=0.25)


def test_without_a_prompt_that_names_nothing_no_threshold_is_made_up():
    report, config, readout = choose_and_judge(NAMES, CONFIG, seen(absent=False), validation=0.25)
    assert report.absent_refused is None and report.score_threshold == config.score_threshold == 0.0
    assert float(readout.presence_weight[-1]) == 10.0 and not readout.presence_weight[:-1].any()
    assert "not known" in report.summary()


def test_parts_of_a_mask():
    mask = np.zeros((60, 90), bool)
    assert count_parts(mask) == 0
    mask[5:25, 5:25] = True
    assert count_parts(mask) == 1
    mask[5:25, 60:80] = True
    mask[50, 50] = True  # a speck
    assert count_parts(mask) == 2
    mask[10:12, 25:60] = True  # a bridge
    assert count_parts(mask) == 1


# -- the models that ship ----------------------------------------------------------------------------------------------


def new_readout(attention: str = "sdpa", **fields) -> LensAdapter:
    model, processor = builtin.load_base()
    model.set_attn_implementation(attention)
    fields = {"sam": "builtin", **builtin.QUESTIONS, **fields}
    return LensAdapter.from_model(model, processor, fusion="readout", **fields)


@pytest.fixture(scope="module")
def fitted() -> LensAdapter:
    adapter = new_readout()
    adapter.fit(count=30)
    return adapter


def test_scenes_that_cost_no_labels():
    made = list(labelled_scenes(10))
    present = [one for one in made if one.mask.any()]
    assert [one.kind for one in present] == [*KINDS, *KINDS] and len({one.image_id for one in present}) == 10
    absent = [one for one in made if not one.mask.any()]
    assert len(absent) == 10 and {one.kind for one in absent} == {"absent"}
    assert [one.prompt for one in labelled_scenes(10)] == [one.prompt for one in made]


def test_a_readout_of_the_built_in_model_points(fitted):
    exams = [make_exam(index, "test") for index in range(6)]
    hits = []
    for exam in exams:
        out = fitted.segment(exam.picture, exam.prompts, score_threshold=0)
        for k, case in enumerate(exam.cases):
            if case.has_target and len(out.keypoints[k]):
                x, y = out.keypoints[k][0].long().clamp(max=383).tolist()
                hits.append(bool(case.truth[y, x]))
    assert np.mean(hits) > 0.5  # a random point: about 0.06
    assert fitted.config.readout["data"] == "drawn scenes of the built-in world"


def test_instances_are_the_things_that_were_clicked_on(fitted):
    exams = [make_exam(index, "validation") for index in range(12)]
    counts = set()
    for exam in exams:
        out = fitted.segment(exam.picture, exam.prompts, score_threshold=0, instances=True)
        for mask, instances in zip(out.masks, out.instances, strict=True):
            assert torch.equal(instances.masks.any(0), mask) and int(instances.masks.sum(0).max()) <= 1
            counts.add(len(instances))
    assert 1 in counts and max(counts) > 1


def test_fitting_only_reads_the_base():
    adapter = new_readout()
    model = adapter.base.model
    model(**adapter.base.build_inputs([make_exam(0, "test").picture], ["a dog"]))  # leaves hooks of transformers' own
    weights, marks = weights_of(model), marks_on(model)
    own, modes = weights_of(adapter.decoder), [part.training for part in adapter.decoder.modules()]
    adapter.fit(count=10)
    assert weights_of(model) == weights and marks_on(model) == marks and not hooks_in(model)
    assert weights_of(adapter.decoder) == own and [part.training for part in adapter.decoder.modules()] == modes


def test_the_kernel_of_the_base_does_not_matter():
    reports = [new_readout(attention).fit(count=10) for attention in ("eager", "sdpa")]
    assert reports[0].heads == reports[1].heads
    assert reports[0].score_threshold == pytest.approx(reports[1].score_threshold, abs=1e-3)


def test_an_offloaded_base_gives_the_same_readout():
    expected, adapter = new_readout().fit(count=10), new_readout()
    accelerate.cpu_offload(adapter.base.model)
    assert next(adapter.base.model.parameters()).is_meta
    assert adapter.fit(count=10) == expected


def test_a_base_in_bfloat16():
    model, processor = builtin.load_base()
    adapter = LensAdapter.from_model(model.bfloat16(), processor, fusion="readout", sam="builtin", **builtin.QUESTIONS)
    report = adapter.fit(count=20)
    assert report.pointing > 4 * report.chance


def test_a_quantised_base():
    quantization = pytest.importorskip("torchao.quantization")
    model, processor = builtin.load_base()
    exact = model.model.language_model.layers[1].self_attn.q_proj.weight
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    assert type(model.model.language_model.layers[1].self_attn.q_proj.weight) is not type(exact)
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam="builtin", **builtin.QUESTIONS)
    report = adapter.fit(count=20)
    assert report.pointing > 4 * report.chance


def flash(module, query, key, value, attention_mask=None, **kwargs):
    """What the flash kernels compute and how they are called: no mask or a padding mask (N, T), no weights returned."""
    assert attention_mask is None or attention_mask.ndim == 2
    groups, (queries, keys) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if attention_mask is not None:
        allowed = allowed & attention_mask[:, None, None, -keys:].bool()
    repeated = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=allowed, scale=kwargs["scaling"])
    return out.nan_to_num().transpose(1, 2), None


def test_a_base_that_runs_flash(monkeypatch):
    """Its kernels need a GPU: here, a function called as they are stands in for them."""
    expected, adapter = new_readout().fit(count=10), new_readout()
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    adapter.base.model.config.text_config._attn_implementation_internal = "flash_attention_2"
    assert adapter.base.anatomy.attention_implementation(0) == "flash_attention_2"
    report = adapter.fit(count=10)
    assert report.heads == expected.heads
    assert report.score_threshold == pytest.approx(expected.score_threshold, abs=1e-3)


def _fit_on_one_of_two(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    model, processor = builtin.load_base()
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    fully_shard(model)
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam="builtin", **builtin.QUESTIONS)
    assert isinstance(model.model.language_model.layers[1].self_attn.q_proj.weight, DTensor)
    (folder / f"{rank}.json").write_text(json.dumps(adapter.fit(count=10).to_dict()))
    torch.distributed.destroy_process_group()


def test_a_base_sharded_over_two_processes(tmp_path):
    expected = new_readout().fit(count=10)
    run_two(_fit_on_one_of_two, tmp_path)
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["heads"] == [list(head) for head in expected.heads]
        assert report["score_threshold"] == pytest.approx(expected.score_threshold, abs=1e-3)


def test_a_look_asks_the_base_nothing(monkeypatch):
    adapter = new_readout()
    monkeypatch.setattr(adapter.base, "yes_over_no", lambda *_: pytest.fail("the base was asked"))
    assert adapter.look(noise_image(40, 60), "a cup").size == (60, 40)


def test_a_base_that_cannot_be_asked_is_not_asked(monkeypatch, caplog):
    adapter = new_readout()

    def refuse(*_):
        raise InputError("it does not answer token by token")

    monkeypatch.setattr(adapter.base, "yes_over_no", refuse)
    with caplog.at_level("WARNING", logger="lens_adapter.fitting"):
        adapter.fit(count=10)
    assert adapter.config.presence_question is None and adapter.segment(noise_image(40, 40), "a cup").scores.isfinite()
    assert "token by token" in caplog.text


def test_a_checkpoint_of_kilobytes_finds_the_same_masks(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 20_000
    exam = make_exam(40, "validation")
    again = LensAdapter.from_pretrained(tmp_path)
    assert again.config.readout == fitted.config.readout and again.head.heads == fitted.head.heads
    with again.attach(fitted.base.model, fitted.base.processor):
        mine, theirs = (one.segment(exam.picture, exam.prompts) for one in (again, fitted))
    assert torch.equal(mine.masks, theirs.masks) and torch.equal(mine.scores, theirs.scores)
    again.save_pretrained(tmp_path / "again")  # after SAM was loaded, too
    assert (tmp_path / "again" / "model.safetensors").stat().st_size < 5_000
    with pytest.raises(CheckpointMismatchError, match="This head was trained for"):
        again.attach(*tiny_pair("llava"))


def test_a_sam_of_ones_own_that_has_no_name_travels_along(tmp_path):
    model, processor = tiny_pair("llava")
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam=tiny_sam(), load_sam=False)
    adapter.save_pretrained(tmp_path)
    again = LensAdapter.from_pretrained(tmp_path)
    assert weights_of(again.decoder) == weights_of(adapter.decoder)


def test_before_it_is_fitted_it_says_so():
    model, processor = tiny_pair("llava")
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam=tiny_sam(), load_sam=False)
    with pytest.raises(LensError, match=r"not fitted yet: call adapter\.fit"):
        adapter.segment(noise_image(40, 40), "the cat")
    adapter.detach()
    with pytest.raises(NotAttachedError):
        adapter.fit()
    lite = LensAdapter.from_model(model, processor, fusion="lite", sam=tiny_sam(), load_sam=False)
    with pytest.raises(LensConfigError, match='fit is for fusion="readout"'):
        lite.fit()


def test_a_refusal_leaves_the_head_as_it_was(fitted):
    before, settings = weights_of(fitted.head), fitted.config.to_dict()
    scenes = [one for one in labelled_scenes(12) if one.mask.any()]
    others = scenes[3:] + scenes[:3]
    shuffled = [Example(one.image, one.prompt, other.mask) for one, other in zip(scenes, others, strict=True)]
    with pytest.raises(FitError):
        fitted.fit(shuffled)
    assert weights_of(fitted.head) == before and fitted.config.to_dict() == settings


def test_prompts_of_other_pictures_stand_in_for_what_is_absent():
    adapter = new_readout()
    report = adapter.fit([one for one in labelled_scenes(16) if one.mask.any()])
    assert report.examples == 16 and report.absent == 16 and report.absent_refused is not None


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_examples_of_ones_own_and_a_random_base(architecture):
    """Nothing points in a random model; what matters is that it reads any, and says so."""
    model, processor = tiny_pair(architecture)
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam=tiny_sam(), load_sam=False)
    examples = []
    for k in range(8):
        mask = np.zeros((48, 60), bool)
        mask[4 * k : 4 * k + 9, 10:20] = True
        examples.append(Example(noise_image(48, 60, seed=k), f"thing {k}", mask))
    try:
        report = adapter.fit(examples)
    except FitError as refusal:
        assert "may be chance" in str(refusal)
        assert not adapter.head.heads
    else:
        assert report.pointing > report.chance


# -- where does it look ------------------------------------------------------------------------------------------------


def test_look_in_one_line(fitted):
    exam = make_exam(3, "validation")
    prompt = exam.prompts[0]
    ways = ({}, {"layer": 3}, {"layer": 3, "head": 2})
    pictures = [fitted.look(exam.picture, prompt, **way) for way in ways]
    assert all(picture.size == exam.picture.size for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 3
    with pytest.raises(LensConfigError, match="from 0 to 3; got 9"):
        fitted.look(exam.picture, prompt, layer=3, head=9)
    with pytest.raises(LensConfigError, match="layers must be"):
        fitted.look(exam.picture, prompt, layer=40)


def test_look_needs_no_sam_and_no_fit():
    model, processor = tiny_pair("llava", attention="sdpa")
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam="vit_b", load_sam=False)
    picture = adapter.look(Image.new("RGB", (80, 50), "white"), "the cat")
    assert picture.size == (80, 50) and not hooks_in(model)


def test_reliability_counts_prompts_by_score():
    table = reliability([0.05, 0.15, 0.9, 1.0], [False, True, True, True])
    assert table == [(pytest.approx(0.1), 0.5, 2), (pytest.approx(0.95), 1.0, 2)]


def test_held_out_scores_of_a_fit_are_probabilities():
    report, *_ = choose_and_judge(NAMES, CONFIG, seen(count=40), validation=0.25)
    assert sum(prompts for *_, prompts in report.reliability) == report.examples + report.absent
    low, high = report.reliability[0], report.reliability[-1]
    assert low[1] < 0.3 and high[1] > 0.7  # low scores where nothing is, high ones where something is
    assert f"{high[1]:.0%} named something" in report.summary()


def test_the_built_in_model_is_asked_what_its_heads_ask_and_sam_is_cut_as_it_was_taught():
    config = new_readout().config
    assert config.prompt_template == LensConfig.from_pretrained(builtin.HEADS["lite"]).prompt_template
    assert config.presence_question == "is there {prompt} ?" and config.mask_threshold == 0.5
