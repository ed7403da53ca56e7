"""What annotations were made with and of, as they say themselves, and whether a run may go on with them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lens_adapter import __version__
from lens_adapter.adapter import LensAdapter
from lens_adapter.annotation.tasks import Tasks
from lens_adapter.errors import InputError, brief
from lens_adapter.hub.names import public_name
from lens_adapter.training.cache.read import feature_key
from lens_adapter.writing import write_text

MANIFEST = "_annotations.json"  # readers of Parquet folders leave out what begins so
# What has to be the same when a run is gone on with, and what people call it. Names and versions may differ.
_SAME = {
    "data_sha256": "data",
    "pictures": "number of pictures",
    "prompts": "prompts",
    "segmenter": "segmenter",
    "base_weights": "frozen model",
    "processor": "processor",
    "dtype": "precision",
    "head_sha256": "weights of the head",
    "head_config": "settings of the head",
    "mask_threshold": "mask threshold",
    "score_threshold": "score threshold",
    "shard_size": "pictures per shard",
    "draft_side": "side of drafts",
}
# Of a head's config: where it was loaded from and what loaded it, and the thresholds, which stand for themselves.
_NO_SETTING = ("_name_or_path", "transformers_version", "mask_threshold", "score_threshold", "dtype", "torch_dtype")


def facts_of(segmenter: LensAdapter | Callable[..., Any]) -> dict[str, Any]:
    """Which base and head make the masks; of a function of the user's own, its name."""
    versions = {name: version(name) for name in ("torch", "transformers", "segment-anything", "numpy", "pillow")}
    facts: dict[str, Any] = {"versions": {"lens_adapter": __version__, "python": platform.python_version(), **versions}}
    if not isinstance(segmenter, LensAdapter):
        name = getattr(segmenter, "__qualname__", type(segmenter).__qualname__)
        return facts | {"segmenter": f"{getattr(segmenter, '__module__', '')}.{name}"}
    base, key = segmenter.base.anatomy.config, feature_key(segmenter)
    settings = {name: value for name, value in segmenter.config.to_dict().items() if name not in _NO_SETTING}
    return facts | {
        "base": public_name(base.name_or_path),
        "base_revision": getattr(base, "_commit_hash", None),
        "base_weights": key["base_weights"],
        "processor": key["processor"],
        "dtype": str(segmenter.base.model.dtype).removeprefix("torch."),
        "head": public_name(segmenter.config.name_or_path),
        "head_sha256": segmenter.digest(),
        "head_config": _digest(settings),
    }


def plan_of(
    facts: Mapping[str, Any],
    tasks: Tasks,
    prompts: Sequence[str] | None,
    *,
    mask_threshold: float | None,
    score_threshold: float,
    shard_size: int,
    draft_side: int | None = None,
) -> dict[str, Any]:
    """Everything that the rows depend on, ready for JSON: what stands in every shard and in the folder's manifest."""
    return {
        **facts,
        "data": tasks.name,
        "data_sha256": tasks.digest,
        "pictures": len(tasks),
        "prompts": None if prompts is None else list(prompts),
        "mask_threshold": mask_threshold,
        "score_threshold": score_threshold,
        "shard_size": shard_size,
        "draft_side": draft_side,
    }


def require_same_run(where: Path, got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse to go on with annotations that something else made.

    Args:
        where: the folder or file.
        got: the plan that stands there.
        expected: the plan in hand.

    Raises:
        InputError: names what differs.
    """
    differ = [key for key in _SAME if got.get(key) != expected.get(key)]
    if differ:
        listed = "; ".join(
            f"{_SAME[key]}: there {brief(got.get(key), 60)}, now {brief(expected.get(key), 60)}" for key in differ
        )
        raise InputError(
            f"{where} holds annotations of another run, and going on would mix the two ({listed}). Ask as that run "
            "did, or name another folder."
        )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What stands in the folder's manifest: "plan", and "summary", null until all is done; None: there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["plan"], dict) and isinstance(found["summary"], dict | None):
            return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InputError(f"{path} is damaged; expected the JSON of a run's plan and summary.")


def write_manifest(folder: Path, plan: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
    text = json.dumps({"plan": dict(plan), "summary": summary}, indent=2, allow_nan=False)
    write_text(folder / MANIFEST, text + "\n")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
