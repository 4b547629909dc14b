"""What the checks raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bilevel.errors import BilevelError


def require(condition: bool, message: str) -> None:
    """Raises an assertion error, which an ``assert`` does not under ``python -O``.

    Args:
        condition: Whether the requirement is met.
        message: What is violated otherwise.

    Raises:
        AssertionError: If it is violated.
    """
    if not condition:
        raise AssertionError(message)


@contextmanager
def as_assertion_errors() -> Iterator[None]:
    """Within the block, the library's own errors are raised as assertion errors.

    Yields:
        Nothing.

    Raises:
        AssertionError: In place of a :class:`~bilevel.BilevelError`.
    """
    try:
        yield
    except BilevelError as error:
        raise AssertionError(str(error)) from error
