"""Time several ways of doing one thing against each other.

What a way costs is said as a ratio to another way that ran in the same process, in turn with it: machines differ, and
so does one machine from minute to minute.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

import lens_adapter
from benchmarks import bases
from lens_adapter import LensAdapter

Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """How long one way took, in units of the reference: the median over rounds, and the middle half of them."""

    name: str
    ratio: float
    low: float
    high: float


@dataclass
class Comparison:
    """The outcome of one benchmark.

    Attributes:
        title: what was done.
        reference: what the ratios are relative to.
        rows: one per way.
        notes: what else was measured, and what one should know about it.
    """

    title: str
    reference: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass
class Stage:
    """What a benchmark is given: a place, a base with random weights, and a clock.

    Attributes:
        device: "cpu" or "cuda".
        base: a name of `bases.BASES`.
        repeats: rounds; in each, every way runs once.
    """

    device: str
    base: str
    repeats: int = 5

    @cached_property
    def pair(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The base, on the device, and its processor."""
        return bases.build(self.base, self.device)

    def adapter(self, fusion: str = "lite") -> LensAdapter:
        """A fresh, untrained adapter attached to the base."""
        torch.manual_seed(0)
        model, processor = self.pair
        sam = {**bases.BASES[self.base].sam, "include_image_encoder": True}
        return LensAdapter.from_model(model, processor, load_sam=False, fusion=fusion, sam=sam).eval()

    def compare(self, title: str, ways: Mapping[str, Work], reference: str, notes: Sequence[str] = ()) -> Comparison:
        """Run every way once to warm up, then all of them in turn, `repeats` times.

        Args:
            title, notes: of the result.
            ways: {name: what is timed}.
            reference: one of these names.
        """
        for work in ways.values():
            self._seconds(work)
        rounds = [
            {name: self._seconds(work) for name, work in ways.items()} for _ in tqdm(range(self.repeats), desc=title)
        ]
        rows = []
        for name in ways:
            ratios = [seconds[name] / seconds[reference] for seconds in rounds]
            low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
            rows.append(Row(name, median(ratios), low, high))
        return Comparison(title, reference, rows, list(notes))

    def record(self) -> dict[str, Any]:
        """Where figures come from."""
        model, _ = self.pair
        return {
            "device": torch.cuda.get_device_name() if self.device == "cuda" else platform.processor() or _cpu_name(),
            "threads": torch.get_num_threads(),
            "base": self.base,
            "base_class": type(model).__name__,
            "base_dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "repeats": self.repeats,
            "versions": {
                "lens_adapter": lens_adapter.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }

    def _seconds(self, work: Work) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _cpu_name() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
