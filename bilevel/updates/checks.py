"""Checks of an update's arguments: each returns its value, or raises."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypeVar

from bilevel.errors import BilevelError
from bilevel.tree import Value

T = TypeVar("T")


def positive(name: str, value: float) -> float:
    """Checks that ``value`` is greater than 0 and finite.

    Args:
        name: The argument's name.
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
    """Checks that ``value`` is at least 1.

    Args:
        name: The argument's name.
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
    """Checks that ``value`` is one of ``options``.

    Args:
        name: The argument's name.
        value: The choice to check.
        options: The choices.

    Returns:
        ``value``.

    Raises:
        BilevelError: If it is none of them.
    """
    if value not in options:
        choices = ", ".join(map(repr, options))
        raise BilevelError(f"{name} is {value!r}: there is no such option; give one of {choices}")
    return value


def given(name: str, value: Value | None) -> Value:
    """Checks that ``value`` is not None.

    Args:
        name: "gradient" or "context".
        value: The value that the solver passed.

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
