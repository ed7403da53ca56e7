"""Imports go one way: from what stands around the road, down the road, to the records at the bottom.

Imports inside functions and under TYPE_CHECKING count, too: a circle that shows late is a circle.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lens_adapter"

# From the bottom up. A room may import from its own level, if that makes no circle, and from levels below.
LEVELS = (
    ("errors", "builtin.world", "builtin.names"),
    ("finite", "reading", "writing", "bounds", "devices", "sources"),
    ("checkpoint",),
    (
        "signals",
        "vlm.architectures",
        "vlm.layout.single",
        "vlm.layout.tiled",
        "vlm.anatomy",
        "sam.families",
        "sam.published",
    ),
    ("variants",),
    ("config",),
    ("vlm", "head", "sam", "instances"),
    ("output",),
    ("segmentation", "video", "chat", "fitting", "looking"),
    ("adapter",),
    ("results", "hub", "data", "evaluation", "training", "annotation", "pipeline"),
    ("builtin",),
    ("app", "cli", "serving"),
    ("__main__",),
)
# What stands beside the road, and what of the road may reach it: by an import inside a method, for what the contract
# wants of that method.
BESIDE = ("pictures",)
REACHES = {
    "output": {"pictures"},  # LensOutput.plot, .save, .to_polygons, and what a notebook shows
    "video": {"pictures"},  # LensVideoOutput.save
    "chat": {"pictures"},  # what a notebook shows
    "looking": {"pictures"},  # a picture is what it returns
    "adapter": {"hub", "results", "data"},  # save_pretrained, push_to_hub; fit reads a folder
}


def room(module: str) -> str:
    """The longest name in `LEVELS` that a module belongs to."""
    names = [name for level in (*LEVELS, BESIDE) for name in level]
    return max((name for name in names if f"{module}.".startswith(f"{name}.")), key=len)


def level(name: str) -> int:
    return next(k for k, names in enumerate(LEVELS) if name in names)


def imports() -> dict[str, set[str]]:
    """{module: modules of the package that it imports}, names without the package's."""
    files = {file: ".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__") for name in files.values()} - {"__init__"}
    found: dict[str, set[str]] = {}
    for file, name in files.items():
        if name == "__init__":  # names of all rooms, looked up when they are asked for
            continue
        targets = found.setdefault(name.removesuffix(".__init__"), set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lens_adapter":
                base = node.module.removeprefix("lens_adapter").removeprefix(".")
                for alias in node.names:
                    whole = f"{base}.{alias.name}".removeprefix(".")
                    targets.add(whole if whole in modules else base)
            elif isinstance(node, ast.Import):
                targets |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("lens_adapter.")}
    return {name: {target for target in targets if target in modules} - {name} for name, targets in found.items()}


IMPORTS = imports()


def test_every_room_is_on_a_level():
    assert len(IMPORTS) > 90
    assert {room(module) for module in IMPORTS} == {name for names in (*LEVELS, BESIDE) for name in names}


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_module_imports_from_its_own_level_or_below(module):
    own = room(module)
    for target in IMPORTS[module]:
        other = room(target)
        if own in BESIDE:
            assert other in (*BESIDE, "errors", "writing"), f"{module} imports {target}"
        elif other in BESIDE or level(other) > level(own):
            allowed = REACHES.get(own, set()) if level(own) <= level("adapter") else {*BESIDE}
            assert other in allowed, f"{module} imports {target}"


def test_there_are_no_circles():
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(IMPORTS[module]):
                walk(target, (*path, module))
            done.add(module)

    for module in sorted(IMPORTS):
        walk(module, ())


def test_the_road_reaches_what_stands_around_it_inside_methods_only():
    for module in ("output", "chat", "looking", "adapter"):
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        at_the_top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
        reached = {name.removeprefix("lens_adapter.") for name in at_the_top if name.startswith("lens_adapter.")}
        assert not {room(name) for name in reached} & (REACHES[module] - {"results"}), module
