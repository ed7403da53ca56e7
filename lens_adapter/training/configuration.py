"""What `lens-adapter train` reads from its file and its flags, checked before anything heavy is imported."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lens_adapter.errors import LensConfigError, did_you_mean

TOP = frozenset(
    {"model", "adapter", "data", "validation", "dtype", "features", "features_dtype", "resume", "overwrite"}
    | {"head", "training"}
)
# Where a word of YAML's, no or off, means "never" and not false.
STRATEGIES = frozenset({"eval_strategy", "save_strategy", "logging_strategy"})
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # 1e-4, which YAML takes for a text


def read_config(file: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """The file's keys, and over them the flags that were given; `head` and `training` are merged key by key.

    Raises:
        LensConfigError: no such file, no YAML, an unknown key, a text for a number, or a key that is missing.
    """
    try:
        config = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise LensConfigError(f"The file {str(file)!r} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LensConfigError(f"{file} is no YAML: {error}") from error
    if not isinstance(config, dict) or any(not isinstance(config.get(key) or {}, dict) for key in ("head", "training")):
        raise LensConfigError(f"{file} must hold keys and values, and so must its `head` and `training`.")
    for section in ("head", "training"):
        given = {**(config.get(section) or {}), **flags.get(section, {})}
        config[section] = {key: _meant(key, value) for key, value in given.items()}
    config |= {key: value for key, value in flags.items() if key not in ("head", "training") and value}
    _require_known(TOP, config, "")
    _require_known(head_keys(), config["head"], " in head")
    _require_known(training_keys(), config["training"], " in training")
    kinds = training_keys()
    wrong = {
        key: value
        for key, value in config["training"].items()
        if kinds.get(key) in ("int", "float") and isinstance(value, str)
    }
    if wrong:
        raise LensConfigError(f"training: expected numbers, got {wrong}.")
    missing = [key for key in ("model", "data") if not config.get(key)]
    missing += [] if config["training"].get("output_dir") else ["training.output_dir"]
    if missing:
        raise LensConfigError(f"A training needs {', '.join(missing)} too; `lens-adapter train --help` shows how.")
    return config


def _require_known(known: Any, given: dict[str, Any], where: str) -> None:
    if unknown := sorted(set(given) - set(known), key=str) if known else []:
        raise LensConfigError(f"Unknown keys {unknown}{where}; known: {sorted(known)}.{did_you_mean(unknown, known)}")


def _meant(key: str, value: Any) -> Any:
    """What was meant by a value that YAML reads otherwise."""
    if value is False and key in STRATEGIES:
        return "no"
    if value is False and key == "report_to":
        return "none"
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


# Importing the classes takes seconds. Their sources are read instead; where there is none, nothing is known, and they
# refuse what they do not know when they are made.


@cache
def head_keys() -> frozenset[str]:
    """The fields of `LensConfig`."""
    made = _class_of("lens_adapter", "config.py", "LensConfig")
    init = next((node for node in made if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    return frozenset() if init is None else frozenset(entry.arg for entry in init.args.args[1:] + init.args.kwonlyargs)


@cache
def training_keys() -> dict[str, str]:
    """The fields of `LensTrainingArguments`, transformers' own included: name -> type, as it is written."""
    theirs = _class_of("transformers", "training_args.py", "TrainingArguments")
    own = _class_of("lens_adapter", "training/trainer.py", "LensTrainingArguments")
    if not theirs or not own:
        return {}
    fields = [node for node in [*theirs, *own] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    named = {node.target.id: ast.unparse(node.annotation) for node in fields if isinstance(node.target, ast.Name)}
    return {name: kind for name, kind in named.items() if not name.startswith("_")}


def _class_of(package: str, file: str, name: str) -> list[ast.stmt]:
    """The statements of a class, read from its source."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    source = Path(places[0], file) if places else Path()
    if not source.is_file():
        return []
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return found[0].body if found else []
