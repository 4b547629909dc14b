"""Whether the machine has the memory that updaters take, and whether its user wants that."""

from __future__ import annotations

import os
import sys

from rich.prompt import Confirm

from bilevel import BilevelError


def check_memory(needed: int) -> None:
    """Asks before more is taken than is free; says no where there is no one to ask.

    Args:
        needed: Bytes.

    Raises:
        BilevelError: If it is not to be taken.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if needed <= free:
        return
    told = f"the updaters take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"
    if sys.stdin.isatty() and Confirm.ask(f"{told}; the machine may stall. Go on?", default=False):
        return
    raise BilevelError(
        f"{told}: the dense updater has 52 m² numbers; give --updater block or coordinate, or "
        "fewer --jobs"
    )
