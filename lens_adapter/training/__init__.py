"""Training a LENS head on masks, with transformers' Trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_adapter.training.cache.read import CachedFeatures
    from lens_adapter.training.cache.write import cache_features
    from lens_adapter.training.trainer import LensTrainer, LensTrainingArguments

__all__ = ["CachedFeatures", "LensTrainer", "LensTrainingArguments", "cache_features"]

# As in the package itself: whoever only reads the file of a training should not wait for torch.
_HOMES = {
    "CachedFeatures": "lens_adapter.training.cache.read",
    "LensTrainer": "lens_adapter.training.trainer",
    "LensTrainingArguments": "lens_adapter.training.trainer",
    "cache_features": "lens_adapter.training.cache.write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up is a plain one
    return value
