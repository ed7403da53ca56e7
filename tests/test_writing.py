"""Files appear whole or not at all."""

import os
import subprocess
import sys

import pytest

from lens_adapter.errors import InputError
from lens_adapter.writing import written_aside

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
