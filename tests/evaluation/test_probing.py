"""Probing: the two measures by hand, a planted layer that must win, and the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lens_adapter
from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.builtin.exam import labelled_cases
from lens_adapter.cli import main
from lens_adapter.data.examples import Example
from lens_adapter.errors import InputError, LensConfigError, LensError
from lens_adapter.evaluation.probing import ProbeResult, Score, Tally, probe, tokens_in
from lens_adapter.head.raster import rasterize
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import prefill
from lens_adapter.vlm.inputs import build_inputs
from tests.tiny.adapters import hooks_in, marks_on, weights_of
from tests.tiny.models import NUM_HEADS, NUM_LAYERS
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import tiny_sam

PROMPT = "the bright square"
SIDE, PATCH = 56, 14  # of tiny LLaVA: 4 x 4 tokens


def bright_square(row: int, column: int) -> Example:
    """A dark image with one token's place bright."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = True
    noise = np.random.default_rng([row, column]).integers(0, 30, (SIDE, SIDE, 3), dtype=np.uint8)
    return Example(Image.fromarray(np.where(mask[..., None], 255 - noise, noise)), PROMPT, mask)


EXAMPLES = [bright_square(0, 1), bright_square(1, 3), bright_square(2, 0), bright_square(3, 2)]


def grid_boxes(side: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    corner = torch.stack([x, y], dim=-1).reshape(-1, 2) / side
    return torch.cat([corner, corner + 1 / side], dim=1)


def save_folder(folder: Path, examples: list[Example]) -> Path:
    lines = []
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for k, example in enumerate(examples):
        example.image.save(folder / "images" / f"{k}.png")
        Image.fromarray(example.mask).save(folder / "masks" / f"{k}.png")
        lines.append(json.dumps({"image": f"{k}.png", "mask": f"{k}.png", "prompt": example.prompt}))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


# -- the measures, by hand --------------------------------------------------------------------------------------------


def test_what_of_a_token_lies_in_the_mask():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[0, 1] = mask[1, 0] = True  # three of the first quarter's four pixels, but not its centre's
    mask[2:, 3] = True  # the right half of the last quarter: its centre is the corner of pixel (3, 3)
    inside, covered = tokens_in(grid_boxes(2), mask)
    assert inside.tolist() == [0, 0, 0, 1]
    assert covered.tolist() == [0.75, 0, 0, 0.5]


def test_boxes_need_not_lie_on_pixels():
    mask = np.zeros((2, 4), bool)
    mask[:, 1] = True
    boxes = torch.tensor([[0.1, 0, 0.35, 1], [0, 0, 1, 1], [0.26, 0.1, 0.27, 0.2], [0.9, 0.9, 1, 1]])
    inside, covered = tokens_in(boxes, mask)
    assert inside.tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(covered, torch.tensor([0.4, 0.25, 1, 0]))  # from 0.4 to 1.4 pixels: 0.4 of 1


def test_pointing_and_mass_of_rows():
    tally = Tally()
    inside, covered = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.75, 0, 0, 0.25])
    # Head 0 points, with 0.4 of its 0.8 on the image there; head 1 does not. Together they do: 0.35 against 0.3.
    tally.add({2: torch.tensor([[0.4, 0.1, 0.1, 0.2], [0.3, 0.5, 0, 0]])}, inside, covered)
    # Equal tokens share the hit; a row that leaves the image alone has no mass in the mask.
    tally.add({2: torch.tensor([[0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0]])}, inside, covered)
    assert (tally.chance, tally.even) == (0.5, 0.5)
    layers, heads = tally.scores()
    assert layers[2].pointing == (1 + 0.25) / 2
    assert heads[2, 0].pointing == (1 + 0.25) / 2 and heads[2, 1].pointing == (0 + 0.25) / 2
    assert heads[2, 0].mass_ratio == pytest.approx((0.5 * 0.75 + 0.25 * 0.25 + 0.25) / 0.5)
    assert heads[2, 1].mass_ratio == pytest.approx(0.375 * 0.75 / 0.5)
    mean = torch.tensor([0.35, 0.3, 0.05, 0.1])
    assert layers[2].mass_ratio == pytest.approx(float((mean / mean.sum()) @ covered + 0.25) / 0.5)


