"""What docs/serve.md says is true of the code and of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from lens_adapter.serving import bounds
from lens_adapter.serving.requests import AnswerOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_the_page_names_the_bounds():
    for words in (
        f"{bounds.MOST_PIXELS / 1e6:.0f} megapixels",
        f"{bounds.LARGEST_REQUEST / 1e6:.0f} MB of JSON",
        f"{bounds.MOST_PROMPTS}, of {bounds.LONGEST_PROMPT} letters each",
        f"{bounds.SLOWEST_REQUEST:.0f} seconds to arrive",
        f"{bounds.MOST_HELD} (`--most-held`)",
    ):
        assert words in PAGE, words


def test_the_page_names_every_parameter_and_shows_an_answer():
    for name in ("prompts", *AnswerOptions.__dataclass_fields__):
        assert f".{name}`" in PAGE, name
    answer = json.loads(next(line for line in PAGE.splitlines() if line.startswith('{"image_size"')))
    (found,) = answer["results"]
    assert [*found] == ["prompt", "found", "score", "area", "keypoints", "keypoint_scores", "segmentation"]
    assert found["segmentation"]["size"] == answer["image_size"]


def test_the_figures_are_those_measured():
    record = json.loads((ROOT / "results" / "serve_load.json").read_text())
    said = PAGE.partition("## Measured")[2]
    assert " and ".join(map(str, record["throughput_of_batched_to_unbatched"])) in said
    for one in record["rounds"]:
        for name, figures in one.items():
            requests, seconds, stop = figures["requests"], figures["seconds"], figures["stop"]
            counts = [requests[key] for key in ("answered", "refused_for_their_picture", "lost", "held_at_most")]
            waits = [f"{seconds[key]} s" for key in ("p50", "p95")]
            ends = [f"{stop['answered']} / {stop['accepted']}", stop["exit_code"]]
            assert f"| {' | '.join(map(str, [name, *counts, *waits, *ends]))} |" in said
            assert requests["lost"] == stop["exit_code"] == 0 and stop["answered"] == stop["accepted"]
