"""The job that ``torchrun`` starts: joining and leaving it, rank and size, and lost processes."""

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
"""The store of the job's processes, once this one has joined."""


def join() -> None:
    """Joins the job that ``torchrun`` started this process for; does nothing if there is none.

    A process group that exists already is the job. Processes of other ranks than 0 then print
    nothing on the standard output. SIGTERM ends the process with a line, unless the script has a
    handler of its own, or joins in another thread than the main one. :func:`leave` ends the script.

    Raises:
        BilevelError: If there are others and the environment does not say where.
        LostContactError: If the others cannot be reached.
    """
    if _job is not None or (_started() == 1 and not dist.is_initialized()):
        return
    if dist.is_initialized():
        _enter(dist.distributed_c10d._get_default_store())
    else:
        _init_process_group()
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (to the end of the process)


def _init_process_group() -> None:
    """Makes the process group that ``torchrun``'s environment variables describe."""
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise BilevelError(
            f"WORLD_SIZE is {_started()} without {' and '.join(missing)}: the processes cannot "
            "find each other; start them with torchrun, or unset WORLD_SIZE for a single one"
        )
    both = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if both else "gloo"
    with translate_errors():
        store, number, size = next(rendezvous("env://"))
        # First, since one of the others may be lost before it joins; and through a connection of
        # its own, since that of the group is blocked while it waits.
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        _enter(dist.TCPStore(*place, wait_for_workers=False))  # type: ignore[attr-defined]
        # torchrun keeps the store when it restarts a job, with the addresses of processes that have
        # ended. Its launchers on several machines may count the attempts differently.
        if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
            store = _of_attempt(store)
        dist.init_process_group(backend, store=store, rank=number, world_size=size)


def _enter(store: Any) -> None:
    """Keeps the store, through which one process speaks for all, and handles SIGTERM."""
    global _job
    _job = _of_attempt(store)
    if sys.platform != "win32" and sigterm_is_free():  # Windows ends a process without a signal
        _handle_sigterm()


def _of_attempt(store: Any) -> Any:
    """The part of the store that this attempt of the job writes to."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(count, store)  # type: ignore[attr-defined]


def check_joined() -> None:
    """Checks that this process has joined the others that were started with it.

    Raises:
        BilevelError: If it has not.
    """
    if _started() > 1 and not dist.is_initialized():
        raise BilevelError(
            f"{_started()} processes were started and this one has not joined the others: each "
            "would train alone; call bilevel.distributed.join() first"
        )


def _started() -> int:
    """The number of processes that were started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def leave(status: int = 0) -> NoReturn:
    """Leaves the job and exits the process.

    Args:
        status: The exit status.

    Raises:
        SystemExit: Always, without a job.
    """
    if _job is None:
        raise SystemExit(status)
    # Without the interpreter's shutdown, during which threads of gloo may abort it, most of all
    # while they wait for a process that is gone.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def world_size() -> int:
    """The number of processes.

    Returns:
        1 without a process group.
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process.

    Returns:
        0 without a process group.
    """
    return dist.get_rank() if dist.is_initialized() else 0


def restarted() -> bool:
    """Whether the job is begun again, by ``torchrun --max-restarts`` or requeued by SLURM.

    Returns:
        True from the second attempt on, when what the first one has saved is to be resumed.
    """
    counts = "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"
    return any(int(os.environ.get(count) or 0) > 0 for count in counts)


def is_main() -> bool:
    """Whether this process has rank 0, and so writes the files.

    Returns:
        True in one process of a job.
    """
    return rank() == 0


def local_gpu() -> torch.device:
    """The GPU of this process, which becomes its current device.

    Returns:
        The device whose index is the local rank.

    Raises:
        BilevelError: If there are fewer GPUs than processes.
    """
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here > there:
        gpus = "1 GPU" if there == 1 else f"{there} GPUs"
        raise BilevelError(
            f"{here} processes share {gpus}: each needs one of its own; give torchrun "
            f"--nproc-per-node {there}, or --device cpu"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def shard(count: int) -> slice:
    """This process's share of a sequence of items.

    Args:
        count: The number of items.

    Returns:
        A contiguous part; those of all processes cover the items, in the order of the ranks.

    Example:
        >>> shard(5)
        slice(0, 5, None)
    """
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def print_once(line: str) -> None:
    """Prints on the standard error, unless another process of the job already has.

    The first process to fail knows the cause; the others only lose contact with it.

    Args:
        line: The line to print.
    """
    if _job is not None:
        with contextlib.suppress(RuntimeError):  # if the process that serves the store is gone
            if _job.add("said", 1) > 1:
                return
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Within the block, errors of gloo and NCCL are raised as :class:`LostContactError`.

    Yields:
        Nothing.

    Raises:
        LostContactError: If there is one.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:100]
        raise LostContactError(
            f"contact with another process was lost ({reason}): it has failed, has ended (with "
            "fewer batches, in a loop of your own) or cannot be reached; the same command of an "
            "application with --resume goes on from the last checkpoint"
        ) from error


def sigterm_is_free() -> bool:
    """Whether SIGTERM can be given a handler here without taking one from the script.

    Returns:
        True in the main thread, as long as the system's default is in place.
    """
    here = threading.current_thread() is threading.main_thread()
    return here and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _handle_sigterm() -> None:
    """Prints a line and exits on SIGTERM, which torchrun sends when another process is lost.

    In a thread: the main thread may be waiting in a library, where Python runs no handlers.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the wakeup fd needs a Python handler
    signal.set_wakeup_fd(writer)

    def wait() -> None:
        while signal.SIGTERM not in os.read(reader, 1):
            pass
        print_once(
            "error: another process was lost, or the job was ended: this one was told to stop; the "
            "same command of an application with --resume goes on from the last checkpoint"
        )
        leave(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
