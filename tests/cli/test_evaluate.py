"""`lens-adapter evaluate`, of a head and of the models that ship."""

from __future__ import annotations

import json

import pytest

from lens_adapter.builtin.figures import BuiltinFigures
from lens_adapter.cli import main
from lens_adapter.cli.evaluate import SCENES
from lens_adapter.errors import InputError
from lens_adapter.evaluation import Evaluation
from tests.data.formats import reference
from tests.data.test_folder import write_folder
from tests.data.test_refer import write_set
from tests.tiny.shipped import ship_tiny, use_shipped


def test_evaluate_a_head(folders, tmp_path, capsys):
    """On a format that is no folder, with thresholds of one's own."""
    root = write_set(tmp_path / "refer_seg", [reference(1, 11, 1, ["a dog", "it"], "val"), reference(2, 15, 2, ["a"])])
    files = tmp_path / "new" / "figures.json", tmp_path / "new" / "page.html"
    command = ["evaluate", "--model", str(folders / "base"), "--adapter", str(folders / "head")]
    command += ["--data", str(root), "format=refer", "dataset=refcoco", "split=val"]
    command += ["--mask-threshold", "0.3", "--json", str(files[0]), "--gallery", str(files[1]), "--batch-size", "2"]
    assert main(command) == 0
    captured, result = capsys.readouterr(), Evaluation.load(files[0])
    assert captured.out == result.to_markdown() + "\n" and all(f"Wrote {file}" in captured.err for file in files)
    assert (result.prompts, result.images, result.mask_threshold) == (2, 1, 0.3)
    assert result.dataset == {"name": "refcoco", "split": "val", "revision": None}
    assert (result.base_model, result.adapter) == ("base", "head")  # their folders are nobody else's business
    assert list(result.figures) == ["all", "val"] and files[1].read_text().count("<figure>") == 2


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"--data": ["nowhere"]}, "prompts.jsonl"),
        ({"--data": ["nowhere", "format=voc"]}, "expected one of folder, refer"),
        ({"--data": ["nowhere", "format=hub"]}, "needs split too"),
        ({"--device": ["toaster"]}, "--device toaster cannot be used"),
        ({"--adapter": ["no head at all"]}, "no head at all"),
        ({"--score-threshold": ["1.5"]}, "score_threshold must be"),
    ],
)
def test_what_cannot_be_evaluated_is_said(folders, tmp_path, capsys, changes, complaint):
    write_folder(tmp_path, {"image": "a.jpg", "mask": "a.png", "prompt": "it"})
    flags = {"--model": [str(folders / "base")], "--adapter": [str(folders / "head")], "--data": [str(tmp_path)]}
    assert main(["evaluate", *(word for flag, words in (flags | changes).items() for word in (flag, *words))]) == 1
    assert complaint in capsys.readouterr().err.rpartition("lens-adapter evaluate: ")[2]


def test_evaluate_writes_every_figure_it_prints(tmp_path, monkeypatch, capsys):
    ship_tiny(tmp_path / "builtin")
    use_shipped(monkeypatch, tmp_path / "builtin")
    monkeypatch.setattr("lens_adapter.builtin.figures.VALIDATION_SCENES", 1)
    file = tmp_path / "results" / "figures.json"
    assert main(["evaluate", "--builtin", "--scenes", "1", "--json", str(file)]) == 0
    figures, captured = json.loads(file.read_text()), capsys.readouterr()
    records = [Evaluation.from_dict(record) for record in figures.pop("records")]
    assert [record.adapter for record in records] == ["lens-mirror", "lens-lite", "lens-lite"]
    assert records == Evaluation.load_all(file)
    with pytest.raises(InputError, match="holds 3 records"):
        Evaluation.load(file)
    assert all(f" {value:.4f} " in captured.out for value in figures.values()) and "| heads.lite " in captured.out
    assert len(captured.out.splitlines()) < 100 and "1 test scenes, about " in captured.err.partition("baselines, ")[0]
    assert "heads.lite.giou.attribute" in figures and "baselines.random_object.giou.attribute" in figures


def test_processes_share_the_scenes_as_asked(monkeypatch):
    asked = []

    def evaluate(scenes, foresee, workers):
        asked.append((scenes, workers))
        return BuiltinFigures({"answers.names": 0.5}, [])

    monkeypatch.setattr("lens_adapter.builtin.figures.evaluate_builtin", evaluate)
    assert main(["evaluate", "--builtin", "--scenes", "30", "--workers", "3"]) == 0
    assert main(["evaluate", "--builtin"]) == 0
    assert asked == [(30, 3), (SCENES, 1)]
