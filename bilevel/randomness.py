"""Random numbers that do not depend on what else is drawn."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch


def derived_seed(seed: int, *path: int) -> int:
    """A seed for one part of a run, far from those of its other parts.

    Args:
        seed: Seed of the run, from 0 on.
        *path: The part's numbers, such as epoch and process, from 0 on. Paths of different length
            are different parts.

    Returns:
        A seed below 2³².

    Example:
        >>> derived_seed(0) == derived_seed(0, 0)
        False
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0])


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Within the block torch draws what it will draw again after it.

    Args:
        device: Where the block computes; the CPU's random numbers are kept in any case.

    Returns:
        A context manager.

    Example:
        >>> with random_state_kept(torch.device("cpu")):
        ...     first = torch.rand(3)
        >>> torch.equal(torch.rand(3), first)
        True
    """
    if device.type in ("cpu", "meta"):
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)
