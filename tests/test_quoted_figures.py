"""Every figure that a page quotes is the measured one, rounded; a decimal that nothing accounts for is refused.

A sentence with figures stands here with `#` in their places, and beside it what was measured. What scripts write
between markers, and the table of SAMs, are held by tests of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cached_features import NOT_LEARNING, table
from benchmarks.harness import Comparison, Row
from benchmarks.paper_claims.report import BEGIN, END, short_table
from lens_adapter import builtin
from lens_adapter.annotation.run import SHARD_SIZE
from lens_adapter.builtin.world.catalog import THINGS
from lens_adapter.sam.published import PUBLISHED, published_table

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.once

Quote = tuple[str, Sequence[float]]  # a sentence with `#` for its figures; what was measured

NUMBER = r"(\d+(?:,\d{3})*(?:\.\d+)?)"
NAMES = (  # decimals that are none
    r"arxiv\.org/abs/[\d.]+|arXiv [\d.]+",
    r"LLaVA-1\.5|llava-1\.5|Qwen2\.5|qwen2\.5|SAM 2\.1|SAM 2 and 2\.1|sam2\.1|SmolVLM2-2\.2B|0\.5B",
    r"Apache-2\.0|apache-2\.0|torch [\d.]+",
    r"transformers (?:[45]\.\d+|[\d.]+)|DeepSpeed [\d.]+",
    r"`[^`]*`",  # code
)


@cache
def record(name: str) -> Any:
    """A JSON of results/."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def measured(name: str, *keys: str) -> Any:
    found = record(name)
    for key in keys:
        found = found[key]
    return found


def row(base: str, benchmark: str, title: str, name: str, quantity: str = "time", device: str = "cpu") -> Row:
    """Of the suite: one way of one comparison."""
    comparisons = map(Comparison.read, record(f"benchmarks/suite-{base}-{device}")[benchmark]["comparisons"])
    (found,) = (one for one in comparisons if (one.title, one.quantity) == (title, quantity))
    (way,) = (way for way in found.rows if way.name == name)
    return way


def ratio(*place: str) -> float:
    return row(*place).ratio


def peer(base: str, count: int, encoder: bool, device: str = "cpu") -> tuple[float, float]:
    """Ours to the released pipeline's work: with the mirror, with the lite head."""
    title = f"{count} prompt{'s' * (count > 1)} about one image, {'with' if encoder else 'without'} SAM's image encoder"
    mirror, lite = (row(base, "peer", title, f"ours, {head}", device=device).ratio for head in ("mirror", "lite"))
    return mirror, lite


def _with_another_sam(name: str, device: str) -> tuple[float, float]:
    """Ours to the released pipeline's work: with the mirror, with the lite head."""
    title = "One prompt about a new picture, {} head"
    mirror, lite = (
        row("llava-1.5-7b", "peer_with_other_sams", title.format(head), f"ours, {name}", device=device).ratio
        for head in ("mirror", "lite")
    )
    return mirror, lite


def operations(base: str, encoder: str, tap: str) -> tuple[float, float]:
    """Counted, ours to the released pipeline's: with the mirror, with the lite head."""
    title = f"{base}: one prompt, end to end, {encoder}"
    heads = (f"{head} at layer {tap}" for head in ("mirror", "lite"))
    mirror, lite = (ratio("tiny", "counted", title, head, "counted operations") for head in heads)
    return mirror, lite


def architectures(version: str) -> tuple[int, int]:
    """How many work, and of how many."""
    zoo = record(f"zoo/{version}")
    return sum(one["works"] for one in zoo.values()), len(zoo)


