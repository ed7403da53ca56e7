"""Files appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lens_adapter import annotate, builtin
from lens_adapter.cli.outputs import require_files, require_folder_for
from lens_adapter.errors import InputError
from lens_adapter.training.cache.store import FeatureStore
from lens_adapter.writing import write_text, written_aside
from tests.annotation.standin import standin, write_pictures

KILLED_WHILE_WRITING = """
import os, sys
from lens_adapter.writing import written_aside
with written_aside(sys.argv[1]) as aside:
    aside.write_text("half")
    os._exit(9)
"""


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_after_an_exception_everything_is_as_before(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_aside(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_after_a_kill_the_file_is_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], check=False).returncode == 9
    assert path.read_text() == "old"


def test_permissions_are_those_of_any_new_file_or_of_the_old_one(tmp_path):
    (tmp_path / "plain").write_text("")
    for _ in range(2):
        with written_aside(tmp_path / "a") as aside:
            aside.write_text("new")
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "a").chmod(0o640)
    with written_aside(tmp_path / "a") as aside:
        aside.write_text("new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with written_aside(tmp_path / "link") as aside:
        aside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(InputError, match=r"nowhere/a\.json cannot be written: No such file"),
        written_aside(tmp_path / "nowhere" / "a.json"),
    ):
        pass


ADDRESSES = {
    "a text": lambda: write_text("s3://bucket/a.json", "{}"),
    "annotations": lambda: annotate(standin, "pictures", "s3://bucket/out", prompts="a dog"),
    "annotations, a Path": lambda: annotate(standin, "pictures", Path("gs://bucket/out"), prompts="a dog"),
    "a head": lambda: builtin.load_head("lite").save_pretrained("s3://bucket/head"),
    "features": lambda: FeatureStore("s3://bucket/features").begin(key={}),
    "a folder of a command": lambda: require_folder_for("--output", Path("s3://bucket/out")),
    "a file of a command": lambda: require_files({"--json": Path("s3://bucket/a.json")}),
}


@pytest.mark.parametrize("write", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_is_no_folder_here(write, tmp_path, monkeypatch):
    """A folder named `s3:` would look like success."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 1)
    with pytest.raises(InputError, match="is an address, and results are written to disks here alone"):
        write()
    assert os.listdir() == ["pictures"]
    (tmp_path / "s3:").mkdir()  # somebody means it
    (tmp_path / "s3:" / "bucket").mkdir()
    write_text("s3:/bucket/a.json", "{}")
    assert (tmp_path / "s3:" / "bucket" / "a.json").read_text() == "{}"
