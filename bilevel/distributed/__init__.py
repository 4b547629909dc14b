"""Many processes that play one game, each on its share of every batch.

    torchrun --nproc-per-node 4 applications/adv_training.py …

All processes run the same program: they hold the same networks, see the images in the same order
and take the same steps, whatever their number. What differs is the part of a batch
(:func:`shard`), who writes files (:func:`is_main`), and the random numbers. A function that says
*collective* waits for the others, so all processes call it, in one order.

Without :func:`join` there is one process, and all of this does nothing.
"""

from bilevel.distributed.batchnorm import SyncBatchNorm, average_statistics
from bilevel.distributed.collectives import (
    all_gather,
    broadcast,
    check_consistent,
    gather_results,
    main_first,
)
from bilevel.distributed.job import (
    LostContactError,
    is_main,
    join,
    leave,
    local_gpu,
    print_once,
    rank,
    shard,
    world_size,
)
from bilevel.distributed.pool import Pool

__all__ = [
    "LostContactError",
    "Pool",
    "SyncBatchNorm",
    "all_gather",
    "average_statistics",
    "broadcast",
    "check_consistent",
    "gather_results",
    "is_main",
    "join",
    "leave",
    "local_gpu",
    "main_first",
    "print_once",
    "rank",
    "shard",
    "world_size",
]
