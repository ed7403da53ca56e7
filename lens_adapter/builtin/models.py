"""How the models that ship with the package are loaded, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from lens_adapter.adapter import LensAdapter
from lens_adapter.builtin import names
from lens_adapter.errors import LensError
from lens_adapter.vlm.base import FrozenBase

# In words that the shipped model knows: what its heads were taught to ask, and what a readout asks it, too.
QUESTIONS = {"prompt_template": "where is {prompt} ?", "presence_question": "is there {prompt} ?"}
LONGEST_ANSWER = 24  # words: the places of eight objects


def load_base() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The frozen vision-language model, in eval mode, and its processor.

    Raises:
        LensError: it is not there.
    """
    folder = _shipped(names.VLM)
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


def load_head(name: str = names.DEFAULT_HEAD) -> LensAdapter:
    """One of the LENS adapters, not attached.

    Args:
        name: a key of `names.HEADS`.

    Raises:
        LensError: it is not there.
    """
    return LensAdapter.from_pretrained(_shipped(names.HEADS[name]), local_files_only=True)


def ask(
    model: PreTrainedModel, processor: ProcessorMixin, pictures: Sequence[Image], questions: Sequence[str]
) -> list[str]:
    """Greedy answers of a vision-language model to one question about each picture."""
    return FrozenBase(model, processor).answers(pictures, questions, max_new_tokens=LONGEST_ANSWER)


def _shipped(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise LensError(
            f"{folder} should hold one of the models that ship with lens_adapter, and does not. Install the package "
            "again, or train the models with the scripts in examples/builtin."
        )
    return folder
