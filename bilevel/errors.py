"""The library's exceptions and warnings."""

from __future__ import annotations

from collections.abc import Mapping


class BilevelError(ValueError):
    """Bad input. The message is one line: what is wrong, why, and the remedy.

    Applications print the line and end with exit status 2.

    Example:
        >>> raise BilevelError("steps is -1: a solve has no fewer than 0 steps; give 0, 1, …")
        Traceback (most recent call last):
        ...
        bilevel.errors.BilevelError: steps is -1: a solve has no fewer than 0 steps; give 0, 1, …
    """


class NonFiniteError(BilevelError, FloatingPointError):
    """A quantity of the game is NaN or infinite. The message names the step and the term."""


class HypergradientWarning(UserWarning):
    """The leader's gradient should not be trusted. The message says why, and the remedy."""


def raise_missing_field(error: AttributeError | KeyError, problem: object, batch: object) -> None:
    """Raises a clearer error if the batch lacks a field; does nothing for errors of other objects.

    Args:
        error: The error of a method that reads the batch.
        problem: The problem whose method it is.
        batch: The data.

    Raises:
        BilevelError: If the batch lacks the attribute or the key.
    """
    if isinstance(error, AttributeError):
        missing = error.obj is batch
    else:
        missing = isinstance(batch, Mapping) and bool(error.args) and error.args[0] not in batch
    if missing:
        raise BilevelError(
            f"{type(problem).__name__} cannot read a batch of type {type(batch).__name__} "
            f"({error}): a batch must have the fields that the problem's own methods use; wrap "
            'what the loader yields, for example in a collections.namedtuple("Batch", "x y")'
        ) from error


def describe(part: object) -> str:
    """Describes a wrong argument in a few words.

    Args:
        part: Anything.

    Returns:
        Its type, and a dict's keys.

    Example:
        >>> describe(dict), describe({"a": 1}), describe(None)
        ('the class dict', "a dict of ['a']", 'None')
    """
    if part is None:
        return "None"
    if isinstance(part, type):
        return f"the class {part.__name__}"
    return f"a {type(part).__name__}" + (f" of {[*part]}" if isinstance(part, dict) else "")