def readme() -> list[Quote]:
    curve, probe = measured("few_shot", "curve"), record("probe")
    idle = row("tiny", "idle", "A forward", "attached")
    long, peak = "A forward of 2000 tokens", "peak memory"
    everything = "eager, all attentions and hidden states"
    seen, (works, known), (works_4, known_4) = "With the vision tower", architectures("5.23.0"), architectures("4.57.6")
    cached = "`segment` with the {} head, image embedding cached"
    llava, qwen = "llava-1.5-7b", "qwen2.5-vl-7b"
    return [
        (
            "gIoU # with 200 examples, # with 50 examples, # with 20 examples; trained heads # (",
            [*(curve[size]["giou.all"]["mean"] for size in ("200", "50", "20")), _trained_heads()],
        ),
        (
            "| attached and idle, to the bare model: a forward | # (# to #) | # |",
            [idle.ratio, idle.low, idle.high, ratio(llava, "idle", "A forward", "attached")],
        ),
        (
            "| `capture` in a forward of 2000 tokens, to a bare one: time, peak memory | #, # |",
            [ratio("tiny", "capture", long, "capture"), ratio("tiny", "capture", long, "capture", peak)],
        ),
        (
            "| eager attention with `output_attentions` and `output_hidden_states`, to the same | #, # |",
            [ratio("tiny", "capture", long, everything), ratio("tiny", "capture", long, everything, peak)],
        ),
        (
            "as far as a head reads it, the middle layer, to a whole prefill | # | # |",
            [
                ratio("tiny", "early_exit", seen, "up to layer 4 of 8"),
                ratio(llava, "early_exit", seen, "up to layer 16 of 32"),
            ],
        ),
        (
            "| the lite head, the mirror head, to a whole prefill | | #, # |",
            [ratio(llava, "head", "One prompt", f"{head} head") for head in ("lite", "mirror")],
        ),
        (
            "| 16 prompts about one picture, to 1 prompt: the base; all of `segment` | #; # (mirror), # (lite) |",
            [
                ratio("tiny", "shared_prefix", "Reading the base", "16 prompts, image once"),
                *(ratio("tiny", "shared_prefix", cached.format(head), "16 prompts") for head in ("mirror", "lite")),
            ],
        ),
        (
            "| masks and run lengths at 2160 x 3840 pixels, to SAM's mask decoder | # |",
            [
                ratio(
                    "tiny",
                    "postprocess",
                    "From low-resolution logits to masks on the CPU",
                    "masks and their run lengths",
                )
            ],
        ),
        (
            "without SAM's image encoder: 1 prompt | # (mirror), # (lite) | #, # | | 4 prompts about one picture | #, "
            "# | #, # | | the same with the image encoder (a small one; `vit_b`): 1 prompt | #, # | #, # | | 4 prompts "
            "about one picture | #, # | #, # |",
            [
                figure
                for encoder in (False, True)
                for count in (1, 4)
                for base in ("tiny", llava)
                for figure in peer(base, count, encoder)
            ],
        ),
        (
            "the released code: with `vit_h`, `vit_b`, `sam2.1-small` in ours and the mirror | | #, #, # | | and the "
            "lite head | | #, #, # |",
            [_with_another_sam(name, "cpu")[head] for head in (0, 1) for name in ("vit_h", "vit_b", "sam2.1-small")],
        ),
        (
            "read at the middle layer, our default, # (mirror) and # (lite) instead of # and #; with `vit_h` at the "
            "paper's layer # and #; Qwen2.5-VL-7B, whose vision tower is a quarter of its prefill, # and # without",
            [
                *operations(llava, "without SAM's image encoder", "16 of 32"),
                *operations(llava, "without SAM's image encoder", "14 of 32"),
                *operations(llava, "with SAM's vit_h", "14 of 32"),
                *operations(qwen, "without SAM's image encoder", "12 of 28"),
            ],
        ),
        (
            '`sam="slimsam_77"` needs # of the time of `vit_b`, `vit_h` #.',
            [ratio("tiny", "encoders", "SAM's image encoder, one image", name) for name in ("slimsam_77", "vit_h")],
        ),
        (
            "one prompt to the same base took # (mirror) and # (lite) of the released code's time with SAM's `vit_h` "
            "in both, # and # with `sam2.1-small` in ours; four prompts # and #.",
            [*peer(llava, 1, True, "cuda"), *_with_another_sam("sam2.1-small", "cuda"), *peer(llava, 4, True, "cuda")],
        ),
        ("| # of the # architectures of transformers 5.23, # of the # of 4.57 |", [works, known, works_4, known_4]),
        ("The other # (#) are refused with a reason", [known - works, known_4 - works_4]),
        (
            "for # minutes reached a gIoU of # and # on # validation scenes",
            [
                probe["minutes_of_training"],
                *(probe[layer]["giou.all"] for layer in ("recommended", "default")),
                probe["validation_scenes"],
            ],
        ),
        (
            "from a click inside the true mask, reach # here",
            [measured("builtin", "baselines.oracle_keypoint.giou.attribute")],
        ),
        ("the default head reaches a gIoU of # (`examples", [measured("free_prompts", "giou", "lite-sam2")]),
        ("The built-in models know # things as one font draws them, and # words", [len(THINGS), _words()]),
    ]


