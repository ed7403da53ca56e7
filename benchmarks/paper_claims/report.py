"""The table, the page and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.paper_claims.training import Settings


def write_report(
    output: Path, settings: Settings, threads: int, before: dict[str, Any], results: dict[str, dict[str, Any]]
) -> None:
    for name, result in results.items():
        print(name, result["rate"], result["cpu_seconds"], result["answers"]["all"])
