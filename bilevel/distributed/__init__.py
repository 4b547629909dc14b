"""Distributed training: each process works on its share of every batch.

    torchrun --nproc-per-node 4 applications/adv_training.py …

All processes run the same program: they hold the same networks, see the images in the same order
and take the same steps, whatever their number. Only their shares of a batch (:func:`shard`), the
files (:func:`is_main` writes them) and the random numbers differ. A function marked *collective*
waits for the others: all processes must call it, in the same order.

Without :func:`join`, or a process group of your own, there is one process, and nothing here has an
effect.
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
    restarted,
    shard,
    world_size,
)
from bilevel.distributed.pool import Pool
from bilevel.distributed.sharing import replicated, summed

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
    "replicated",
    "restarted",
    "shard",
    "summed",
    "world_size",
]
