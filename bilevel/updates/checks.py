"""Checks of what an update is given: each returns what it has checked, or names the remedy."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypeVar

from bilevel.errors import BilevelError
from bilevel.tree import Value

T = TypeVar("T")


def positive(name: str, value: float) -> float:
    """``value``, which must be greater than 0 and finite.

    Args:
        name: What the caller calls it.
        value: The number to check.

    Returns:
        ``value``.

    Raises:
        BilevelError: If it is 0, negative, infinite or NaN.
    """
    if not 0 < value < math.inf:
        raise BilevelError(f"{name} is {value}: the update would not move; give a {name} above 0")
    return value


def at_least_one(name: str, value: int) -> int:
    """``value``, which must be at least 1.

    Args:
        name: What the caller calls it.
        value: The number to check.

    Returns:
        ``value``.

    Raises:
        BilevelError: If it is less than 1.
    """
    if value < 1:
        raise BilevelError(f"{name} is {value}: there is nothing to build; give {name}=1 or more")
    return value


def one_of(name: str, value: T, options: Collection[T]) -> T:
    """``value``, which must be one of ``options``.

    Args:
        name: What the caller calls it.
        value: The choice to check.
        options: What there is to choose from.

    Returns:
        ``value``.

    Raises:
        BilevelError: If there is no such option.
    """
    if value not in options:
        choices = ", ".join(map(repr, options))
        raise BilevelError(f"{name} is {value!r}: there is no such option; give one of {choices}")
    return value


def given(name: str, value: Value | None) -> Value:
    """``value``, which must not be None.

    Args:
        name: "gradient" or "context".
        value: What the solver passed to the update.

    Returns:
        ``value``.

    Raises:
        BilevelError: If it is None.
    """
    if value is None:
        raise BilevelError(f"the {name} is None: this update reads it; {_SOURCES[name]}")
    return value


_SOURCES = {
    "gradient": "compute the gradient wherever update.needs_gradient is True",
    "context": "write FollowerProblem.context, or give inputs=('gradient',)",
}
