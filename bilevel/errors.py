"""What the library says when it is given something that it cannot work with."""


class BilevelError(ValueError):
    """Bad input, told in one line: what is wrong, why, and the remedy.

    Applications print the line and end with exit status 2; a library user catches it as the
    :class:`ValueError` that it is.

    Example:
        >>> raise BilevelError("steps is -1: a solve has no fewer than 0 steps; give 0, 1, …")
        Traceback (most recent call last):
        ...
        bilevel.errors.BilevelError: steps is -1: a solve has no fewer than 0 steps; give 0, 1, …
    """


class NonFiniteError(BilevelError, FloatingPointError):
    """A quantity of the game became NaN or infinite: the line names the step and the term."""


class HypergradientWarning(UserWarning):
    """A leader's gradient that should not be trusted, told once: why, and the remedy."""
