"""What README and site say about the package is true of it."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import lens_adapter
import lens_adapter.builtin
from lens_adapter import errors
from tests.promises import PROMISES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type)]


def _reference() -> set[str]:
    """The objects, by their full names, that are on a page of the reference."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return {name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)}


def _imports(page: Path) -> list[tuple[str, str]]:
    """(module, name) that the page's examples take from the package."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    made = [ast.parse(line).body[0] for line in lines if re.match(r"from lens_adapter\S* import", line)]
    return [(line.module, alias.name) for line in made for alias in line.names]


@pytest.mark.parametrize(
    "module", ["lens_adapter", "lens_adapter.annotation", "lens_adapter.training", "lens_adapter.evaluation"]
)
def test_every_public_name_is_in_the_reference(module):
    names = {f"{module}.{name}" for name in import_module(module).__all__} - {"lens_adapter.errors"}
    assert names and names <= _reference()
    assert {f"lens_adapter.errors.{name}" for name in ERRORS} <= _reference()


def test_what_examples_import_exists_and_is_in_the_reference():
    used = {pair for page in PAGES for pair in _imports(page)}
    assert ("lens_adapter", "LensAdapter") in used
    for module, name in used:
        home = import_module(module)
        if hasattr(home, "__path__") and find_spec(f"{module}.{name}"):
            continue  # a module
        assert hasattr(home, name), f"{module}.{name}"
        own_page = module == "lens_adapter.builtin.world"  # docs/things.md
        assert own_page or f"{module}.{name}" in _reference(), f"{module}.{name}"


def test_troubleshooting_knows_every_error_and_quotes_what_is_said():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [name for name in ERRORS if f"| [`{name}`]" not in page] == []
    sources = "".join(file.read_text() for file in Path(lens_adapter.__file__).parent.rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # literals that follow each other are one text
    quoted = re.findall(r'^### "(.+?)"', page, re.MULTILINE)
    parts = [part.strip() for text in quoted for part in text.split("...") if part]
    assert len(parts) > 10 and [part for part in parts if part not in sources] == []


def test_first_look_is_drawn(tmp_path, monkeypatch):
    drawn = tmp_path / "first.png"
    monkeypatch.setattr(sys, "argv", ["draw_first_look.py", str(drawn)])
    runpy.run_path(str(ROOT / "examples" / "builtin" / "draw_first_look.py"), run_name="__main__")
    assert Image.open(drawn).size == Image.open(ROOT / "docs" / "first-look.png").size


def test_every_promise_is_on_the_page_and_held_by_tests():
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")][:-1] == list(PROMISES)
    missing = [place for places in PROMISES.values() for place in places if not (ROOT / "tests" / place).exists()]
    assert not missing


@pytest.mark.once
def test_the_first_snippet_of_the_readme_runs_as_pasted(tmp_path, monkeypatch, capsys):
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "'the kitty at the top'" in said and said.count(" absent") == 1 and "'a boat' 0.00 absent" in said
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.size == (384, 384)


@pytest.mark.once
def test_the_snippet_about_signals_runs_and_needs_no_sam():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (snippet,) = [block for block in blocks if "adapter.capture(" in block]
    model, processor = lens_adapter.builtin.load_base()
    names = {"LensAdapter": lens_adapter.LensAdapter, "model": model, "processor": processor}
    names["image"] = Image.new("RGB", (48, 32))
    snippet = snippet.replace("14", "2")  # of four layers
    exec(compile(snippet, "README.md", "exec"), names)
    tokens = names["inputs"]["input_ids"].shape[1]
    assert names["signals"].attention[2].shape[2:] == (1, tokens) and names["signals"].hidden.shape[1] == tokens
