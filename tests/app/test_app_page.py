"""The page without a browser: its words, its command, its Space."""

from __future__ import annotations

import runpy
import socket
import sys
from configparser import ConfigParser
from html import escape
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")

from huggingface_hub import RepoCard  # noqa: E402

from lens_adapter import LensAdapter, builtin  # noqa: E402
from lens_adapter.app import looks, page, point_tab  # noqa: E402
from lens_adapter.app.findings import ALL, Turn, find  # noqa: E402
from lens_adapter.app.visitors import FOLDER  # noqa: E402
from lens_adapter.cli import main  # noqa: E402
from lens_adapter.errors import FitError  # noqa: E402
from lens_adapter.pictures.colors import color_of  # noqa: E402
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
    for judged, row in zip(("✓ found", "? not understood", "✗ not in the picture"), rows, strict=True):
        assert judged in row
    assert ["unknown: " in row for row in rows] == [False, True, False]
    assert "480 x 480 pixels" in shown and "lower threshold" not in shown
    for word in ("img", "onerror", "alert"):
        assert word in rows[1].split("unknown: ")[1]


def test_the_table_of_nothing_says_what_would_show_more(adapter, files):
    assert "No score reaches 0.990: a lower threshold" in looks.table(find(adapter, files[0], "the pizza", 0.99))


def test_the_legend_is_about_what_is_drawn(adapter, files):
    result = find(adapter, files[0], "the pizza\nthe blue car")
    assert looks.legend(result, ["Masks"]) == looks.legend(result, []) == ""
    assert "lens-heat" in looks.legend(result, ["Heatmap"]) and "rings" not in looks.legend(result, ["Heatmap"])
    assert "rings" in looks.legend(result, ["Keypoints"]) and "lens-heat" not in looks.legend(result, ["Keypoints"])
    assert looks.legend(result.judged(0.99), ["Heatmap", "Keypoints"]) == ""
    assert "rings" not in looks.legend(result, ["Heatmap", "Keypoints"], 1)  # what is absent has none


MARKUP = "![a](http://127.0.0.1:9/a.png) <img src=x> **b** {{value}} ${value} @children"


def test_the_chat_is_literal_and_marks_names():
    said = looks.conversation([Turn(MARKUP, MARKUP), Turn("what?", "a <b>dog</b>", (((5, 8), 1),), "2 more")])
    assert "<img" not in said and "<b>" not in said
    assert f'<p class="asked">{escape(MARKUP)}</p><p class="answered">{escape(MARKUP)}</p>' in said
    assert f'a &lt;b&gt;<mark style="background: rgb{color_of(1)}' in said and "dog</mark>&lt;/b&gt;" in said
    assert "2 more" in said and looks.SILENCE in looks.conversation([])


def test_the_head_of_the_page_names_the_models(adapter):
    words = looks.head(adapter)
    assert "built-in tiny LLaVA (3.1 M parameters)" in words
    assert "LENS head: the built-in one (lite, 0.7 M parameters)" in words and "SAM: the built-in tiny one (" in words
    assert looks.SMALL_WORLD in words


def test_a_folder_is_named_without_its_place_and_a_sam_by_its_variant(adapter, tmp_path):
    base = (adapter.base.model, adapter.base.processor)
    adapter.save_pretrained(tmp_path / "mine")
    with LensAdapter.from_pretrained(tmp_path / "mine").attach(*base) as mine:
        words = looks.head(mine)
    assert "LENS head: mine (lite" in words and "SAM: the head&#x27;s own" in words and str(tmp_path) not in words
    with LensAdapter.from_model(*base, load_sam=False, fusion="readout", sam="slimsam_77") as unfitted:
        words = looks.head(unfitted)
    assert "LENS head: none yet; teach one · SAM: slimsam_77 (segment-anything)." in words


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
    assert point_tab.redraw(None, ["Masks"], -1) == (None, "")


def test_what_is_forgotten_is_all_that_was_shown(adapter, files, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    shown = point_tab.shown(find(adapter, files[0], "the pizza"), ["Masks"])
    assert len(shown) == len(point_tab.nothing()) == point_tab.RESULTS
    found, picture, only, table, masks, rle = point_tab.nothing()
    assert (found, picture, table, only.value) == (None, None, "", ALL)
    assert not masks.interactive and not rle.interactive and masks.value is rle.value is None
    *results, turns, chat = point_tab.forget()
    assert len(results) == point_tab.RESULTS and turns == [] and chat == looks.conversation([])


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
    assert "LENS head: none yet; teach one · SAM: the built-in tiny one (" in str(
        [block.value for block in launched[0][0].blocks.values() if isinstance(block, gr.HTML)]
    )
    with pytest.raises(SystemExit) as exit:
        main(["app", "--model", str(tiny / "vlm"), "--host", "0.0.0.0"])
    assert exit.value.code == 2 and "--teach" in capsys.readouterr().err


def test_a_refusal_is_said_without_markup():
    refused = looks.refusal(FitError("<b>x</b> is"), earlier=False)
    assert "&lt;b&gt;x&lt;/b&gt; is" in refused and "fitted before" not in refused
    assert "fitted before" in looks.refusal(FitError("No."), earlier=True)


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
