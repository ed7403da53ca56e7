"""The model card: what it says, that its snippet runs, and whose word counts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.hub.card import BASE_PLACEHOLDER, HEAD_PLACEHOLDER, is_generated, model_card
from lens_adapter.results import Evaluation
from lens_adapter.training.record import training_record
from tests.hub.server import metadata_errors
from tests.test_results import RECORD
from tests.tiny.adapters import tiny_adapter, tiny_trio
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image
from tests.tiny.training import make_trainer, toy_samples

pytestmark = pytest.mark.once  # a text that we write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny base on disk."""
    folder = tmp_path_factory.mktemp("base")
    for part in tiny_pair("llava"):
        part.save_pretrained(folder)
    return folder


def config(**fields: object) -> LensConfig:
    return LensConfig(fusion="lite", base_model_name_or_path="llava-hf/llava-1.5-7b-hf", **fields)


def run_snippet(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a card, in a folder with a picture."""
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    noise_image(40, 50).save(folder / "picture.jpg")
    monkeypatch.chdir(folder)
    exec(compile(snippet, "card", "exec"), {})
    with Image.open(folder / "overlay.png") as picture:
        assert picture.size == (50, 40)


def test_the_metadata(tmp_path):
    model, processor = tiny_pair("llava")
    model.config.name_or_path = "llava-hf/llava-1.5-7b-hf"
    adapter = tiny_adapter(model, processor)
    adapter.save_pretrained(tmp_path, license="apache-2.0")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "llava-hf/llava-1.5-7b-hf" and card.data.base_model_relation == "adapter"
    assert card.data.library_name == "lens-adapter" and card.data.pipeline_tag == "image-segmentation"
    assert {"lens", "adapter"} <= set(card.data.tags) and card.data.license == "apache-2.0"
    assert "llava-hf/llava-1.5-7b-hf" in card.text and "{" not in card.text.replace("{prompt}", "")
    assert adapter.config.prompt_template in card.text and not metadata_errors(str(card))


@pytest.mark.parametrize(
    "name, shown",
    [
        (None, "a base whose name is not recorded"),
        ("/home/me/llava", "llava"),
        ("C:\\Users\\me\\llava", "llava"),
        ("lens_adapter/builtin/vlm", "builtin"),
        ("not an id/at all", "at all"),
    ],
)
def test_a_base_that_the_hub_does_not_know_is_no_metadata_and_its_folder_nobodys_business(name, shown):
    text = model_card(LensConfig(base_model_name_or_path=name), location="/home/me/heads/mine")
    card = ModelCard(text)
    assert card.data.base_model is None and card.data.get("base_model_relation") is None and card.data.tags
    assert not metadata_errors(text) and f"# LENS head for {shown}\n" in card.text
    assert f"| base model | {shown} |" in card.text and "home" not in text and "Users" not in text
    loads = "builtin.load_base()" if shown == "builtin" else f'from_pretrained("{BASE_PLACEHOLDER}")'
    assert loads in text and f'from_pretrained("{HEAD_PLACEHOLDER}")' in text


@pytest.mark.parametrize("threshold", [0.0, 0.42])
def test_the_card_says_what_a_low_score_does(threshold):
    """As `segment` and its documentation have it."""
    text = model_card(config(score_threshold=threshold))
    assert ("every prompt is taken to name something" in text) is (threshold == 0)
    assert ("below 0.42 names nothing" in text and "empty mask without keypoints" in text) is (threshold == 0.42)


def test_nothing_is_invented():
    text = model_card(config())
    data = ModelCard(text).data.to_dict()
    assert data.keys() == {"base_model", "base_model_relation", "library_name", "pipeline_tag", "tags"}
    assert "No evaluation results are recorded" in text and "How it was trained is not recorded" in text
    assert "apache" not in text


def test_results_are_a_table_and_a_model_index_that_comes_back():
    text = model_card(config(), [Evaluation.from_dict({**RECORD, "head_sha256": "0" * 64})], location="me/lens-llava")
    card = ModelCard(text)
    assert card.data.model_name == "lens-llava" and "| gIoU  | 0.751 [0.700, 0.800] |" in text
    figures = {(e.dataset_config, e.metric_type): e.metric_value for e in card.data.eval_results}
    assert figures == {
        (subset, metric): figure["value"]
        for subset, metrics in RECORD["figures"].items()
        for metric, figure in metrics.items()
    }
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict() and not metadata_errors(str(card))
    assert "No evaluation" not in text


def test_the_snippet_of_a_saved_card_runs(base, tmp_path, monkeypatch):
    model, processor = tiny_pair("llava")
    model.config.name_or_path = str(base)
    tiny_adapter(model, processor).save_pretrained(tmp_path / "head")
    card = (tmp_path / "head" / "README.md").read_text()
    for placeholder, folder in ((BASE_PLACEHOLDER, base), (HEAD_PLACEHOLDER, tmp_path / "head")):
        assert str(folder) not in card and placeholder in card
        card = card.replace(placeholder, str(folder))
    run_snippet(card, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", builtin.HEADS)
def test_the_snippet_of_a_shipped_card_runs(name, tmp_path, monkeypatch):
    (tmp_path / "lens_adapter").symlink_to(ROOT / "lens_adapter")
    run_snippet((builtin.HEADS[name] / "README.md").read_text(), tmp_path, monkeypatch)


def test_a_card_that_somebody_wrote_or_edited_stays(tmp_path):
    adapter = tiny_trio()[0]
    for text in ("mine", None):
        if text is None:
            (tmp_path / "README.md").unlink()
            adapter.save_pretrained(tmp_path)
            text = (tmp_path / "README.md").read_text() + "\nAnd mine.\n"
        (tmp_path / "README.md").write_text(text)
        assert not is_generated(text)
        adapter.save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == text


def test_our_own_card_is_written_anew_and_keeps_its_license(tmp_path):
    adapter = tiny_trio()[0]
    adapter.save_pretrained(tmp_path, license="mit")
    assert is_generated((tmp_path / "README.md").read_text())
    adapter.config.num_keypoints = 7
    adapter.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "up to 7" in text and ModelCard(text).data.license == "mit"


HOSTILE = (
    "<script>alert(1)</script> [x](http://evil) ![y](http://evil/p.png) `a` ``b`` | c\n"
    '# Title\n---\nlicense: mine\n```\n"""'
)


