"""What a report says of an attack that failed."""

from __future__ import annotations

from bilevel import BilevelError, distributed


def problem_of(error: Exception) -> str:
    """An attack's error in one line, so that the rest of an evaluation goes on.

    Args:
        error: What it raised; other packages raise anything.

    Returns:
        The message, with the error's name unless it is a :class:`~bilevel.BilevelError`.

    Raises:
        Exception: The error itself, where nothing can go on: memory or another process is gone.

    Example:
        >>> problem_of(KeyError("momentum"))
        "KeyError: 'momentum'"
    """
    if isinstance(error, MemoryError | distributed.LostContactError):
        raise error
    text = " ".join(str(error).split()) or "no message"
    known = isinstance(error, BilevelError)
    return text if known else f"{type(error).__name__}: {text[:200]}"
