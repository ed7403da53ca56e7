"""The page without a browser: its words, its command, its Space."""

from __future__ import annotations

import runpy
import socket
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")

from huggingface_hub import RepoCard  # noqa: E402

from lens_adapter import builtin  # noqa: E402
from lens_adapter.app import looks, page, point_tab  # noqa: E402
from lens_adapter.app.findings import find  # noqa: E402
from lens_adapter.app.visitors import FOLDER  # noqa: E402
from lens_adapter.cli import main  # noqa: E402
from lens_adapter.errors import FitError  # noqa: E402
from tests.tiny.shipped import ship_tiny, use_shipped  # noqa: E402

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    ship_tiny(tmp_path / "builtin")
    use_shipped(monkeypatch, tmp_path / "builtin")
    return tmp_path / "builtin"


@pytest.fixture
def launched(monkeypatch):
    """What would be served, and how."""
    calls = []
    monkeypatch.setattr(page, "launch", lambda *pages, **options: calls.append((*pages, options)))
    return calls


def test_the_table_has_a_row_per_prompt_and_no_markup_of_a_visitor(adapter, files):
    shown = looks.table(find(adapter, files[0], "the pizza\n<img src=x onerror=alert(1)>\nthe blue car"))
    assert shown.count("<tr class=") == 3
    assert "<img" not in shown and "&lt;img src=x onerror=alert(1)&gt;" in shown
    rows = shown.split("<tr class=")[1:]
    assert "✓ found" in rows[0] and "✗ absent" in rows[2]
    assert "480 x 480 pixels" in shown and "never read: &lt;img, src=x, onerror=alert(1)&gt;." in shown


def test_the_head_of_the_page_names_the_models(adapter):
    words = looks.head(adapter)
    assert "built-in tiny LLaVA (3.0 M parameters)" in words and "lite (0.7 M parameters)" in words
    assert looks.SMALL_WORLD in words


def test_another_model_is_named_and_its_world_is_not_said_to_be_small(tiny, adapter, monkeypatch):
    assert str(adapter.base.anatomy.config.name_or_path) != str(builtin.VLM)
    assert looks.SMALL_WORLD not in looks.head(adapter)


def test_a_handlers_error_becomes_a_message_that_cannot_carry_markup(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "<b>.png").write_text("no picture at all")
    with pytest.raises(gr.Error, match=r"&lt;b&gt;\.png") as error:
        point_tab.check({"path": str(tmp_path / "<b>.png")})
    assert str(tmp_path) not in error.value.message
    with pytest.raises(gr.Error, match="Pick an example"):
        point_tab.check(None)


def test_redrawing_before_anything_was_found():
    assert point_tab.redraw(None, ["Masks"], -1) is None


@pytest.fixture
def tabs(launched, monkeypatch):
    """The teacher that each page was built with."""
    teachers = []
    build = page.build_page
    monkeypatch.setattr(
        page, "build_page", lambda adapter, teacher: teachers.append(teacher) or build(adapter, teacher)
    )
    return teachers


def has_tab(served: gr.Blocks, label: str) -> bool:
    return any(isinstance(block, gr.Tab) and block.label == label for block in served.blocks.values())


@pytest.mark.parametrize(
    "arguments, folder, publishes",
    [
        ([], "lens-teach", True),
        (["--teach", "mine", "--host", "localhost"], "mine", True),
        (["--share"], None, False),
        (["--host", "0.0.0.0"], None, False),
        (["--host", "0.0.0.0", "--teach", "mine"], "mine", False),
        (["--share", "--teach", "mine"], "mine", False),
    ],
)
def test_who_may_teach_and_who_may_push(tiny, launched, tabs, arguments, folder, publishes):
    assert main(["app", *arguments]) == 0
    ((served, _),), (teacher,) = launched, tabs
    assert has_tab(served, "Teach") == (folder is not None)
    assert (teacher and (str(teacher.folder.path), teacher.publishes)) == (folder and (folder, publishes))
    pushes = [block for block in served.blocks.values() if isinstance(block, gr.Button) and block.value == "Push"]
    assert bool(pushes) == publishes


def test_a_model_without_a_head_can_be_taught(tiny, launched, tabs, capsys):
    assert main(["app", "--model", str(tiny / "vlm"), "--sam", "builtin", "--teach", "mine"]) == 0
    assert "LENS head: none yet; teach one." in str(
        [block.value for block in launched[0][0].blocks.values() if isinstance(block, gr.HTML)]
    )
    with pytest.raises(SystemExit) as exit:
        main(["app", "--model", str(tiny / "vlm"), "--host", "0.0.0.0"])
    assert exit.value.code == 2 and "--teach" in capsys.readouterr().err


def test_a_refusal_is_said_without_markup():
    assert "&lt;b&gt;x&lt;/b&gt; is" in looks.refusal(FitError("<b>x</b> is"))


def test_the_command_serves_other_models(tiny, launched):
    models = ["--model", str(tiny / "vlm"), "--adapter", str(tiny / "lens-mirror"), "--dtype", "bfloat16"]
    assert main(["app", *models, "--port", "8123", "--share"]) == 0
    ((served, options),) = launched
    assert isinstance(served, gr.Blocks)
    assert options == {"host": "127.0.0.1", "port": 8123, "share": True}


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--device", "toaster"], "--device toaster cannot be used here"),
        (["--adapter", "nowhere at all"], "nowhere at all"),
    ],
)
def test_the_command_says_what_is_wrong(tiny, launched, capsys, arguments, complaint):
    assert main(["app", *arguments]) == 1
    assert complaint in capsys.readouterr().err and not launched


def test_a_port_that_is_taken(tiny, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"--port {port} of --host 127.0.0.1" in said and "--port 0 takes any that is free" in said


def test_the_space_serves_the_shipped_models(tiny, launched, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert exit.value.code == 0
    assert launched[0][1] == {"host": "0.0.0.0", "port": None, "share": False}


def test_the_space_names_the_gradio_that_the_page_is_tested_with():
    facts = RepoCard.load(SPACE / "README.md", repo_type="space").data.to_dict()
    assert facts["sdk"] == "gradio" and (SPACE / facts["app_file"]).is_file()
    assert f"gradio=={facts['sdk_version']}" in (ROOT / "constraints-app.txt").read_text().splitlines()
    assert len(facts["short_description"]) <= 60  # the Hub takes no more


def test_the_space_installs_what_the_package_needs():
    def names(text: str) -> list[str]:
        return [line for line in text.split("\n") if line and not line.startswith("#")]

    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = names(config["options"]["install_requires"])
    assert names((SPACE / "requirements.txt").read_text()) == needed