def test_strings_of_a_config_are_no_markup():
    """In words, in code, in a table and in the metadata, a card says what a config says, and no more."""
    made = LensConfig(
        fusion="lite",
        base_model_name_or_path=HOSTILE,
        base_model_revision=HOSTILE,
        prompt_template="{prompt} " + HOSTILE,
        sam={"variant": "vit_b", "weights": HOSTILE},
        training=[{HOSTILE: HOSTILE, "datasets": [HOSTILE, "org/data"], "more": {HOSTILE: [HOSTILE]}}, {"datasets": 3}],
    )
    text = model_card(made, location=HOSTILE)
    card = ModelCard(text)
    assert card.data.to_dict().keys() <= {*ModelCard(model_card(config())).data.to_dict(), "datasets"}
    assert card.data.datasets == ["org/data"] and not metadata_errors(text)
    words = re.sub(r"```python\n.*?\n```|(`+)(?!`).*?(?<!`)\1(?!`)", "", card.text, flags=re.DOTALL)
    assert "<script" not in words and not re.search(r"(?<!\\)\]\(http", words.replace("[arXiv 2510.16785](http", ""))
    assert card.text.count("\n# ") == 1 and card.text.count("\n```") == 2
    for row in [line for line in card.text.splitlines() if line.startswith("| ")]:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3, row
    (snippet,) = re.findall(r"```python\n(.*?)```\n", card.text, re.DOTALL)
    compile(snippet, "card", "exec")


def test_facts_of_a_fit_may_be_anything():
    readout = {"heads": [[3, 2]], "data": HOSTILE, "pointing": "x", "chance": 10**400, "examples": {"a": HOSTILE}}
    card = model_card(LensConfig(fusion="readout", readout=readout, attention_layers=[3], tap_layer=3))
    assert "not known" in card and "<script" not in card


# -- how it was trained


def test_the_trainer_says_how(tmp_path):
    trainer = make_trainer(
        tmp_path, samples=toy_samples(4), max_steps=3, gradient_accumulation_steps=2, keypoint_dropout=0.25,
        dice_weight=3.0, dataset_names=["org/refcoco", "our own pictures"], save_strategy="steps", save_steps=2,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    for folder, steps in ((tmp_path / "checkpoint-2", 2), (tmp_path, 3)):
        (run,) = LensConfig.from_pretrained(folder).training
        assert (run["steps"], run["examples"], run["batch_size"]) == (steps, 4, 4)
        text = (folder / "README.md").read_text()
        for row in (f"steps | {steps}", "learning rate | 0.003", "dice weight | 3.0", "keypoint dropout | 0.25",
                    "decoder tuning | full", "batch size | 4", "datasets | org/refcoco, our own pictures"):  # fmt: skip
            assert f"| {row} |" in text
        assert ModelCard(text).data.datasets == ["org/refcoco"] and not metadata_errors(text)
    assert run["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(run)) == run
    assert run == training_record(trainer.args, trainer.state, trainer.train_dataset)


def test_a_second_training_is_told_beside_the_first(tmp_path):
    adapter = tiny_trio()[0]
    make_trainer(tmp_path, adapter, max_steps=2).train()
    trainer = make_trainer(tmp_path, adapter, max_steps=1)
    trainer.train()
    trainer.train()
    adapter.save_pretrained(tmp_path / "a")
    adapter = LensAdapter.from_pretrained(tmp_path / "a")
    assert [run["steps"] for run in adapter.config.training] == [2, 1, 1]
    assert (tmp_path / "a" / "README.md").read_text().count("| seed |") == 3


def test_what_was_not_trained_notes_nothing(tmp_path):
    make_trainer(tmp_path).save_model()
    assert LensConfig.from_pretrained(tmp_path).training is None


def test_a_readout_says_how_it_was_fitted():
    facts = {"heads": [[3, 2], [0, 1]], "data": "my-pictures", "pointing": 0.75, "chance": 0.0625, "examples": 20}
    fitted = config(attention_layers=[0, 3], tap_layer=3)
    fitted.fusion, fitted.readout = "readout", {**facts, "absent_refused": None}
    card = model_card(fitted)
    assert "a linear reading of 2 attention heads" in card and "attention of 3.2, 0.1 (layer.head)" in card
    assert "| fitted on | my-pictures |" in card and "first click lies in the mask | 0.750 |" in card
    assert "absent prompts refused | not known |" in card and "in photographs is not known" in card
    assert "How it was trained" not in card and "decoder's own estimate" not in card
    assert "photographs" not in model_card(config())
