"""The models that ship with the package, and the small world of everyday things that they know.

The models are a tiny vision-language model, a tiny SAM and two LENS heads, each an ordinary folder in Hub layout beside
this file, made by `examples/builtin/`.
"""

from lens_adapter.builtin.models import FOLDER, HEADS, LONGEST_ANSWER, SAM, VLM, ask, load_base, load_head

__all__ = ["FOLDER", "HEADS", "LONGEST_ANSWER", "SAM", "VLM", "ask", "load_base", "load_head"]
