"""The words of a text that a tokenizer has no token for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lens_adapter.vlm.threads import one_at_a_time


@one_at_a_time
def unknown_words(processor: Any, texts: Collection[str]) -> list[str]:
    """Each once, in order, as typed. The tokenizer is asked, so case and punctuation count as they do for the model.

    Most tokenizers spell out what they do not know, and have no unknown words.

    Args:
        processor: one with a `tokenizer`, or a tokenizer.
        texts: prompts, questions.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    found: dict[str, None] = {}
    for text in texts:
        if getattr(tokenizer, "is_fast", False):
            read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(read["input_ids"], read["offset_mapping"], strict=True)
            words = [text[start:end].strip() for token, (start, end) in spans if token == unknown]
        else:  # it does not tell which token is which part of the text
            words = [w for w in text.split() if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]]
        found |= dict.fromkeys(words)
    return list(found)
