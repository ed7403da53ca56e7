"""What the frozen model pays for being read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import BatchFeature

from benchmarks.harness import Comparison, Stage, Work, proportions
from benchmarks.memory import available_bytes, in_words
from benchmarks.suite.registry import PROMPTS, SEVERAL, ask, benchmark, one_by_one, picture
from lens_adapter import LensAdapter
from lens_adapter.vlm import taps
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.prefix import share_inputs

PEER = "eager, all attentions and hidden states"


@benchmark
def idle(stage: Stage) -> Iterator[Comparison]:
    """A base with an adapter attached that nobody asks anything of, against the same base without one. The base
    alone is measured twice: what lies between the two is noise."""
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
    and inputs. What capture takes more than a bare forward is compared with what it hands over: rows of attention and
    hidden states. Logits are those of the last token, as `generate` has them computed."""
    model, _ = stage.pair
    adapter, kernel = stage.adapter(), model.config._attn_implementation
    every = range(adapter.config.num_hidden_layers)
    per_token: dict[str, dict[int, float]] = {}
    for tokens in stage.tokens:
        inputs = {**ask(stage, tokens=tokens), "logits_to_keep": 1}
        tokens = inputs["input_ids"].shape[1]
        ways: dict[str, Work] = {
            "bare": partial(model, **inputs),
            "capture": partial(_captured, adapter, inputs),
            "capture, every layer's rows": partial(_captured, adapter, inputs, layers=every),
        }
        before = dict.fromkeys(ways, partial(model.set_attn_implementation, kernel))
        wanted, least = everything_bytes(model.config.get_text_config(), tokens, model.dtype.itemsize)
        room = available_bytes(stage.device)
        if wanted + least < room:
            ways[PEER] = partial(model, **inputs, output_attentions=True, output_hidden_states=True)
            before[PEER] = partial(model.set_attn_implementation, "eager")
            peer = []
        else:
            peer = [
                f"{PEER}: not run. What it returns takes {in_words(wanted)}, and one layer at work {in_words(least)} "
                f"more (both computed); there are {in_words(room)}."
            ]
        try:
            goals = {"capture": 1.02}
            yield stage.compare(f"A forward of {tokens} tokens", ways, "bare", peer, goals=goals, before=before)
            found, peaks = stage.compare_memory(f"A forward of {tokens} tokens", ways, "bare", before)
        finally:
            model.set_attn_implementation(kernel)
        yield found
        for name, work in list(ways.items())[1:3]:
            weight = sum(part.nbytes for part in _handed_over(work()))
            amounts = {name: peaks[name] - peaks["bare"], "what it hands over": weight}
            note = f"What it hands over: {in_words(weight)}."
            title, goals = f"{name}: beyond a bare forward of {tokens} tokens", {name: 1.0}
            yield proportions(title, amounts, "what it hands over", "peak memory", [note], goals)
        for name in ways:
            per_token.setdefault(name, {})[tokens] = peaks[name] / tokens
    for name in ("capture", PEER):
        if len(found := per_token.get(name, {})) > 1:
            amounts = {f"{tokens} tokens": amount for tokens, amount in found.items()}
            first = next(iter(amounts))
            yield proportions(
                f"{name}: growth", amounts, first, "peak memory per token", ["Growth in proportion is a ratio of 1."]
            )


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


def _captured(adapter: LensAdapter, inputs: dict[str, Any], **options: Any) -> Any:
    with adapter.capture(**options) as signals:
        adapter.attachment.anatomy.model(**inputs)
    return signals


def _handed_over(signals: Any) -> list[torch.Tensor]:
    return [signals.hidden, *signals.attention.values()]


@benchmark
def early_exit(stage: Stage) -> Iterator[Comparison]:
    """A prefill that ends where the head reads, against a whole one without the output layer: that takes the share of
    the layers, and whatever stands before them."""
    model, _ = stage.pair
    adapter, inputs = stage.adapter(), ask(stage)
    anatomy, config = adapter.attachment.anatomy, adapter.config
    count, width = config.num_hidden_layers, config.hidden_size
    embedded = torch.randn(*inputs["input_ids"].shape, width, device=stage.device, dtype=model.dtype)
    text = {"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]}
    lite = f"up to the rows of layers {config.attention_layers}, as the lite head reads"
    for title, given in (("Decoder layers alone", text), ("With the vision tower", inputs)):
        ways: dict[str, Work] = {"whole": partial(model.model, **given, use_cache=False)}
        goals = {}
        for tap in sorted({count // 4, count // 2, 3 * count // 4}):
            name = f"up to layer {tap} of {count}"
            ways[name] = partial(taps.prefill, anatomy, given, tap_layer=tap)
            goals[name] = tap / count + 0.05
        ways[lite] = partial(adapter.prefill, given)
        goals[lite] = config.tap_layer / count + 0.05
        notes = [f"{embedded.shape[1]} tokens; the goal is the share of the layers and 5 %."]
        yield stage.compare(title, ways, "whole", notes, goals=goals)


@benchmark
def shared_prefix(stage: Stage) -> Iterator[Comparison]:
    """Several prompts about one image: its tokens run through the base once, or with every prompt."""
    adapter, image = stage.adapter("mirror"), picture()
    _, processor = stage.pair
    template, first = adapter.config.prompt_template, ask(stage)
    (layout,) = adapter.layout(first, [(image.height, image.width)])
    ways: dict[str, Work] = {"1 prompt": partial(adapter.prefill, first)}
    for count in SEVERAL:
        shared = share_inputs(processor, first, int(layout.positions.max()), PROMPTS[:count], template)
        each = build_inputs(processor, [image] * count, PROMPTS[:count], template)
        assert shared is not None and adapter.prefill_shared(shared) is not None, "the base cannot share a prefix"
        ways[f"{count} prompts, image once"] = partial(adapter.prefill_shared, shared)
        ways[f"{count} prompts, image with each"] = partial(adapter.prefill, each)
    note = f"{_tokens(first, layout)} for one prompt; the processor is not timed."
    yield stage.compare(
        "Reading the base", ways, "1 prompt", [note], goals={f"{max(SEVERAL)} prompts, image once": 2.0}
    )
    for fusion in ("mirror", "lite"):
        adapter, count = stage.adapter(fusion), max(SEVERAL)
        ways = {
            "1 prompt": partial(adapter.segment, image, PROMPTS[0]),
            f"{count} prompts": partial(adapter.segment, image, PROMPTS[:count]),
            f"{count} prompts, one by one": partial(one_by_one, adapter, [image] * count, PROMPTS[:count]),
        }
        yield stage.compare(f"`segment` with the {fusion} head, image embedding cached", ways, "1 prompt")


def _tokens(inputs: BatchFeature, layout: Any) -> str:
    image, tokens = len(layout.positions), inputs["input_ids"].shape[1]
    return f"{image} image tokens and {tokens - image} others"
