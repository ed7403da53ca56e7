"""What `attach` finds out about a base."""

from __future__ import annotations

from dataclasses import dataclass
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from lens_adapter.vlm.anatomy import Anatomy, text_config

# Taps are state of the base: threads that share one take turns.
_turns: WeakKeyDictionary[PreTrainedModel, RLock] = WeakKeyDictionary()


@dataclass(frozen=True)
class Attachment:
    """A base and its processor. Kept outside module registration: no weight of the base is ever the adapter's."""

    anatomy: Anatomy
    processor: Any

    @property
    def max_length(self) -> int | None:
        """Tokens that the base has positions for, where its config says so."""
        return getattr(text_config(self.anatomy.config), "max_position_embeddings", None)

    def turn(self) -> RLock:
        """To be held while hooks are on the base."""
        return _turns.setdefault(self.anatomy.model, RLock())
