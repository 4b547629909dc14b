"""What differs between processes that train on shares of the same batches."""

from __future__ import annotations

import torch

from bilevel import distributed
from bilevel.randomness import derived_seed


def own_images(count: int) -> slice:
    """The images of a batch that this process computes.

    A batch with fewer images than processes is computed as a whole by each: a network needs an
    image, and synchronised batch normalisation counts each image equally often.

    Args:
        count: Number of images of the batch.

    Returns:
        A slice of the batch.

    Example:
        >>> own_images(5)
        slice(0, 5, None)
    """
    return slice(0, count) if count < distributed.world_size() else distributed.shard(count)


def batch_share(count: int) -> float:
    """The weight of this process's images in the sum over the processes.

    Args:
        count: Number of images of the batch.

    Returns:
        A number in (0, 1]; the sum over the processes is 1.

    Example:
        >>> batch_share(5)
        1.0
    """
    if count < distributed.world_size():
        return 1 / distributed.world_size()
    own = distributed.shard(count)
    return float(own.stop - own.start) / count


def seed_process(seed: int, steps: int) -> None:
    """Seeds this process differently from the others and from runs of another size.

    Args:
        seed: Seed of the run.
        steps: Steps done so far.
    """
    process = distributed.world_size(), distributed.rank()
    torch.manual_seed(derived_seed(seed, steps, *process))
