"""Segmentation for a frozen vision-language model: LENS heads as adapters for transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lens_adapter import errors

if TYPE_CHECKING:
    from lens_adapter.adapter import LensAdapter
    from lens_adapter.annotation.run import annotate
    from lens_adapter.config import LensConfig
    from lens_adapter.evaluation.probing import ProbeResult, probe
    from lens_adapter.output import LensOutput
    from lens_adapter.sam.embeddings import EmbeddingCache
    from lens_adapter.signals import LensSignals, TokenLayout
    from lens_adapter.video import LensVideoOutput

__version__ = "0.1.0"

__all__ = [
    "EmbeddingCache",
    "LensAdapter",
    "LensConfig",
    "LensOutput",
    "LensSignals",
    "LensVideoOutput",
    "ProbeResult",
    "TokenLayout",
    "annotate",
    "errors",
    "probe",
]

# torch and transformers take seconds to import: `lens-adapter --help` should not wait for them.
_HOMES = {
    "EmbeddingCache": "lens_adapter.sam.embeddings",
    "LensAdapter": "lens_adapter.adapter",
    "LensConfig": "lens_adapter.config",
    "LensOutput": "lens_adapter.output",
    "LensSignals": "lens_adapter.signals",
    "LensVideoOutput": "lens_adapter.video",
    "ProbeResult": "lens_adapter.evaluation.probing",
    "TokenLayout": "lens_adapter.signals",
    "annotate": "lens_adapter.annotation.run",
    "probe": "lens_adapter.evaluation.probing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
