"""A base for the benchmarks that is as small as can be."""

from __future__ import annotations

import pytest

from benchmarks import bases
from tests.tiny.sam import tiny_sam


def use_tiny_base(patch: pytest.MonkeyPatch) -> None:
    """Let the benchmarks' base "tiny" be of four layers, 64 wide, with a tiny SAM beside it."""
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    facts = {
        **bases._LLAVA,
        "text_config": {**text, "num_attention_heads": 4, "num_key_value_heads": 2},
        "vision_config": bases._clip(**{**vision, "image_size": 56}),
    }
    base = bases.Base(facts, lambda side: bases._llava_processor(side or 4), tiny_sam())
    patch.setitem(bases.BASES, "tiny", base)
