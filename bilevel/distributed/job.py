"""The job that ``torchrun`` starts: joining and leaving it, and which process this one is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bilevel.errors import BilevelError


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
    with translate_errors():
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if both else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    _job = dist.PrefixStore(  # type: ignore[attr-defined]
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store
    )
    _handle_sigterm()
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


def print_once(line: str) -> None:
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
def translate_errors() -> Iterator[None]:
    """Within the block a library's error means that another process is gone.

    Yields:
        Nothing.

    Raises:
        LostContactError: If it is.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's
        reason = str(error).splitlines()[0][:100]
        raise LostContactError(
            f"contact with another process was lost ({reason}): it has ended or cannot be reached; "
            "the same command with --resume goes on from the last checkpoint"
        ) from error


def _handle_sigterm() -> None:
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
        print_once(
            "error: another process was lost, or the job was ended: this one was told to stop; the "
            "same command with --resume goes on from the last checkpoint"
        )
        leave(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
