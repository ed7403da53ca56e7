"""What we promise, and the tests that hold it: their numbers, by one command.

python -m tests.promises
"""

from __future__ import annotations

from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The promise, in the words of docs/promises.md -> files of the suite (folders count whole), relative to tests/.
PROMISES = {
    "The base stays as it was": (
        "test_guarantees.py",
        "vlm/test_hooks.py",
        "vlm/test_base.py",
        "vlm/test_interrupts.py",
        "traps/test_traps.py",
    ),
    "Threads, forks and compiled code beside a reading": ("traps/test_threads.py", "traps/test_compiling.py"),
    "Every architecture, tiny and as released": ("zoo",),
    "Each image token is laid where it looks": (
        "vlm/test_layout.py",
        "vlm/test_layout_single.py",
        "vlm/test_layout_sizes.py",
        "vlm/test_layout_tiled.py",
    ),
    "The same head, the same masks": (
        "builtin/test_shipped_masks.py",
        "test_checkpoint.py",
        "vlm/test_shared_prefix.py",
    ),
    "A SAM draws as its own library does": (
        "sam/test_segment_anything.py",
        "sam/test_families.py",
        "sam/test_tracking.py",
    ),
    "No number that is none": ("test_finite.py",),
    "A run knows its folder, a result its head": ("training/test_run_folder.py", "test_results.py"),
    "Data sets are read right, or refused": ("data",),
    "A run that was killed goes on with the same rows": ("annotation",),
    "What a call cannot use is refused by name": (
        "test_bad_input.py",
        "test_sources.py",
        "vlm/test_inputs.py",
        "vlm/test_images.py",
        "vlm/test_wrong_types.py",
        "cli/test_cli.py",
        "cli/test_outputs.py",
    ),
    "Words that the model does not know are said": ("test_unknown_words.py", "vlm/test_words.py"),
    "Strangers reach nothing that they were not given": (
        "test_safe_checkpoints.py",
        "data/test_untrusted.py",
        "data/test_plain_pickle.py",
        "attacks",
        "app/test_app_attacks.py",
        "serving",
    ),
    "A readout does not fool itself": ("test_fitting.py", "head/test_readout.py"),
    "Published figures are those measured": (
        "builtin/test_shipped.py",
        "benchmarks/test_few_shot.py",
        "benchmarks/test_paper_claims.py",
        "test_docs.py",
        "test_quoted_figures.py",
    ),
    "The Hub: what is pushed comes back": ("hub",),
}


class _Collected:
    """Plugin of pytest: how many tests each file has."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.counts = Counter(item.path.relative_to(ROOT / "tests").as_posix() for item in items)


def counts() -> dict[str, int]:
    """Promise -> tests, an input or a fault each."""
    collected = _Collected()
    with redirect_stdout(StringIO()):  # the tests' names
        ended = pytest.main(["--collect-only", "-qq", str(ROOT / "tests")], plugins=[collected])
    if ended != pytest.ExitCode.OK:
        raise SystemExit(f"The tests cannot be collected ({ended!r}): run pytest --collect-only to see why.")

    def number(places: tuple[str, ...]) -> int:
        files = [file for file in collected.counts if any(f"{file}/".startswith(f"{place}/") for place in places)]
        return sum(collected.counts[file] for file in files)

    return {promise: number(places) for promise, places in PROMISES.items()}


if __name__ == "__main__":
    for promise, number in counts().items():
        print(f"{number:6}  {promise}")