def _words() -> int:
    """That the shipped base knows."""
    tokenizer = json.loads((builtin.VLM / "tokenizer.json").read_text(encoding="utf-8"))
    return len(tokenizer["model"]["vocab"]) - len(tokenizer["added_tokens"])


def _trained_heads() -> float:
    """Of both that a readout was measured beside, which round to the same."""
    both = [measured("few_shot", "builtin", f"heads.{head}.giou.all") for head in ("mirror", "lite")]
    assert len({f"{one:.2f}" for one in both}) == 1
    return both[0]


def cached_features() -> list[Quote]:
    found = record("cached_features")["builtin"]
    quotes: list[Quote] = []
    for head in ("mirror", "lite"):
        one = found[head]
        seconds, sizes = one["epoch_seconds"], (one["disk_bytes_per_sample"], one["disk_bytes_per_picture"])
        quotes.append(
            (
                f"| {head} | # s | # s | # | # | # | # kB | # kB |",
                [
                    seconds["live"],
                    seconds["cached"],
                    one["times_faster"],
                    one["times_faster_if_reading_took_no_time"],
                    one["times_faster_without_the_part_that_learns"],
                    *(size["exact"] / 1000 for size in sizes),
                ],
            )
        )
    making = found["lite"]["making_the_features_in_live_epochs"]
    large = measured("cached_features", "shapes", "llava-1.5-7b, cpu", "lite")
    live, cached = (sum(large["part_milliseconds"][way].values()) for way in ("live", "cached"))
    not_learning = sum(large["part_milliseconds"]["cached"][part] for part in NOT_LEARNING)
    frozen = sum(large["part_milliseconds"]["live"][part] for part in NOT_LEARNING[2:])
    sizes = [large[key] / 1e6 for key in ("disk_bytes_per_sample", "disk_bytes_per_picture")]
    return [
        *quotes,
        ("Making the features took as long as # live epochs.", [making]),
        (
            "a cached step took # of the time of a live one, and # of its CPU seconds",
            [1 / large["times_faster"], cached / live],
        ),
        ("which are # of a live step", [frozen / live]),
        ("are # of a cached one", [not_learning / cached]),
        ("A sample takes # MB on disk, a picture # MB.", sizes),
    ]


def train() -> list[Quote]:
    dropout = measured("keypoint_dropout", "results")
    figures = ("giou", "giou_without_keypoints", "first_keypoint_on_target")
    rows = [(head, share, one) for head, shares in dropout.items() for share, one in shares.items()]
    settings = measured("keypoint_dropout", "settings")
    compared = ("giou.all", "giou.ordinal", "giou.several", "boundary_f", "no_target_accuracy")
    rounds = zip(("first", "second"), measured("dense_prompt", "rounds"), strict=True)
    return [
        ("The paper's code drops all keypoint prompts of a sample with probability #.", [0.9]),  # theirs, not measured
        ("(# validation scenes, # steps of # prompts", [settings[k] for k in ("validation", "steps", "batch_size")]),
        *((f"| {head} | {share} | # | # | # |", [one[figure] for figure in figures]) for head, share, one in rows),
        ("judged on # validation scenes", [measured("dense_prompt", "scenes")]),
        *(
            (f"| {name} round, {way} | # | # | # | # | # |", [one[way][figure] for figure in compared])
            for name, one in rounds
            for way in ("without", "with")
        ),
    ]


def sams() -> list[Quote]:
    first, second = (record("two_sams")[head] for head in ("lens-lite", "lens-lite-sam2"))
    shown = ("giou.all", "boundary_f", "no_target_accuracy", "seconds")
    return [
        (
            "time | |---|---|---|---|---| | `builtin-lite` | # | # | # | # | | `builtin-lite-sam2` | # | # | # | # |",
            [*(first[figure] for figure in shown), *(second[figure] for figure in shown)],
        ),
    ]


def annotate() -> list[Quote]:
    cheap, real = measured("annotate_memory", "list"), measured("annotate_memory", "model")
    most, end = "resident_mib_at_most", "resident_mib_at_the_end"
    halves = [ways["1/2"] for ways in measured("large_pictures", "changes").values()]
    assert not any(half["found_decisions_flipped"] for half in halves)
    return [
        (
            "over a list of # tiny pictures with a segmenter that costs nothing, the process took # MiB at most and # "
            "MiB at the end; over # scenes with the model that ships, # MiB at most and # MiB at the end.",
            [figure for one in (cheap, real) for figure in (one["pictures"], one[most], one[end])],
        ),
        (
            "**At a half**, none of # `found` decisions changed, the mean IoU is # or more, and the worst #.",
            [halves[0]["prompts"], *(min(half[key] for half in halves) for key in ("mean_iou", "worst_iou"))],
        ),
        (
            "That is of # and # masks in # scenes",
            [*(half["found_at_full_size"] for half in halves), measured("large_pictures", "pictures")],
        ),
    ]


