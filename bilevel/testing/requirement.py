"""What the checks raise."""

from __future__ import annotations


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
