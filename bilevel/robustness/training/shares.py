"""What differs between processes that train on shares of the same batches."""

from __future__ import annotations

import numpy as np
import torch

from bilevel import distributed


def batch_share(count: int) -> float:
    """The share of a batch that this process has.

    Args:
        count: Number of images of the batch.

    Returns:
        A number in [0, 1]; the sum over the processes is 1.

    Example:
        >>> batch_share(5)
        1.0
    """
    own = distributed.shard(count)
    return float(own.stop - own.start) / count


def seed_process(seed: int, steps: int) -> None:
    """Seeds this process differently from the others and from runs of another size.

    Args:
        seed: Seed of the run.
        steps: Steps done so far.
    """
    parts = seed, steps, distributed.world_size(), distributed.rank()
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))