def first_head() -> list[Quote]:
    beside = measured("few_shot", "beside")
    random = [beside[name]["giou.all"]["mean"] for name in ("random single head", "four random heads")]
    off = measured("few_shot", "curve", "50", "calibration_error", "mean")
    return [
        ("where they were not refused as chance, they reach # and #. Scores are off by # on average", [*random, off])
    ]


def security() -> list[Quote]:
    honest, memory = measured("page_load", "honest"), measured("page_load", "memory_mb")
    waited = honest["seconds"]["all"]
    return [
        (
            "the # honest ones got an answer to each of their # requests (half within # seconds, 95 of 100 within #)",
            [measured("page_load", "visitors", "honest"), honest["done"], waited["p50"], waited["p95"]],
        ),
        (
            "memory went from # GB to # at most and # in the end",
            [memory[when] / 1000 for when in ("before", "most", "after")],
        ),
    ]


def ten_million() -> list[Quote]:
    shards, size = -(-10_000_000 // SHARD_SIZE), 150e3
    parts = "llava-1.5-7b: parts"
    (counted,) = (
        one
        for one in map(Comparison.read, record("benchmarks/suite-tiny-cpu")["counted"]["comparisons"])
        if one.title == parts
    )
    prefill = float(counted.notes[0].partition(" TFLOP for the bare prefill")[0])
    base = prefill * ratio("tiny", "counted", parts, "prefill for lite", "counted operations")
    encoder = PUBLISHED["sam2.1-small"].operations / 1000
    return [
        ("| pictures, # kB each | # TB |", [size / 1e3, 10_000_000 * size / 1e12]),
        ("`--shard-size #` | # |", [SHARD_SIZE, shards]),
        ("with # files on a slow file system", [shards]),
        ("takes # TFLOP as far as the lite head reads it, `sam2.1-small` #, all", [base, encoder]),
        ("makes at most # pictures an hour for each TFLOP", [3600 / (base + encoder)]),
        (
            "Of # prompts about one picture instead of one, the base took # times as long",
            [16, ratio("tiny", "shared_prefix", "Reading the base", "16 prompts, image once")],
        ),
        (
            "`slimsam_77` took # of the time of `vit_b`, `vit_h` # (",
            [ratio("tiny", "encoders", "SAM's image encoder, one image", name) for name in ("slimsam_77", "vit_h")],
        ),
        ("Tried: # pictures in one run, whose memory did not grow", [measured("annotate_memory", "list", "pictures")]),
    ]


# Of each page: what it quotes, and the parts of it that are written by scripts beside those between markers.
PAGES: dict[str, tuple[Callable[[], list[Quote]], Callable[[], list[str]]]] = {
    "README.md": (readme, list),
    "docs/sam.md": (sams, lambda: [published_table()]),
    "docs/cached-features.md": (cached_features, lambda: [table(record("cached_features")).split("\n\n")[1]]),
    "docs/train.md": (train, list),
    "docs/annotate.md": (annotate, list),
    "docs/ten-million-pictures.md": (ten_million, list),
    "docs/first-head.md": (first_head, list),
    "docs/security.md": (security, list),
    **{
        f"docs/{name}.md": (list, list)  # none, so far
        for name in ("index", "how-it-works", "code", "pipelines-and-chat", "promises", "publish", "things")
    },
}


def faults(page: str, quotes: Sequence[Quote]) -> list[str]:
    """What a page quotes wrongly, or without a source."""
    text = " ".join(re.sub(r"```.*?```", "", page, flags=re.DOTALL).split())
    found = []
    for sentence, values in quotes:
        pattern = NUMBER.join(map(re.escape, sentence.split("#")))
        matches = list(re.finditer(pattern, text))
        if len(matches) != 1:
            found.append(f"{len(matches)} times, expected once: {sentence}")
            continue
        for shown, value in zip(matches[0].groups(), values, strict=True):
            decimals = len(shown.partition(".")[2])
            if shown not in (f"{value:,.{decimals}f}", f"{value:.{decimals}f}"):
                found.append(f"{shown} where {value:.6g} was measured: {sentence}")
        text = text[: matches[0].start()] + " ... " + text[matches[0].end() :]
    rest = re.sub("|".join(NAMES), "", text)
    found += [f"no source for {one!r}" for one in re.findall(r".{0,60}(?<![\w.])\d+\.\d+(?![\w.]*\.\d).{0,20}", rest)]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_is_the_measured_one(name):
    page, (quotes, written) = (ROOT / name).read_text(encoding="utf-8"), PAGES[name]
    page = re.sub(r"<!-- ([\w-]+): begin -->.*?<!-- \1: end -->", "", page, flags=re.DOTALL)
    for part in written():
        assert part in page
        page = page.replace(part, "")
    assert faults(page, quotes()) == []


def test_the_card_says_what_came_of_the_recipe():
    run, card = record("recipe"), " ".join((ROOT / "MODEL_CARD.md").read_text(encoding="utf-8").split())
    stages, figures, ships = run["stages"], run["figures"], record("builtin")
    heads = ("mirror", "lite", "lite-sam2")
    steps = ", ".join(f"{stages['heads']['steps'][head]:,}" for head in heads)
    reached, shipped = (", ".join(f"{of[f'heads.{head}.giou.all']:.3f}" for head in heads) for of in (figures, ships))
    assert f"| {stages['heads']['minutes']:.0f}, two threads | {steps} | gIoU {reached} | {shipped} |" in card
    click = "baselines.oracle_keypoint.giou.attribute"
    assert f"a click on one thing, gIoU {figures[click]:.3f} | {ships[click]:.3f} |" in card
    (names, colors, sizes), (shipped_names, shipped_colors, shipped_sizes) = (
        [f"{of[f'answers.{kind}']:.1%}" for kind in ("names", "colors", "sizes")] for of in (figures, ships)
    )
    assert f"names {names}, colors {colors}, sizes {sizes} (" in card
    assert f"| {shipped_names}, {shipped_colors}, {shipped_sizes} |" in card
    where = ("where_within_one_cell", "where_ordinal", "counting")
    cell, ordinal, counting = (f"{figures[f'answers.{kind}']:.1%}" for kind in where)
    assert f"within one cell {cell}; ordinal, exactly {ordinal}; counting {counting} | " in card
    assert "; ".join(f"{ships[f'answers.{kind}']:.1%}" for kind in where) in card
    for name in ("tower", "language_model", "sam", "sam2"):
        assert f"| {stages[name]['minutes']:.0f}, one thread | {stages[name]['steps']:,} |" in card
    hours, minutes = divmod(round(stages["whole"]["minutes"]), 60)
    assert f"{hours} hours {minutes} minutes" in card
    assert f"on {run['test_scenes']} test scenes" in card
    first, second, third = (f"{run['free_prompts'][head]:.3f}" for head in heads)
    assert f"these heads reach {first}, {second} and {third}." in card


def test_the_table_of_claims_is_the_measured_one():
    assert f"{BEGIN}\n{short_table(record('paper_claims'))}\n{END}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_words_say_of_shares_is_so():
    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "SAM's `vit_b` takes a third beside the 7B base" in page
    assert "a small image encoder takes nearly nine tenths beside the small base" in page
    for head in ("mirror", "lite"):
        share = "profile", f"One image, {head} head", "SAM's image encoder"
        assert 0.3 < ratio("llava-1.5-7b", *share) < 0.37 and 0.83 < ratio("tiny", *share) < 0.9
    assert "The mirror's first keypoint lies on its target one time in four" in page
    assert 0.22 < measured("builtin", "heads.mirror.keypoint_on_target") < 0.28


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("It takes 0.52 of the\ntime.", []),
        ("It takes 0.53 of the time.", ["0.53 where 0.5219 was measured: It takes # of the time"]),
        ("It takes half of the time.", ["0 times, expected once: It takes # of the time"]),
        ("It takes 0.52 of the time, and 1.5 MB.", ["no source for ' ... , and 1.5 MB.'"]),
        ("It takes 0.52 of the time (arXiv 2510.16785, LLaVA-1.5-7B, transformers 5.23).", []),
        ("```\nx = 3.14\n```\nIt takes 0.52 of the time.", []),
    ],
)
def test_wrong_and_new_figures_are_found(page, said):
    assert faults(page, [("It takes # of the time", [0.5219])]) == said
