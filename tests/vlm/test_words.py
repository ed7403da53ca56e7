"""Words that a tokenizer has no token for."""

from __future__ import annotations

from types import SimpleNamespace

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lens_adapter.vlm.words import unknown_words


def tokenizer_of(**more) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "dog": 2, "?": 3}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("!", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)


def test_each_unknown_word_once_as_typed():
    read = tokenizer_of(unk_token="<unk>")
    texts = ["the Big dog!", "the Lamb's dog ?", "Big"]
    assert unknown_words(read, texts) == ["Big", "Lamb", "'", "s"]
    assert unknown_words(SimpleNamespace(tokenizer=read), texts) == unknown_words(read, texts)
    assert unknown_words(read, ["THE DOG!!", ""]) == []


def test_a_tokenizer_without_an_unknown_token_has_none():
    assert unknown_words(tokenizer_of(), ["the zebra"]) == []


class SlowTokenizer:
    """Tells no offsets."""

    unk_token_id, is_fast = 0, False

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [{"the": 1, "dog": 2}.get(word, 0) for word in text.split()]}


def test_a_slow_tokenizer_is_asked_word_by_word():
    assert unknown_words(SlowTokenizer(), ["the big dog", "big cat"]) == ["big", "cat"]
