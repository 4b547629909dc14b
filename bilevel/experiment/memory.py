"""The peak memory of a computation."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import torch


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """The peak increase of the memory of tensors, graph and temporaries included.

    On the CPU it is the sum of the allocations in PyTorch's profiler, unlike the resident size of
    the process, which depends on what ran before.

    Args:
        run: The computation, warmed up already.
        device: Its device.

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
    with _quiet(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        run()
    events = profile.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(changes), default=0) / 2**20


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the profiler's library, which writes to file descriptor 2."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
