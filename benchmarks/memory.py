"""How much memory work takes at its peak, and how much there is."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """What the tensors of `work` take at their peak, beyond what was there before.

    On "cuda" by torch's own statistics. On "cpu" from the profiler's record of every allocation of torch's allocator,
    those inside kernels included: exact, the same every time, and not blurred by what a process keeps from earlier
    work. What libraries below take of their own (oneDNN's scratchpads) and what numpy and Pillow take is not in it.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    taken = peak = 0
    for event in sorted(events, key=lambda event: event["args"]["Ev Idx"]):
        taken += event["args"]["Bytes"]
        peak = max(peak, taken)
    return peak


def available_bytes(device: str) -> int:
    """What is left on the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo", encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def in_words(count: float) -> str:
    """12345678 -> "11.8 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
