"""What differs between processes that train on shares of the same batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bilevel import distributed
from bilevel.randomness import derived_seed


class Shares:
    """How processes share the batches of a run.

    A batch is shared if each process gets an image of it, or two where batch normalisation is not
    synchronised, since one may have no variance (unless all batches are too small for that). A
    smaller batch is computed as a whole by each process, so that synchronised batch normalisation
    counts each image equally often.

    Args:
        networks: What the processes train, or compute with.
        batch_size: Images of a batch, but for the last one of an epoch.

    Example:
        >>> shares = Shares([nn.BatchNorm1d(2)], batch_size=8)
        >>> shares.images(5), shares.weight(5)
        (slice(0, 5, None), 1.0)
    """

    def __init__(self, networks: Iterable[nn.Module], batch_size: int) -> None:
        parts = [part for network in networks for part in network.modules()]
        own = (isinstance(p, _BatchNorm) and not isinstance(p, nn.SyncBatchNorm) for p in parts)
        pairs = 2 * distributed.world_size()
        self._fewest = pairs if batch_size >= pairs and any(own) else distributed.world_size()

    def images(self, count: int) -> slice:
        """The images of a batch that this process computes.

        Args:
            count: Number of images of the batch.

        Returns:
            A slice of the batch.
        """
        return slice(0, count) if count < self._fewest else distributed.shard(count)

    def weight(self, count: int) -> float:
        """The weight of this process's images in the sum over the processes.

        Args:
            count: Number of images of the batch.

        Returns:
            A number in (0, 1]; the sum over the processes is 1.
        """
        own = self.images(count)
        copies = distributed.world_size() if count < self._fewest else 1
        return float(own.stop - own.start) / (copies * count)


def seed_process(seed: int, steps: int) -> None:
    """Seeds this process differently from the others and from runs of another size.

    Args:
        seed: Seed of the run.
        steps: Steps done so far.
    """
    process = distributed.world_size(), distributed.rank()
    torch.manual_seed(derived_seed(seed, steps, *process))
