"""What differs between processes that train on shares of the same batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bilevel import distributed
from bilevel.randomness import derived_seed


def least_share(networks: Iterable[nn.Module], batch_size: int) -> int:
    """The number of images that a process needs of an epoch's last batch.

    Args:
        networks: What they train, or compute with.
        batch_size: Images of the other batches.

    Returns:
        2 if batch normalisation is not synchronised, which may have no variance of one image, and
        the other batches have as many for each process; else 1.

    Example:
        >>> least_share([nn.Linear(2, 2)], 8), least_share([nn.BatchNorm1d(2)], 8)
        (1, 2)
    """
    parts = [part for network in networks for part in network.modules()]
    own = (isinstance(p, _BatchNorm) and not isinstance(p, nn.SyncBatchNorm) for p in parts)
    return 2 if batch_size >= 2 * distributed.world_size() and any(own) else 1


def own_images(count: int, least: int = 1) -> slice:
    """The images of a batch that this process computes.

    A batch of too few for all processes is computed as a whole by each: a network needs an image,
    and synchronised batch normalisation counts each image equally often.

    Args:
        count: Number of images of the batch.
        least: See :func:`least_share`.

    Returns:
        A slice of the batch.

    Example:
        >>> own_images(5)
        slice(0, 5, None)
    """
    few = count < least * distributed.world_size()
    return slice(0, count) if few else distributed.shard(count)


def batch_share(count: int, least: int = 1) -> float:
    """The weight of this process's images in the sum over the processes.

    Args:
        count: Number of images of the batch.
        least: See :func:`least_share`.

    Returns:
        A number in (0, 1]; the sum over the processes is 1.

    Example:
        >>> batch_share(5)
        1.0
    """
    if count < least * distributed.world_size():
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
