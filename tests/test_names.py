"""A public name means one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import lens_adapter

PACKAGE = Path(lens_adapter.__file__).parent
ROOMS_OF_CLI = {"add_to", "run"}  # what every command has: it adds itself to the parser, and runs


def _defined(module: ast.Module) -> Iterator[str]:
    """Classes, functions and types by another name (`Box = tuple[...]`) at the module's level."""
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.id for one in targets if isinstance(one, ast.Name) and _is_like_a_class(one.id))


def _is_like_a_class(name: str) -> bool:
    return name[:1].isupper() and not name.isupper()


def test_what_is_defined_here_is_seen():
    code = "class A: ...\ndef f():\n    def g(): ...\nBox: type = tuple\nBIG = 1\nsmall = 2\nA.x = 3\n_Own = int\n"
    assert list(_defined(ast.parse(code))) == ["A", "f", "Box"]


def test_no_two_public_things_of_one_name():
    homes = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE)
        hooks = ROOMS_OF_CLI if where.parts[0] == "cli" else set()
        for name in _defined(ast.parse(file.read_text(encoding="utf-8"))):
            if not name.startswith("_") and name not in hooks:
                homes[name].append(where.as_posix())
    assert {"LensAdapter", "evaluate", "Region"} <= homes.keys()
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
