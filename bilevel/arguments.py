"""Checks of arguments, which return the value or raise an error of one line."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from torch import Tensor

from bilevel.errors import BilevelError, describe, raise_unknown

T = TypeVar("T")

MOST = 2**63 - 1
"""The largest whole number that torch takes, as a seed or a size."""


def count(name: str, value: int, *, least: int = 1) -> int:
    """Checks that ``value`` is a whole number, and not too small or large for torch.

    Args:
        name: The argument's name.
        value: The number to check.
        least: The smallest that is allowed.

    Returns:
        ``value``, as an int of Python.

    Raises:
        BilevelError: If it is not.

    Example:
        >>> count("n", 2.5)
        Traceback (most recent call last):
        bilevel.errors.BilevelError: n is 2.5: it must be a whole number of at least 1; give 1, 2, …
    """
    whole = hasattr(type(value), "__index__") and not isinstance(value, bool)
    if not whole or value < least:
        raise BilevelError(
            f"{name} is {value!r}: it must be a whole number of at least {least}; give {least}, "
            f"{least + 1}, …"
        )
    if value > MOST:
        raise BilevelError(f"{name} is {value}: torch takes numbers of 64 bits; give a smaller one")
    return operator.index(value)


def positive(name: str, value: Any) -> float:
    """Checks that ``value`` is greater than 0 and finite.

    Args:
        name: The argument's name.
        value: The number to check.

    Returns:
        ``value``.

    Raises:
        BilevelError: If it is 0, negative, infinite or NaN, or no number.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise BilevelError(
            f"{name} is {describe(value)} that is trained: it is a constant here; give a number, "
            "and read one that is trained from the leader, in an update of your own"
        )
    try:
        in_range = bool(0 < value < math.inf)
    except (TypeError, ValueError, RuntimeError) as error:  # of arrays, tensors and text
        raise BilevelError(f"{name} is {describe(value)}: it is one number; give one") from error
    if not in_range:
        raise BilevelError(f"{name} is {value}: it is positive and finite; give a {name} above 0")
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
        known = ", ".join(map(repr, options))
        raise BilevelError(f"{name} is {value!r}: there is no such option; give one of {known}")
    return value


def choices(
    name: str, values: Iterable[str], known: Collection[str] | None = None
) -> tuple[str, ...]:
    """Checks that there is a choice at least, and that there are such options.

    Args:
        name: What is chosen.
        values: The choices.
        known: The options; None if they are checked elsewhere.

    Returns:
        The choices, each once.

    Raises:
        BilevelError: If there is none, or one is unknown; the message suggests the closest option.

    Example:
        >>> choices("method", ["pgm", "plain", "pgm"])
        ('pgm', 'plain')
    """
    chosen = tuple(dict.fromkeys(values))
    if not chosen:
        raise BilevelError(f"no {name} is given: there is nothing to do; name one or several")
    for one in chosen:
        if known is not None and one not in known:
            raise_unknown(name, one, known)
    return chosen


def instance_of(name: str, value: T, kind: type, remedy: str) -> T:
    """Checks that ``value`` is an object of a type.

    Args:
        name: The argument's name.
        value: The object to check.
        kind: The type.
        remedy: What to give instead.

    Returns:
        ``value``.

    Raises:
        BilevelError: If it is something else, such as a class.
    """
    if not isinstance(value, kind):
        if isinstance(getattr(value, "_orig_mod", None), kind):
            remedy = "what torch.compile was given, and compile its networks (network.compile())"
        raise BilevelError(
            f"{name} is {describe(value)}: it takes an object of type {kind.__name__}; give "
            f"{remedy}"
        )
    return value
