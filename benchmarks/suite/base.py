"""What the frozen model pays for being read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import BatchFeature

from benchmarks.harness import Comparison, Stage, Work, proportions
from benchmarks.memory import available_bytes, in_words
from benchmarks.suite.registry import PROMPTS, SEVERAL, ask, benchmark, know, one_by_one, picture, segment
from lens_adapter import LensAdapter
from lens_adapter.vlm import hooks
from lens_adapter.vlm.shared_prefix import prefill_shared, share_inputs

PEER = "eager, all attentions and hidden states"
OUTCOME = "what it hands over"


@benchmark
def idle(stage: Stage) -> Iterator[Comparison]:
    """A base with an adapter attached that nobody asks anything of, against the same base without one. The base
    alone is measured twice: what lies between the two is noise, and the goal is the upper end of it."""
    model, processor = stage.pair
    adapter, inputs = stage.adapter(), ask(stage)
    before = {
        "bare": adapter.detach,
        "attached": partial(adapter.attach, model, processor),
        "bare, once more": adapter.detach,
    }
    answer = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    kinds: dict[str, Work] = {
        "A forward": partial(model, **inputs),
        "`generate`, 16 tokens": partial(model.generate, **inputs, **answer),
    }
    for title, work in kinds.items():
        found = stage.compare(title, dict.fromkeys(before, work), "bare", before=before)
        found.goals["attached"] = max(1.0, *(row.high for row in found.rows if row.name == "bare, once more"))
        yield found


@benchmark
def capture(stage: Stage) -> Iterator[Comparison]:
    """A whole forward inside `capture`, against a bare one, and against what code like F-LMM's does instead: ask the
    model for all its attention and all its hidden states, which takes the eager kernel. Peak memory is beyond weights
    and inputs. What capture takes more than a bare forward is compared with what it hands over: rows of attention,
    whose they are, and hidden states. Logits are those of the last token, as `generate` has them computed."""
    model, _ = stage.pair
    adapter, kernel = stage.adapter(), model.config._attn_implementation
    per_token: dict[str, dict[int, float]] = {}
    try:
        for tokens in stage.tokens:
            inputs = {**ask(stage, tokens=tokens), "logits_to_keep": 1}
            tokens = inputs["input_ids"].shape[1]
            ways, weights = _ways_to_capture(adapter, inputs)
            before = dict.fromkeys(ways, partial(model.set_attn_implementation, kernel))
            if refusal := _no_room(stage, tokens):
                del ways[PEER]
            before[PEER] = partial(model.set_attn_implementation, "eager")
            title, goals = f"A forward of {tokens} tokens", {"capture": 1.02}
            yield stage.compare(title, ways, "bare", refusal, goals=goals, before=before)
            found, peaks = stage.compare_memory(title, ways, "bare", before)
            yield found
            for name, weight in weights.items():
                amounts = {name: peaks[name] - peaks["bare"], OUTCOME: weight}
                title, notes = f"{name}: beyond a bare forward of {tokens} tokens", [f"{OUTCOME}: {in_words(weight)}."]
                yield proportions(title, amounts, OUTCOME, "peak memory", notes, {name: 1.0})
            for name in ways:
                per_token.setdefault(name, {})[tokens] = peaks[name] / tokens
    finally:
        model.set_attn_implementation(kernel)
    for name in ("capture", PEER):
        if len(amounts := {f"{tokens} tokens": each for tokens, each in per_token.get(name, {}).items()}) > 1:
            notes = ["Growth in proportion is a ratio of 1."]
            yield proportions(f"{name}: growth", amounts, next(iter(amounts)), "peak memory per token", notes)


def _ways_to_capture(adapter: LensAdapter, inputs: dict[str, Any]) -> tuple[dict[str, Work], dict[str, int]]:
    """By name, what runs; and, once it has run, how many bytes it handed over."""
    model, weights = adapter.base.model, {}

    def captured(name: str, **options: Any) -> None:
        with adapter.capture(**options) as signals:
            model(**inputs)
        parts = (signals.hidden, signals.queries, *signals.attention.values())
        weights[name] = sum(part.nbytes for part in parts)

    every = "capture, every layer's rows"
    ways: dict[str, Work] = {
        "bare": partial(model, **inputs),
        "capture": partial(captured, "capture"),
        every: partial(captured, every, layers=range(adapter.config.num_hidden_layers)),
        PEER: partial(model, **inputs, output_attentions=True, output_hidden_states=True),
    }
    return ways, weights


def _no_room(stage: Stage, tokens: int) -> list[str]:
    """Why the peer's way does not run; empty: it does. A fifth of the memory is left alone."""
    model, _ = stage.pair
    wanted, beside = everything_bytes(model.config.get_text_config(), tokens, model.dtype.itemsize)
    room = available_bytes(stage.device)
    if wanted + beside < 0.8 * room:
        return []
    return [
        f"{PEER}: not run. What it returns takes {in_words(wanted)}, and one layer at work {in_words(beside)} more "
        f"(both computed); {in_words(room)} were free."
    ]


