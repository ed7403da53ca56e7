"""The models as they ship: loadable by anybody, small, and as good as the published figures say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    SamModel,
    SamProcessor,
)

from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.builtin.evaluation import examine, head_figures
from lens_adapter.builtin.exam import make_exam
from lens_adapter.head.sam_weights import rename_from_sam_model

ROOT = Path(__file__).parents[1]
FOLDERS = [builtin.VLM, builtin.SAM, *builtin.HEADS.values()]


def test_plain_from_pretrained_loads_everything():
    assert isinstance(LlavaForConditionalGeneration.from_pretrained(builtin.VLM), LlavaForConditionalGeneration)
    assert "<image>" in AutoProcessor.from_pretrained(builtin.VLM).tokenizer.get_vocab()
    assert isinstance(SamModel.from_pretrained(builtin.SAM), SamModel)
    assert SamProcessor.from_pretrained(builtin.SAM).image_processor.size["longest_edge"] == 192
    for folder in builtin.HEADS.values():
        assert isinstance(LensAdapter.from_pretrained(folder), LensAdapter)


def test_together_under_40_megabytes_and_no_pickle():
    files = [path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}


def test_no_file_names_a_place_on_the_machine_it_was_made_on():
    for folder in FOLDERS:
        for path in folder.glob("*.json"):
            texts = [value for value in _texts(json.loads(path.read_text())) if Path(value).is_absolute()]
            assert [text for text in texts if len(Path(text).parts) > 2] == []


def _texts(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_has_a_card(folder):
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "apache-2.0"


@pytest.mark.parametrize("name", builtin.HEADS)
def test_the_frozen_image_encoder_in_a_head_is_the_shipped_one(name):
    shipped = rename_from_sam_model(SamModel.from_pretrained(builtin.SAM).state_dict())
    for key, tensor in builtin.load_head(name).decoder.image_encoder.state_dict().items():
        assert torch.equal(tensor, shipped[f"image_encoder.{key}"])


@pytest.mark.parametrize("name", builtin.HEADS)
def test_some_test_scenes_agree_with_the_published_figures(name):
    published = json.loads((ROOT / "results" / "builtin.json").read_text())
    model, processor = builtin.load_base()
    with builtin.load_head(name).attach(model, processor) as adapter:
        found = [finding for i in range(25) for finding in examine(adapter, make_exam(i, "test"))]
        figures = head_figures(found, adapter.config.score_threshold)
    # 25 scenes instead of 500: about 150 masks, whose mean scatters by some hundredths.
    assert figures["giou.all"] == pytest.approx(published[f"heads.{name}.giou.all"], abs=0.08)
    assert figures["keypoint_on_target"] == pytest.approx(published[f"heads.{name}.keypoint_on_target"], abs=0.12)


@pytest.mark.parametrize("page", ["README.md", "MODEL_CARD.md"])
def test_the_pages_quote_the_measured_figures(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "builtin"))
    sys.modules.pop("report", None)
    import report

    figures = json.loads((ROOT / "results" / "builtin.json").read_text())
    text = (ROOT / page).read_text()
    assert report.with_tables(text, figures) == text


@pytest.mark.parametrize("name", builtin.HEADS)
def test_the_card_of_a_head_says_what_it_is_and_what_was_measured(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "builtin"))
    sys.modules.pop("report", None)
    import report

    figures = json.loads((ROOT / "results" / "builtin.json").read_text())
    card = (builtin.HEADS[name] / "README.md").read_text()
    assert card == report.head_card(builtin.HEADS[name], figures)
    assert f"decoder layer {LensConfig.from_pretrained(builtin.HEADS[name]).tap_layer} of 4" in card


def test_the_layer_that_probe_recommends_is_no_worse_than_the_default():
    figures = json.loads((ROOT / "results" / "probe.json").read_text())
    default, recommended = figures["default"], figures["recommended"]
    assert recommended["tap_layer"] == LensConfig.from_pretrained(builtin.HEADS["lite"]).tap_layer
    assert recommended["giou.all"] >= default["giou.all"]
    best = max(figures["layers"], key=lambda layer: figures["layers"][layer]["mass_ratio"])
    assert int(best) == recommended["tap_layer"] != default["tap_layer"]
    page = (ROOT / "README.md").read_text()
    assert f"{recommended['giou.all']:.3f} and {default['giou.all']:.3f}" in page
