"""The library's exceptions and warnings."""


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
