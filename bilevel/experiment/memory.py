"""How much memory a computation takes at its peak."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import torch


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """By how much the memory of tensors grows at most, graph and temporaries included.

    On the CPU each allocation is read from PyTorch's profiler. A process grows by more than that,
    and by how much depends on what it did before.

    Args:
        run: The computation; whatever it sets up at its first run is set up already.
        device: Where it runs.

    Returns:
        MiB.

    Example:
        >>> peak_mib(lambda: torch.zeros(2**20) + torch.ones(2**20), torch.device("cpu"))
        12.0
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _quiet(), torch.autograd.profiler.profile(profile_memory=True) as seen:
        run()
    changes = [one.nbytes() for one in seen.kineto_results.events() if one.name() == "[memory]"]
    return max(itertools.accumulate(changes), default=0) / 2**20


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library tells of its beginning and end, past Python's standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
