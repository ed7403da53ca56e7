"""What learns: how large it is and how long it takes beside the base."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.bases import BASES
from benchmarks.harness import Comparison, Stage, Work, proportions
from benchmarks.suite import counting
from benchmarks.suite.registry import ask, benchmark, paper_tap
from benchmarks.suite.steps import Steps

LARGE = ("llava-1.5-7b", "qwen2.5-vl-7b")  # what is counted
SAM_SIZES = ("vit_b", "vit_l", "vit_h")
LOGITS = "logits of all tokens"
LITE_PARAMETERS, CHECKPOINT_BYTES, LITE_SHARE = 10e6, 60e6, 0.05


@benchmark
def head(stage: Stage) -> Iterator[Comparison]:
    """The heads and the mask decoder on one prompt, against a whole prefill without the output layer."""
    model, _ = stage.pair
    lite, mirror = (Steps(stage.adapter(fusion)) for fusion in ("lite", "mirror"))
    ways: dict[str, Work] = {
        "bare prefill": partial(model.model, **ask(stage), use_cache=False),
        "lite head": lite.point,
        "mirror head": mirror.point,
        "SAM's mask decoder": lite.decode,
    }
    goals = {"lite head": LITE_SHARE} if stage.base in LARGE else {}
    notes = [] if goals else [f"The goal of {LITE_SHARE:.0%} for the lite head is meant for bases of 7B."]
    yield stage.compare("One prompt", ways, "bare prefill", notes, goals=goals)


@benchmark
def counted(stage: Stage) -> Iterator[Comparison]:
    """Counted, not timed, at the dimensions of two released bases: parameters, the size of a checkpoint, and
    floating-point operations (by torch's FlopCounterMode, a multiplication and an addition being two; elementwise work
    is not in it; attention counts all pairs of tokens, causal or not). The base is on the meta device, where nothing
    is computed. Heads read the middle layer, which is the default, or that of the paper."""
    for name in LARGE:
        sizes = {fusion: counting.size_of_adapter(name, fusion) for fusion in ("lite", "mirror")}
        for kind, of, limit in (
            ("parameters that learn", lambda size: size.trainable, LITE_PARAMETERS),
            ("bytes of a bf16 checkpoint", lambda size: size.checkpoint, CHECKPOINT_BYTES),
        ):
            amounts = {"limit for lite": limit, **{fusion: of(size) for fusion, size in sizes.items()}}
            notes = [f"The limit is {limit / 1e6:.0f} million. In millions: {', '.join(_millions(sizes, kind))}."]
            yield proportions(f"{name}: adapter", amounts, "limit for lite", kind, notes, {"lite": 1.0}, name)
        yield from _operations(name)


def _millions(sizes: dict[str, counting.Size], kind: str) -> list[str]:
    if kind.startswith("bytes"):
        return [f"{fusion} {size.checkpoint / 1e6:.1f}" for fusion, size in sizes.items()]
    return [
        f"{fusion} {size.head / 1e6:.1f} in the head and {size.decoder / 1e6:.1f} in the mask decoder"
        for fusion, size in sizes.items()
    ]


def _operations(name: str) -> Iterator[Comparison]:
    layers = BASES[name].config["text_config"]["num_hidden_layers"]
    by_tap = {tap: counting.count_flops(name, tap) for tap in (layers // 2, paper_tap(layers))}
    flops = by_tap[layers // 2]
    whole, decoder = flops["bare prefill"], flops["SAM's mask decoder"]
    note = f"{whole / 1e12:.2f} TFLOP for the bare prefill, without the output layer: one image, one prompt."
    goals = {"lite head": LITE_SHARE}
    yield proportions(f"{name}: parts", flops, "bare prefill", "counted operations", [note], goals, name)
    released = whole + flops["mirror head"] + decoder
    encoders = {size: flops[f"SAM's {size}"] for size in SAM_SIZES}
    for title, extra, goal in (
        ("without SAM's image encoder", 0, 0.55),
        *((f"with SAM's {size}", encoder, 0.7) for size, encoder in encoders.items()),
    ):
        amounts = {"released pipeline": released + extra}
        for tap, counts in by_tap.items():
            for fusion in ("mirror", "lite"):
                ours = counts[f"prefill for {fusion}"] + counts[f"{fusion} head"] + decoder
                amounts[f"{fusion} at layer {tap} of {layers}"] = ours + extra
        yield proportions(
            f"{name}: one prompt, end to end, {title}",
            amounts,
            "released pipeline",
            "counted operations",
            [
                "As `peer`, but counted: the released pipeline has the whole prefill, the mirror head, the same SAM "
                f"and no logits; those of all tokens would add {flops[LOGITS] / amounts['released pipeline']:.1%}."
            ],
            dict.fromkeys(list(amounts)[1:], goal),
            name,
        )
