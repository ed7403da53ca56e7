"""`python -m tests.attacks [NAME ...] [--count N] [--seed N]`: attacks, and one table of what came of them.

Exit code 1 where one did not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

from tests.attacks import heads, interrupts, readers, saves
from tests.attacks.registry import ATTACKS

__all__ = ["heads", "interrupts", "readers", "saves"]  # imported to be registered


def main() -> int:
    """Run them; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--count", type=int, help="inputs of each; default: thousands, as the table says")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := {*args.names} - {*ATTACKS}:
        parser.error(f"unknown attacks {sorted(unknown)}; known: {sorted(ATTACKS)}")
    print(f"{'attack':<18} {'tried':>7} {'refused':>8} {'foreign':>8} {'hung':>5} {'lost':>5} {'seconds':>8}  what")
    bad = False
    for name in args.names or ATTACKS:
        entry, began = ATTACKS[name], time.monotonic()
        out = entry.run(args.seed, args.count or entry.count)
        seconds = time.monotonic() - began
        counts = f"{out.tried:>7} {out.refused:>8} {out.foreign:>8} {out.hung:>5} {out.lost:>5} {seconds:>8.0f}"
        print(f"{name:<18} {counts}  {entry.about}", flush=True)
        for line in out.examples:
            print(f"    {line}")
        bad |= not out.held
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
