"""Mixed precision within a solve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def uncached_autocast() -> Iterator[None]:
    """Within the block autocast converts a weight anew whenever it is used.

    All steps of a solve would share a conversion that is kept, and autograd would add up the
    gradients of the steps in its low precision: those of small steps are lost.

    Yields:
        Nothing.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
