"""Time several ways of doing one thing against each other.

What a way costs is said as a ratio to another way that ran in the same process, in turn with it: machines differ, and
so does one machine from minute to minute.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

import lens_adapter
from benchmarks import bases
from benchmarks.memory import in_words, peak_bytes
from lens_adapter import LensAdapter

Work = Callable[[], Any]
TOKENS = (600, 2000, 8000)  # lengths of sequences that `capture` is measured at
SECONDS = 60.0  # after which a comparison begins no further round


@dataclass(frozen=True)
class Row:
    """What one way costs, in units of the reference.

    Attributes:
        name: of the way.
        ratio, low, high: the median over rounds, and the middle half of them; all alike where there was nothing to
            repeat.
        at: where it stands on the axis of a plot, if it does.
    """

    name: str
    ratio: float
    low: float
    high: float
    at: float | None = None


@dataclass
class Comparison:
    """The outcome of one benchmark.

    Attributes:
        title: what was done.
        reference: what the ratios are relative to.
        rows: one per way.
        notes: what else was measured, and what one should know about it.
        quantity: what the ratios are of.
        goals: {row: what its ratio was meant to be at most}.
        rounds: how many there were; None where there was nothing to repeat.
        base: what it is of, where that is not the stage's base.
    """

    title: str
    reference: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    quantity: str = "time"
    goals: dict[str, float] = field(default_factory=dict)
    rounds: int | None = None
    base: str | None = None

    @property
    def judged(self) -> bool:
        """Whether it can be said that a goal was reached: one round alone does not tell what is noise."""
        return self.rounds != 1

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Comparison:
        """From what `dataclasses.asdict` made of one."""
        return cls(**{**found, "rows": [Row(**row) for row in found["rows"]]})

    def place(self, at: Mapping[str, float]) -> Comparison:
        """The same, with the rows' places on an axis."""
        return replace(self, rows=[replace(row, at=at[row.name]) for row in self.rows])


@dataclass
class Stage:
    """What a benchmark is given: a place, a base with random weights, and a clock.

    Attributes:
        device: "cpu" or "cuda".
        base: a name of `bases.BASES`.
        repeats: rounds, as long as there is time; in each, every way runs once.
        seconds: see `SECONDS`.
        tokens: see `TOKENS`.
        layers, side: of the base, where they are not those that its name says; as for `bases.build`.
        dtype: of base, head and SAM alike; default: as `bases.build` makes the base, and float32 for the others.
        sam: size of segment-anything, where it is not the one beside the base.
    """

    device: str
    base: str
    repeats: int = 5
    seconds: float = SECONDS
    tokens: Sequence[int] = TOKENS
    layers: int | None = None
    side: int | None = None
    dtype: torch.dtype | None = None
    sam: str | None = None

    @cached_property
    def pair(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The base, on the device, and its processor."""
        return bases.build(self.base, self.device, layers=self.layers, side=self.side, dtype=self.dtype)

    def adapter(self, fusion: str = "lite", sam: str | None = None, **fields: Any) -> LensAdapter:
        """A fresh, untrained adapter attached to the base, with the stage's SAM or another; `fields` of its config."""
        torch.manual_seed(0)
        (model, processor), name = self.pair, sam or self.sam
        chosen = bases.BASES[self.base].sam if name is None else {"variant": name}
        fields["sam"] = {**chosen, "include_image_encoder": True}
        adapter = LensAdapter.from_model(model, processor, load_sam=False, fusion=fusion, **fields)
        return adapter.to(self.dtype).eval() if self.dtype else adapter.eval()

    def compare(
        self,
        title: str,
        ways: Mapping[str, Work],
        reference: str,
        notes: Sequence[str] = (),
        *,
        goals: Mapping[str, float] | None = None,
        before: Mapping[str, Work] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Comparison:
        """Run every way once to warm up, then all of them in turn, `repeats` times; every other round backwards.

        Once `seconds` have passed there are no further rounds. Ways that take so long that this is before the first
        one are not in need of warming up: then that is the only round.

        Args:
            title, notes, goals: of the result.
            ways: {name: what is timed}.
            reference: one of these names.
            before: {name: what is done before each run of it, and not timed}.
            clock: what tells seconds; `time.process_time` counts those of this process, on a CPU that others use, too.
        """
        before, began = before or {}, time.perf_counter()

        def seconds(name: str) -> float:
            before.get(name, int)()
            return self.timed(ways[name], clock)

        warm_up = {name: seconds(name) for name in ways}
        rounds = []
        for count in tqdm(range(self.repeats), desc=title):
            if time.perf_counter() - began > self.seconds:
                break
            rounds.append({name: seconds(name) for name in (reversed(ways) if count % 2 else ways)})
        rounds = rounds or [warm_up]
        rows = []
        for name in ways:
            ratios = [each[name] / each[reference] for each in rounds]
            low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
            rows.append(Row(name, median(ratios), low, high))
        return Comparison(title, reference, rows, list(notes), goals=dict(goals or {}), rounds=len(rounds))

    def compare_memory(
        self, title: str, ways: Mapping[str, Work], reference: str, before: Mapping[str, Work] | None = None
    ) -> tuple[Comparison, dict[str, int]]:
        """The ways' peak memory beyond what is there without them, as ratios, and in bytes by name."""
        peaks = {}
        for name, work in ways.items():
            (before or {}).get(name, int)()
            peaks[name] = peak_bytes(work, self.device)
        note = f"{reference}: {in_words(peaks[reference])} beyond weights and inputs."
        return proportions(title, peaks, reference, "peak memory", [note]), peaks

    def record(self) -> dict[str, Any]:
        """Where figures come from."""
        model, _ = self.pair
        return {
            "device": torch.cuda.get_device_name() if self.device == "cuda" else platform.processor() or _cpu_name(),
            "device_kind": self.device,
            "threads": torch.get_num_threads(),
            "base": self.base,
            "base_class": type(model).__name__,
            "base_dtype": _name(model.dtype),
            "adapter_dtype": _name(self.dtype or torch.float32),
            "sam": self.sam or bases.BASES[self.base].sam["variant"],
            "attention": model.config._attn_implementation,
            "repeats": self.repeats,
            "versions": {
                "lens_adapter": lens_adapter.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }

    def timed(self, work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
        """Seconds, by a clock, that some work takes on the device."""
        self._wait()
        start = clock()
        work()
        self._wait()
        return clock() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def proportions(
    title: str,
    amounts: Mapping[str, float],
    reference: str,
    quantity: str,
    notes: Sequence[str] = (),
    goals: Mapping[str, float] | None = None,
    base: str | None = None,
) -> Comparison:
    """A `Comparison` of what needs no repeating: bytes, parameters, counted operations."""
    ratios = {name: amount / amounts[reference] for name, amount in amounts.items()}
    rows = [Row(name, ratio, ratio, ratio) for name, ratio in ratios.items()]
    return Comparison(title, reference, rows, list(notes), quantity, dict(goals or {}), base=base)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cpu_name() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