def test_rows_that_are_no_numbers_are_an_error():
    with pytest.raises(LensError, match="layer 3 is not finite"):
        Tally().add({3: torch.tensor([[math.nan, 0.0]])}, torch.ones(2), torch.ones(2))


# -- models -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def plant(model, processor, layer: int) -> None:
    """Let every head of `layer` attend, from the last token, to what is bright, by its weights alone."""
    anatomy, count = find_anatomy(model), len(EXAMPLES)
    images = [example.image for example in EXAMPLES]
    inputs = build_inputs(processor, images, [PROMPT] * count, LensConfig().prompt_template)
    seen = anatomy.layers[layer].input_layernorm(prefill(anatomy, inputs, tap_layer=layer).hidden)  # (B, T, D)
    bright = torch.zeros(seen.shape[:2])
    inside = [tokens_in(grid_boxes(4), example.mask)[0] for example in EXAMPLES]
    bright[inputs["input_ids"] == anatomy.image_token_id] = torch.cat(inside)
    tokens = seen.flatten(0, 1)
    key = torch.linalg.solve(tokens.T @ tokens + torch.eye(tokens.shape[1]), tokens.T @ bright.flatten())
    last = seen[:, -1].mean(0)
    attention = anatomy.attentions[layer]
    for projection, direction in ((attention.k_proj, key), (attention.q_proj, last / last.square().sum())):
        projection.weight.zero_()
        # The slowest of each head's rotary frequencies, so that places hardly matter.
        projection.weight[attention.head_dim // 2 - 1 :: attention.head_dim] = 8 * direction


@pytest.mark.parametrize("layer", [0, 2])
def test_the_planted_layer_wins(layer):
    model, processor = tiny_pair("llava", attention="sdpa")
    plant(model, processor, layer)
    result = probe(model, processor, EXAMPLES)
    assert result.ranked_layers[0] == result.recommended_tap_layer == layer
    assert result.layers[layer].pointing == 1 and result.layers[layer].mass_ratio > 5
    assert all(result.heads[layer, head].pointing == 1 for head in range(NUM_HEADS))
    assert result.ranked_heads[0][0] == layer
    assert (result.examples, result.skipped, result.chance) == (len(EXAMPLES), 0, 1 / 16)


def test_wrong_masks_are_not_pointed_at():
    model, processor = tiny_pair("llava", attention="sdpa")
    plant(model, processor, 2)
    wrong = [Example(example.image, PROMPT, example.mask.T) for example in EXAMPLES]
    score = probe(model, processor, wrong).layers[2]
    assert score.pointing == 0 and score.mass_ratio < 1


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl"])
def test_what_is_measured_is_the_heat_of_an_untrained_mirror(architecture):
    model, processor = tiny_pair(architecture)
    layer, example = 1, EXAMPLES[1]
    score = probe(model, processor, [example]).layers[layer]
    adapter = LensAdapter.from_model(model, processor, load_sam=False, tap_layer=layer, sam=tiny_sam())
    inputs = build_inputs(processor, [example.image], [PROMPT], adapter.config.prompt_template)
    layouts = adapter.layout(inputs, [(SIDE, SIDE)])
    heat = adapter.head.fusion(adapter.prefill(inputs), rasterize(layouts)).heat[0].detach()
    inside, covered = tokens_in(layouts[0].boxes, example.mask)
    assert score.pointing == inside[heat.argmax()]
    assert score.mass_ratio == pytest.approx(float(heat @ covered / heat.sum() / covered.mean()), rel=1e-4)


def test_the_kernel_does_not_matter_and_nothing_is_left_behind(monkeypatch):
    results = []
    for attention in ("eager", "sdpa"):
        model, processor = tiny_pair("qwen2_vl", attention=attention)
        with monkeypatch.context() as patch:
            patch.setattr("lens_adapter.head.head.LensHead.__init__", None)  # nothing that learns may be built
            patch.setattr("lens_adapter.sam.segment_anything.SamDecoder.__init__", None)
            weights, marks = weights_of(model), marks_on(model)
            results.append(probe(model, processor, EXAMPLES).to_dict())
        assert not hooks_in(model) and marks_on(model) == marks and weights_of(model) == weights
    one, two = results
    assert one["ranked_layers"] == two["ranked_layers"]
    for mine, theirs in zip(one["layers"], two["layers"], strict=True):
        assert mine["mass_ratio"] == pytest.approx(theirs["mass_ratio"], rel=1e-4)


def test_data_that_cannot_be_probed():
    model, processor = tiny_pair("llava")
    assert probe(model, processor, count=2).examples == 2  # drawn scenes
    empty = Example(EXAMPLES[0].image, PROMPT, np.zeros((SIDE, SIDE), bool))
    with pytest.raises(InputError, match="and 2 without"):
        probe(model, processor, [empty, empty])
    assert probe(model, processor, [empty, EXAMPLES[0]]).skipped == 1
    with pytest.raises(LensConfigError, match="a text that holds"):
        probe(model, processor, EXAMPLES, prompt_template="Where is it?")


def test_the_plot_shows_every_layer_and_changes_with_the_figures(tmp_path):
    model, processor = tiny_pair("llava")
    result = lens_adapter.probe(model, processor, EXAMPLES)
    picture = result.plot()
    result.layers[1] = Score(1.0, 6.0)
    result.save(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as other:
        assert other.size == picture.size and other.tobytes() != picture.tobytes()
    assert len(result.layers) == NUM_LAYERS and len(result.heads) == NUM_LAYERS * NUM_HEADS
    assert result.recommended_tap_layer == 1
    summary = result.summary(heads=2).splitlines()
    assert summary[1].split() == ["layer", "1", "1.000", "±", "0.000", "6.00"]
    assert [line.startswith("layer ") for line in summary].count(True) == NUM_LAYERS + 2


def test_a_late_layer_leaves_a_mirror_little_room():
    layers = {k: Score(0.5, 1.0 + k) for k in range(4)}
    result = ProbeResult(layers, {(k, 0): score for k, score in layers.items()}, 0.1, 9, 0, 4, 2)
    assert "tap_layer 3 (a new head's default is 2)" in result.summary()
    assert "give it fusion_layers=1" in result.summary()
    layers[2] = Score(0.5, 9.0)
    assert result.recommended_tap_layer == 2 and "fusion_layers" not in result.summary()


# -- the command line -------------------------------------------------------------------------------------------------


def test_probe_of_the_builtin_model(tmp_path, capsys):
    file, picture = tmp_path / "new" / "figures.json", tmp_path / "plots" / "layers.png"
    assert main(["probe", "--model", "builtin", "--examples", "2", "--json", str(file), "-o", str(picture)]) == 0
    captured = capsys.readouterr()
    figures = json.loads(file.read_text())
    assert figures["examples"] >= 8 and [row["layer"] for row in figures["layers"]] == [0, 1, 2, 3]
    assert f"tap_layer {figures['recommended_tap_layer']}" in captured.out
    assert f"Wrote {picture}" in captured.err and f"Wrote {file}" in captured.err
    with Image.open(picture) as opened:
        assert opened.format == "PNG" and opened.width > 400
    # The shipped heads' own question is asked, which the model knows.
    asked = LensConfig.from_pretrained(builtin.HEADS["lite"]).prompt_template
    again = probe(*builtin.load_base(), labelled_cases(2), prompt_template=asked)
    assert json.loads(json.dumps(again.to_dict())) == figures


def test_probe_of_a_model_and_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, processor = tiny_pair("qwen2_vl")
    model.save_pretrained("base")
    processor.save_pretrained("base")
    save_folder(tmp_path / "data", EXAMPLES[:2])
    assert main(["probe", "--model", "base", "--data", "data", "--template", "Find {prompt}."]) == 0
    captured = capsys.readouterr()
    assert "2 examples" in captured.out and "examples: 100%" in captured.err
    assert Path("lens-probe.png").is_file()
    assert main(["probe", "--model", "base", "--examples", "3"]) == 0  # drawn scenes
    captured = capsys.readouterr()
    assert "3 examples" in captured.out and "photographs is not known" in captured.err
    Path("data/masks/1.png").unlink()
    assert main(["probe", "--model", "base", "--data", "data"]) == 1
    complaint = capsys.readouterr().err
    assert "prompts.jsonl" in complaint and "line 2" in complaint and "There is no file" in complaint
