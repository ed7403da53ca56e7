"""Examples in docstrings run, and give what they show."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import lens_adapter
from lens_adapter import builtin

PACKAGE = Path(lens_adapter.__file__).parent


def _modules() -> list[str]:
    """Names of those with examples; none is imported, as some need extras."""
    files = [file for file in PACKAGE.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8")]
    parts = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in sorted(files)]
    return [".".join(part for part in path if part != "__init__") for path in parts]


@pytest.fixture(scope="module")
def names() -> dict:
    """What docs/reference/adapter.md says that the examples are about."""
    model, processor = builtin.load_base()
    image = Image.new("RGB", (640, 480), "white")
    return {"model": model, "processor": processor, "adapter": builtin.load_head("lite"), "image": image}


@pytest.mark.parametrize("module", _modules())
def test_examples_give_what_they_show(module: str, names: dict) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    examples = doctest.DocTestFinder(exclude_empty=True).find(import_module(module), extraglobs=names)
    for example in examples:
        names["adapter"].attach(names["model"], names["processor"])
        runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0, "see above"


def test_what_users_meet_first_has_examples() -> None:
    first = {"adapter", "config", "signals", "chat", "pipeline", "evaluation.metrics", "data.masks", "data.records"}
    assert {f"lens_adapter.{name}" for name in first} <= set(_modules())
