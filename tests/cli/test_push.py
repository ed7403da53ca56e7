"""`lens-adapter push`, and heads of the Hub on the command line."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from lens_adapter import LensAdapter
from lens_adapter.cli import main
from lens_adapter.results import folder_digest
from tests.data.test_folder import write_folder
from tests.hub.server import OWNER, STRANGER
from tests.test_results import RECORD
from tests.tiny.adapters import BASE_NAME
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

HEAD = "me/lens"
BASE = ["--base-model", "org/the-base"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "head"))


def test_push(hub, folder, tmp_path, capsys):
    (folder / "training_args.bin").write_bytes(b"1")
    (tmp_path / "test.json").write_text(json.dumps({**RECORD, "head_sha256": folder_digest(folder)}))
    flags = ["--results", str(tmp_path / "test.json"), "--license", "mit", "--private", "--message", "One head"]
    assert main(["push", str(folder), HEAD, *flags]) == 0
    captured = capsys.readouterr()
    assert "Not part of a head, not uploaded: training_args.bin\n" in captured.err
    assert captured.out == f"Published at {hub.url}/{HEAD}\n"
    assert hub.repositories[HEAD].private and hub.repositories[HEAD].messages == ["initial commit", "One head"]
    files = hub.files(HEAD)
    assert files.keys() == {".gitattributes", "README.md", "config.json", "evaluation.json", "model.safetensors"}
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.model_name == "lens" and len(card.data.eval_results) == 3
    assert main(["push", str(folder), HEAD, "--create-pr", "--license", "gpl-3.0"]) == 0
    assert capsys.readouterr().out.endswith(f"Published at {hub.url}/{HEAD}/discussions/1\n")
    assert main(["push", str(folder), HEAD, "--revision", "next", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "url": f"{hub.url}/{HEAD}",
        "commit": hub.repositories[HEAD].branches["next"],
        "base_model": BASE_NAME,
        "not_uploaded": ["training_args.bin"],
    }
    assert hub.files(HEAD, "next").keys() == files.keys()


def test_results_of_another_head_are_refused_by_name(hub, folder, tmp_path, capsys):
    (tmp_path / "other.json").write_text(json.dumps({**RECORD, "adapter": "heads/one", "head_sha256": "ab" * 32}))
    before = sorted(path.name for path in folder.iterdir())
    assert main(["push", str(folder), HEAD, "--results", str(tmp_path / "other.json")]) == 1
    said = capsys.readouterr().err
    assert "The results on org/refcoco testA are about another head" in said and "heads/one" in said
    assert "abababababab..." in said and f"{folder_digest(folder)[:12]}..." in said
    assert not hub.requests and sorted(path.name for path in folder.iterdir()) == before


def test_results_of_an_unknown_head_are_shown_with_a_word_and_are_no_metadata(hub, folder, tmp_path, capsys):
    benchmark = {"id": "org/refcoco", "task_id": "testA", "subset": "all", "metric": "giou"}
    (tmp_path / "old.json").write_text(json.dumps({**RECORD, "benchmark": benchmark}))
    assert main(["push", str(folder), HEAD, "--results", str(tmp_path / "old.json")]) == 0
    assert "The record on org/refcoco testA does not say which weights it is about" in capsys.readouterr().err
    card = ModelCard(hub.files(HEAD)["README.md"].decode())
    assert "It is not recorded which weights these results are about.\n\n|" in card.text and "0.751" in card.text
    assert card.data.eval_results is None and not any(name.startswith(".eval") for name in hub.files(HEAD))


@pytest.mark.parametrize("name", [None, "/home/me/llava", "not/an/id"])
def test_a_base_that_nobody_else_finds_is_refused_until_it_is_named(hub, folder, capsys, name):
    config = json.loads((folder / "config.json").read_text()) | {"base_model_name_or_path": name}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["push", str(folder), HEAD]) == 1
    said = capsys.readouterr().err
    assert "Nobody else can find the base of this head" in said and "--base-model owner/name" in said
    assert not hub.requests
    assert main(["push", str(folder), HEAD, "--base-model", "also/not/one"]) == 1 and not hub.requests
    assert main(["push", str(folder), HEAD, *BASE]) == 0
    files = hub.files(HEAD)
    assert json.loads(files["config.json"])["base_model_name_or_path"] == "org/the-base"
    assert ModelCard(files["README.md"].decode()).data.base_model == "org/the-base"
    assert not any(b"home/me" in content for content in files.values())
    assert json.loads((folder / "config.json").read_text()) == config  # theirs stays
    assert LensAdapter.from_pretrained(HEAD).config.base_model_name_or_path == "org/the-base"


def test_of_a_file_of_several_records_that_of_the_head_is_taken(hub, folder, tmp_path, capsys):
    """As `evaluate --builtin --json` writes it: figures by name, and `records`."""
    own, other = {**RECORD, "head_sha256": folder_digest(folder)}, {**RECORD, "head_sha256": "ab" * 32}
    for records, code in (([other, own], 0), ([other, other], 1)):
        (tmp_path / "all.json").write_text(json.dumps({"heads.lite.giou.all": 0.5, "records": records}))
        assert main(["push", str(folder), HEAD, "--results", str(tmp_path / "all.json")]) == code
    said = capsys.readouterr().err
    assert "1 of its 2 records are about other heads" in said and "none of them about the weights in" in said
    assert len(ModelCard(hub.files(HEAD)["README.md"].decode()).data.eval_results) == 3


def test_what_evaluate_writes_fits_its_head_and_no_other(hub, folders, tmp_path, capsys):
    """From the command that measures to the one that publishes, and a head that is trained further between them."""
    data, file = tmp_path / "data", tmp_path / "figures.json"
    write_folder(data, {"image": "a.jpg", "mask": "a.png", "prompt": "it"})
    head = Path(shutil.copytree(folders / "head", tmp_path / "mine"))
    names = ["--model", str(folders / "base"), "--adapter", str(head), "--data", str(data)]
    assert main(["evaluate", *names, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["head_sha256"] == folder_digest(head)
    assert main(["push", str(head), HEAD, "--results", str(file), *BASE]) == 0
    card = ModelCard(hub.files(HEAD)["README.md"].decode())
    assert card.data.eval_results and str(tmp_path) not in str(card) and str(folders) not in str(card)
    adapter = LensAdapter.from_pretrained(head)
    adapter.head.descriptors.text_vector.data += 1e-6
    adapter.save_pretrained(head)
    assert main(["push", str(head), HEAD, "--results", str(file), *BASE]) == 1
    assert "are about another head" in capsys.readouterr().err
    assert main(["push", str(head), HEAD, *BASE]) == 0
    assert ModelCard(hub.files(HEAD)["README.md"].decode()).data.eval_results is None


def test_the_example_publishes_and_loads(hub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["publish.py", HEAD])
    runpy.run_path(str(ROOT / "examples" / "publish.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert f"Published at {hub.url}/{HEAD}" in printed and "As loaded from there: " in printed
    assert hub.repositories[HEAD].private and len(hub.repositories[HEAD].messages) == 2
    card = ModelCard(hub.files(HEAD)["README.md"].decode())
    assert card.data.license == "apache-2.0" and "one scene" in card.text and card.data.eval_results


def spoil_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("head.descriptors.text_vector")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "spoil, flags, complaint",
    [
        (spoil_weights, [], "missing_keys: 'head.descriptors.text_vector'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1"), [], "damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), [], "config.json"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\nMine."), [], "metadata"),
        (lambda folder: (folder / "figures.json").write_text("{}"), ["--results", "figures.json"], "figures.json"),
        (lambda folder: None, ["--results", "nowhere.json"], "nowhere.json"),
        (lambda folder: None, ["--token", STRANGER], "Use a token that may write there"),
    ],
)
def test_what_cannot_be_pushed_is_said_in_one_line(hub, folder, capsys, monkeypatch, spoil, flags, complaint):
    spoil(folder)
    monkeypatch.chdir(folder)
    assert main(["push", str(folder), HEAD, *flags]) == 1
    _, said, message = capsys.readouterr().err.rpartition("lens-adapter push: ")
    assert said and complaint in message and message.count("\n") == 1
    assert HEAD not in hub.repositories


@pytest.mark.parametrize("adapter", ["me/nothing", "me/not/a/name"])
def test_segment_with_a_head_that_is_not_there(hub, folder, tmp_path, capsys, adapter):
    noise_image(40, 50).save(tmp_path / "photo.png")
    assert main(["segment", str(tmp_path / "photo.png"), "a dog", "--model", "me/base", "--adapter", adapter]) == 1
    captured = capsys.readouterr()
    _, said, message = captured.err.rpartition("lens-adapter segment: ")
    assert said and adapter in message and message.count("\n") == 1 and "Traceback" not in captured.err


def test_segment_while_the_hub_breaks_down(hub, folder, tmp_path, capsys, naps):
    noise_image(40, 50).save(tmp_path / "photo.png")
    assert main(["push", str(folder), HEAD]) == 0
    hub.fail(r"GET /cdn/", drop_after=0, times=99)
    assert main(["segment", str(tmp_path / "photo.png"), "a dog", "--model", "me/base", "--adapter", HEAD]) == 1
    _, said, message = capsys.readouterr().err.rpartition("lens-adapter segment: ")
    assert said and message.count("\n") == 1


def test_with_the_environment_that_users_set(hub, folder, tmp_path):
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, in processes of their own: push, load, then offline."""
    model, processor = tiny_pair("llava")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    noise_image(40, 50).save(tmp_path / "photo.png")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": OWNER}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    code = (
        "import sys; from lens_adapter.cli import main; "
        "push, segment = sys.argv[1:4], sys.argv[4:]; sys.exit(main(push) or main(segment))"
    )
    segment = ["segment", str(tmp_path / "photo.png"), "a dog", "--model", str(tmp_path / "base"), "--adapter", HEAD]
    segment += ["-o", str(tmp_path / "out.png")]
    run = subprocess.run(
        [sys.executable, "-c", code, "push", str(folder), HEAD, *segment],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert f"Published at {hub.url}/{HEAD}" in run.stdout and (tmp_path / "out.png").is_file()
