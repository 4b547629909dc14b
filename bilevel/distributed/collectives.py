"""Collectives on Python objects: values, failures and order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch.distributed as dist

from bilevel.distributed.job import is_main, rank, translate_errors, world_size
from bilevel.errors import BilevelError

_T = TypeVar("_T")


def all_gather(value: _T) -> list[_T]:
    """Gathers a value from every process. Collective.

    Args:
        value: The value of this process, with tensors on the CPU.

    Returns:
        The values, by rank.
    """
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        with translate_errors():
            dist.all_gather_object(values, value)
    return values


def broadcast(value: _T) -> _T:
    """Takes the value of the first process, for example a time. Collective.

    Args:
        value: The value of this process.

    Returns:
        The value of the first process.
    """
    return all_gather(value)[0]


def gather_results(function: Callable[[], _T]) -> list[_T]:
    """Calls a function and gathers its results; if it fails in one process, all raise. Collective.

    Args:
        function: A function that is not collective itself.

    Returns:
        The results, by rank.

    Raises:
        BilevelError: If it failed in another process.
        Exception: Whatever it raised in this process.
    """
    try:
        result = function()
    except Exception as error:
        all_gather((None, f"{type(error).__name__}: {error}"))
        raise
    results = all_gather((result, ""))
    for _, problem in results:
        if problem:
            raise BilevelError(problem.removeprefix("BilevelError: "))
    return [result for result, _ in results]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The first process runs the block, then one of each other machine, then the rest. Collective.

    So files are written by one process, whether machines share a folder or each has its own.

    Yields:
        Nothing.
    """
    first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
    turn = 0 if is_main() else 1 if first_here else 2
    for _ in range(turn):
        all_gather(None)
    try:
        yield
    finally:  # the others wait
        for _ in range(2 - turn):
            all_gather(None)


def check_consistent(values: Mapping[str, object]) -> None:
    """Checks that values are the same in all processes. Collective.

    Args:
        values: Plain values by name, such as arguments and checksums.

    Raises:
        BilevelError: If a value differs between two processes.
    """
    for number, others in enumerate(all_gather(dict(values))):
        names = {**values, **others}
        differing = [name for name in names if others.get(name) != values.get(name)]
        if differing and number != rank():  # NaN differs from itself
            raise BilevelError(
                f"processes {rank()} and {number} differ in {', '.join(differing)}: all compute "
                "parts of the same steps; run one command on the same files everywhere"
            )
