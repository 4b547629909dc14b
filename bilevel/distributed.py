"""Many processes that play one game, each on its share of every batch.

    torchrun --nproc-per-node 4 applications/adv_training.py …

All processes run the same program: they hold the same networks, see the images in the same order
and take the same steps, whatever their number. What differs is the part of a batch
(:func:`shard`), who writes files (:func:`is_main`), and the random numbers. A function that says
*collective* waits for the others, so all processes call it, in one order.

Without :func:`join` there is one process, and all of this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from bilevel.errors import BilevelError

_T = TypeVar("_T")


class LostContactError(BilevelError):
    """Another process has ended or cannot be reached."""


_job: Any | None = None
"""What the processes of the job share, once this one has joined."""


def join() -> None:
    """Joins the job that ``torchrun`` started this process for; alone, nothing happens.

    Only the first process then prints on the standard output.

    Raises:
        LostContactError: If the others cannot be reached.
    """
    global _job
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "MASTER_ADDR" not in os.environ:
        return
    both = torch.cuda.is_available() and dist.is_nccl_available()
    with _contact():
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if both else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    _job = dist.PrefixStore(  # type: ignore[attr-defined]
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store
    )
    _listen()
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)


def leave(status: int = 0) -> NoReturn:
    """Ends this process, and its part in the job.

    Args:
        status: The exit status.

    Raises:
        SystemExit: Always, where nobody has joined.
    """
    if _job is None:
        raise SystemExit(status)
    # At once: threads of gloo may abort an interpreter on its way out, most of all where they wait
    # for a process that is gone.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def world_size() -> int:
    """How many processes play.

    Returns:
        1 where nobody has joined.
    """
    return dist.get_world_size() if _job is not None else 1


def rank() -> int:
    """Which of them this is.

    Returns:
        A number from 0.
    """
    return dist.get_rank() if _job is not None else 0


def is_main() -> bool:
    """Whether this process writes the files.

    Returns:
        True in one process of a job.
    """
    return rank() == 0


def local_gpu() -> torch.device:
    """The GPU of this process, from now on its current one.

    Returns:
        A device with an index of its own on this machine.

    Raises:
        BilevelError: If there are fewer GPUs than processes.
    """
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here > there:
        raise BilevelError(
            f"{here} processes share {there} GPUs: each needs one of its own; give torchrun "
            f"--nproc-per-node {there}, or --device cpu"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def shard(count: int) -> slice:
    """This process's share of some items that lie in one order for all.

    Args:
        count: How many there are.

    Returns:
        Neighbours; the shares of all processes cover the items, in the order of the processes.

    Example:
        >>> shard(5)
        slice(0, 5, None)
    """
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


class Pool:
    """Adds up over the processes what each finds on its share of a batch.

    A :class:`~bilevel.Bilevel` with such a ``pool`` multiplies its losses by the share and adds up
    the gradients before an optimizer reads them. Not ``DistributedDataParallel``: it knows one
    forward and one backward pass of one module, where a step here takes gradients of the input in
    between, trains two networks by one backward pass and may repeat either for its schedule.

    Attributes:
        share: This process's images divided by the batch's.
    """

    def __init__(self) -> None:
        self.share = 1 / world_size()

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over the processes. Collective.

        Args:
            tensors: Of the same shapes everywhere.
        """
        flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors))
        pieces = flat.split([tensor.numel() for tensor in tensors])
        places = [_laid_out(piece, tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
        torch._foreach_copy_(places, list(tensors))
        with _contact():
            dist.all_reduce(flat)
        torch._foreach_copy_(list(tensors), places)


def _laid_out(piece: Tensor, like: Tensor) -> Tensor:
    """A piece of memory as a tensor whose numbers lie in the order of another's."""
    # So that copies need not gather: gradients of channels-last weights are channels last.
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return piece.as_strided(like.shape, like.stride())
    return piece.view(like.shape)


def all_gather(value: _T) -> list[_T]:
    """What each process has. Collective.

    Args:
        value: This one's; its tensors on the CPU.

    Returns:
        All, in the order of the processes.
    """
    found: list[Any] = [value] * world_size()
    if world_size() > 1:
        with _contact():
            dist.all_gather_object(found, value)
    return found


def broadcast(value: _T) -> _T:
    """What the first process has, such as its clock's opinion. Collective.

    Args:
        value: This one's.

    Returns:
        The same everywhere.
    """
    return all_gather(value)[0]


def together(function: Callable[[], _T]) -> list[_T]:
    """Calls a function that may fail in one process, and then fails in all. Collective.

    Args:
        function: Not collective itself.

    Returns:
        What it returned in each process.

    Raises:
        BilevelError: If it failed in another process.
        Exception: Whatever it raised here.
    """
    try:
        mine, problem = function(), ""
    except Exception as error:
        if world_size() > 1:
            all_gather((None, f"{type(error).__name__}: {error}"))
        raise
    found = all_gather((mine, problem))
    for _, problem in found:
        if problem:
            raise BilevelError(problem.removeprefix("BilevelError: "))
    return [value for value, _ in found]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Within the block one process of each machine goes ahead of the others. Collective.

    Yields:
        Nothing.
    """
    ahead = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not ahead:
        all_gather(None)
    yield
    if ahead:
        all_gather(None)


def agree(values: Mapping[str, object]) -> None:
    """Says so where processes were not started alike. Collective.

    Args:
        values: Plain values by name, such as arguments and checksums.

    Raises:
        BilevelError: If a value differs between two processes.
    """
    for number, others in enumerate(all_gather(dict(values))):
        differing = [name for name in values if others.get(name) != values[name]]
        if differing:
            raise BilevelError(
                f"processes {rank()} and {number} differ in {', '.join(differing)}: all compute "
                "parts of the same steps; run one command on the same files everywhere"
            )


def say(line: str) -> None:
    """Prints on the standard error, unless another process of the job has: who fails first knows.

    Args:
        line: What to print.
    """
    if _job is not None:
        with contextlib.suppress(RuntimeError):  # then whoever kept the store is gone
            if _job.add("said", 1) > 1:
                return
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's
        reason = str(error).splitlines()[0][:100]
        raise LostContactError(
            f"contact with another process was lost ({reason}): it has ended or cannot be reached; "
            "the same command with --resume goes on from the last checkpoint"
        ) from error


def _listen() -> None:
    """Ends this process in words when torchrun tells it to, as it does when another is lost.

    In a thread: the main one may wait for the others in a library, where no handler runs.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # so that its number is written
    signal.set_wakeup_fd(writer)

    def wait() -> None:
        while signal.SIGTERM not in os.read(reader, 1):
            pass
        say(
            "error: another process was lost, or the job was ended: this one was told to stop; the "
            "same command with --resume goes on from the last checkpoint"
        )
        leave(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
