"""`lens-adapter annotate`, from a folder to rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lens_adapter import LensAdapter
from lens_adapter.annotation.rows import read_rows, shard_facts, shards_in
from lens_adapter.builtin.demo import ONLY_ITS_WORLD
from lens_adapter.builtin.world import sample_scene
from lens_adapter.cli import main
from lens_adapter.errors import LensError
from tests.tiny.sam import noise_image
from tests.tiny.shipped import ship_tiny, use_shipped


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(3):
        noise_image(40 + k, 50, seed=k).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def call(folders: Path, *arguments: str | Path) -> int:
    names = ["--model", folders / "base", "--adapter", folders / "head"]
    return main(["annotate", *map(str, [*arguments, *names])])


def test_annotate_from_a_folder_to_rows(folders, pictures, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\ufeffa dog\n\n  a cat \n", encoding="utf-8")
    output = tmp_path / "new" / "out"
    asked = [pictures, "-o", output, "--prompts", tmp_path / "prompts.txt", "--preview", "3", "--format", "coco"]
    assert call(folders, *asked, "--shard-size", "2", "--json", tmp_path / "report.json") == 0
    captured = capsys.readouterr()
    rows = list(read_rows(shards_in(output)))
    assert [(row["image"], row["prompt"]) for row in rows] == [
        (name, prompt) for name in ("0.png", "1.png", "2.png", "broken.png") for prompt in ("a dog", "a cat")
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["pictures"], report["rows"], report["errors"], report["broken_pictures"]) == (4, 8, 2, 1)
    assert report["found"] == sum(row["found"] for row in rows) and len(shards_in(output)) == 2
    assert captured.out.splitlines() == [
        f"pictures 4, rows 8, of these found {report['found']}",
        "rows with an error instead of a mask 2, of 1 pictures",
    ]
    assert f"Wrote {output}\n" in captured.err and "picture/s" in captured.err
    assert (output / "_preview.html").exists() and (output / "annotations.json").exists()


def test_annotate_goes_on_and_judges_anew(folders, pictures, tmp_path, capsys, monkeypatch):
    asked = [pictures, "-o", tmp_path / "out", "--prompt", "a dog", "a cat"]
    assert call(folders, *asked) == 0
    monkeypatch.setattr(LensAdapter, "segment", None)  # the model has nothing to do any more
    assert call(folders, *asked) == 1
    assert "holds annotations already" in capsys.readouterr().err
    assert call(folders, *asked, "--resume") == 0
    assert call(folders, *asked, "--resume", "--score-threshold", "0.123") == 1
    assert "score threshold: there" in capsys.readouterr().err
    monkeypatch.setattr(LensAdapter, "from_pretrained", None)
    again = ["annotate", "-o", str(tmp_path / "out"), "--rethreshold"]
    assert main([*again, "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"] == 6
    assert main(["annotate", str(pictures), *again[1:], "0.9999", "--preview", "2"]) == 0
    assert "of these found 0" in capsys.readouterr().out and (tmp_path / "out" / "_preview.html").exists()
    assert main(["annotate", "-o", str(tmp_path / "none"), "--rethreshold", "0.5"]) == 1
    assert "holds no annotations" in capsys.readouterr().err


def test_annotate_by_drafts(folders, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    noise_image(300, 400).save(tmp_path / "photos" / "a.jpg")
    asked = [tmp_path / "photos", "-o", tmp_path / "out", "--prompt", "a dog", "--draft-side", "100"]
    assert call(folders, *asked) == 0
    (shard,) = shards_in(tmp_path / "out")
    (row,) = read_rows([shard])
    assert (row["width"], row["height"], row["rle"]["size"]) == (400, 300, [300, 400])
    assert shard_facts(shard)["draft_side"] == 100
    assert call(folders, *asked[:-2], "--resume") == 1
    assert "side of drafts: there 100, now None" in capsys.readouterr().err


def test_annotate_stops_where_that_is_wanted(folders, pictures, tmp_path, capsys):
    asked = [pictures, "-o", tmp_path / "out", "--prompt", "a dog", "--on-error", "stop"]
    assert call(folders, *asked) == 1
    assert "broken.png" in capsys.readouterr().err


def test_annotate_by_the_models_that_ship(pictures, tmp_path, monkeypatch, capsys):
    ship_tiny(tmp_path / "builtin")
    use_shipped(monkeypatch, tmp_path / "builtin")
    listed = tmp_path / "list.csv"
    listed.write_text(f"image,prompt\n{pictures / '0.png'},a dog\n")
    assert main(["annotate", str(listed), "-o", str(tmp_path / "out"), "--model", "builtin"]) == 0
    assert ONLY_ITS_WORLD in capsys.readouterr().err
    assert [row["prompt"] for row in read_rows(shards_in(tmp_path / "out"))] == ["a dog"]


@pytest.mark.parametrize(
    "data, more, complaint",
    [
        ("", [], "brings no prompts"),
        ("nowhere", ["--prompt", "a"], "Expected a folder of pictures, or a list"),
        ("", ["--prompt", " "], "A prompt must say what to find"),
        ("", ["--prompts", "nowhere.txt"], "--prompts nowhere.txt cannot be read"),
        ("", ["--prompts", "/dev/null"], "has no line"),
        ("", ["--prompt", "a", "--device", "toaster"], "--device toaster"),
        ("", ["--prompt", "a", "--score-threshold", "7"], "score_threshold must be"),
    ],
)
def test_what_cannot_be_annotated_is_said_and_nothing_is_written(
    folders, pictures, tmp_path, capsys, data, more, complaint
):
    assert call(folders, pictures / data, "-o", tmp_path / "out", *more) == 1
    assert complaint in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_of_errors_alone_has_failed(folders, pictures, tmp_path, capsys, monkeypatch):
    """Whether the pictures or the model are to blame; what was written stays, and the report too."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    assert call(folders, tmp_path / "bad", "-o", tmp_path / "out", "--prompt", "a dog") == 1
    captured = capsys.readouterr()
    assert "Nothing was annotated: every row (1) has an error. The first, 'a.png', prompt 'a dog'" in captured.err
    assert "rows with an error instead of a mask 1, of 1 pictures" in captured.out

    def fails(*_, **__):
        raise LensError("It computed numbers that are none.")

    monkeypatch.setattr(LensAdapter, "segment", fails)
    assert call(folders, pictures, "-o", tmp_path / "out2", "--prompt", "a dog", "a cat", "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["errors"] == 8 and "numbers that are none" in captured.err


def test_rows_of_words_without_a_token_are_counted(tmp_path, capsys, caplog):
    sample_scene(148846, "test").draw(384).save(tmp_path / "scene.png")
    asked = ["annotate", str(tmp_path), "-o", str(tmp_path / "out"), "--prompt", "the dog", "the quokka", "teh quokka"]
    said = "rows with words that the model has no token for 2: quokka, teh"
    assert main([*asked, "--adapter", "builtin"]) == 0
    assert said in capsys.readouterr().out and caplog.text.count("The model has no token for") == 1
    assert main([*asked, "--model", "builtin", "--resume", "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["not_understood"], report["unknown_words"]) == (2, ["quokka", "teh"])
    assert main(["annotate", "-o", str(tmp_path / "out"), "--rethreshold", "0.2"]) == 0
    assert said in capsys.readouterr().out
