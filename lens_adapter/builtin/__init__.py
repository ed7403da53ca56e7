"""The models that ship with the package, and the small world of everyday things that they know.

The models are a tiny vision-language model, two tiny SAMs and three LENS heads, each an ordinary folder in Hub layout
beside this file, made by `examples/builtin/`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_adapter.builtin.models import LONGEST_ANSWER, QUESTIONS, ask, load_base, load_head
    from lens_adapter.builtin.names import DEFAULT_HEAD, FOLDER, HEAD_NAMES, HEADS, SAM, SAM2, VLM, head_folder

__all__ = ["DEFAULT_HEAD", "FOLDER", "HEADS", "HEAD_NAMES", "SAM", "SAM2", "VLM", "head_folder"]  # of names
__all__ += ["LONGEST_ANSWER", "QUESTIONS", "ask", "load_base", "load_head"]  # of models


def __getattr__(name: str) -> Any:
    # The models need torch and transformers, which take seconds to import; names and the world need neither.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    names = import_module("lens_adapter.builtin.names")
    return getattr(names if hasattr(names, name) else import_module("lens_adapter.builtin.models"), name)
