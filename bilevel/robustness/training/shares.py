"""What the processes of a job do differently while they train on shares of the same batches."""

from __future__ import annotations

import numpy as np
import torch

from bilevel import distributed


def share_of(count: int) -> float:
    """How much of a batch this process has.

    Args:
        count: Images of the batch.

    Returns:
        A number in [0, 1]; the processes' sum is 1.

    Example:
        >>> share_of(5)
        1.0
    """
    own = distributed.shard(count)
    return float(own.stop - own.start) / count


def seed_apart(seed: int, steps: int) -> None:
    """Other random numbers for each process, whatever a run with fewer or more had drawn.

    Args:
        seed: Of the run.
        steps: Done so far.
    """
    parts = seed, steps, distributed.world_size(), distributed.rank()
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))
