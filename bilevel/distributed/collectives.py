"""What processes tell each other: plain values, failures, and who goes first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch.distributed as dist

from bilevel.distributed.job import rank, translate_errors, world_size
from bilevel.errors import BilevelError

_T = TypeVar("_T")


def all_gather(value: _T) -> list[_T]:
    """What each process has. Collective.

    Args:
        value: This one's; its tensors on the CPU.

    Returns:
        All, in the order of the processes.
    """
    found: list[Any] = [value] * world_size()
    if world_size() > 1:
        with translate_errors():
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


def gather_results(function: Callable[[], _T]) -> list[_T]:
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


def check_consistent(values: Mapping[str, object]) -> None:
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
