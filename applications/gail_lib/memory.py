"""Checks that the machine has the memory that learned updaters need."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.prompt import Confirm

from bilevel import BilevelError

MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, page cache included; None where unknown."""
    if MEMINFO.exists():
        for line in MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def check_memory(needed: int) -> None:
    """Asks before more memory is used than is available, and refuses where nobody can answer.

    Args:
        needed: Bytes.

    Raises:
        BilevelError: If it is refused.
    """
    available = available_memory()
    if available is None or needed <= available:
        return
    told = f"the updaters take {needed / 2**30:.1f} GiB and {available / 2**30:.1f} are available"
    if sys.stdin.isatty() and Confirm.ask(f"{told}; the machine may stall. Go on?", default=False):
        return
    raise BilevelError(
        f"{told}: the dense updater has 52 m² parameters; give --updater block or coordinate, or "
        "fewer --jobs"
    )
