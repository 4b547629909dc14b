"""When two accuracies on the same images count as different."""

from __future__ import annotations

import math

from torch import Tensor


def tolerance(discordant: float, images: int) -> float:
    """The difference of two accuracies above which they count as different.

    Two points; on few images two standard errors of the paired difference, as in McNemar's test, so
    that chance decides nothing.

    Args:
        discordant: Share of the images that one attack breaks and the other does not.
        images: Number of images.

    Returns:
        A difference in [0, 1].

    Example:
        >>> tolerance(0.04, 10000), tolerance(0.04, 100)
        (0.02, 0.04)
    """
    return max(0.02, 2 * math.sqrt(discordant / images))


def exceeds(first: Tensor, second: Tensor) -> bool:
    """Whether one share of the images is above another, beyond the tolerance.

    Args:
        first: ``(N,)`` bool, such as the images that an attack breaks.
        second: Likewise, such as those that another breaks.

    Returns:
        True if so.
    """
    difference = share(first) - share(second)
    return difference > tolerance(share(first ^ second), len(first))


def share(images: Tensor) -> float:
    """The share of True.

    Args:
        images: ``(N,)`` bool.

    Returns:
        A number in [0, 1].
    """
    return images.cpu().double().mean().item()  # some devices have no float64