def everything_bytes(text: Any, tokens: int, itemsize: int) -> tuple[int, int]:
    """What a forward returns with all attentions and hidden states, and what eager attention of a layer needs beside.

    Args:
        text: config of the decoder.
        tokens: of the sequence, T.
        itemsize: bytes per number.
    """
    layer = text.num_attention_heads * tokens**2 * itemsize  # (heads, T, T)
    states = (text.num_hidden_layers + 1) * tokens * text.hidden_size * itemsize
    return text.num_hidden_layers * layer + states, 2 * layer


@benchmark
def early_exit(stage: Stage) -> Iterator[Comparison]:
    """A prefill that ends where the head reads, against a whole one without the output layer: that takes the share of
    the layers, and whatever stands before them."""
    model, _ = stage.pair
    adapter, inputs = stage.adapter(), ask(stage)
    anatomy, config = adapter.base.anatomy, adapter.config
    count, width = config.num_hidden_layers, config.hidden_size
    embedded = torch.randn(*inputs["input_ids"].shape, width, device=stage.device, dtype=model.dtype)
    text = {"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]}
    lite = f"up to the rows of layers {config.attention_layers}, as the lite head reads"
    for title, given in (("Decoder layers alone", text), ("With the vision tower", inputs)):
        ways: dict[str, Work] = {"whole": partial(model.model, **given, use_cache=False)}
        goals = {}
        for tap in sorted({count // 4, count // 2, 3 * count // 4}):
            name = f"up to layer {tap} of {count}"
            ways[name] = partial(hooks.prefill, anatomy, given, tap_layer=tap)
            goals[name] = tap / count + 0.05
        ways[lite] = partial(adapter.prefill, given)
        goals[lite] = config.tap_layer / count + 0.05
        notes = [f"{embedded.shape[1]} tokens; the goal is the share of the layers and 5 %."]
        yield stage.compare(title, ways, "whole", notes, goals=goals)


@benchmark
def shared_prefix(stage: Stage) -> Iterator[Comparison]:
    """Several prompts about one image: its tokens run through the base once, or with every prompt."""
    adapter, image = stage.adapter("mirror"), picture()
    base, first = adapter.base, ask(stage)
    reads = {"tap_layer": adapter.config.tap_layer, "layers": adapter.config.attention_layers}
    (layout,) = adapter.layout(first, [(image.height, image.width)])
    ways: dict[str, Work] = {"1 prompt": partial(adapter.prefill, first)}
    for count in SEVERAL:
        last, template = int(layout.positions.max()), adapter.config.prompt_template
        shared = share_inputs(base.processor, first, last, PROMPTS[:count], template)
        assert shared is not None, "the base cannot share a prefix"
        once = partial(prefill_shared, base.anatomy, shared.moved(base.moved), **reads)
        assert once() is not None, "the base cannot share a prefix"
        ways[f"{count} prompts, image once"] = once
    count = min(SEVERAL)
    each = base.build_inputs([image] * count, PROMPTS[:count])
    ways[f"{count} prompts, image with each"] = partial(adapter.prefill, each)
    note = f"{_tokens(first, layout)} for one prompt; the processor is not timed."
    yield stage.compare(
        "Reading the base", ways, "1 prompt", [note], goals={f"{max(SEVERAL)} prompts, image once": 2.0}
    )
    for fusion in ("mirror", "lite"):
        adapter, count = stage.adapter(fusion), max(SEVERAL)
        know(adapter, [image])
        ways = {
            "1 prompt": partial(segment, adapter, image, PROMPTS[0]),
            f"{count} prompts": partial(segment, adapter, image, PROMPTS[:count]),
            f"{count} prompts, one by one": partial(one_by_one, adapter, [image] * count, PROMPTS[:count]),
        }
        yield stage.compare(f"`segment` with the {fusion} head, image embedding cached", ways, "1 prompt")


def _tokens(inputs: BatchFeature, layout: Any) -> str:
    image, tokens = len(layout.positions), inputs["input_ids"].shape[1]
    return f"{image} image tokens and {tokens - image} others"
