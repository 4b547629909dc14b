"""From which difference on two accuracies of the same images are said to differ."""

from __future__ import annotations

import math

from torch import Tensor


def tolerance(discordant: float, images: int) -> float:
    """The difference in accuracy from which on two attacks are said to differ.

    Two points, below which the field does not tell figures apart; on few images two standard
    errors of the paired difference (McNemar's), so that chance gives no verdict.

    Args:
        discordant: Share of the images that one of the two breaks and the other does not.
        images: Number of images.

    Returns:
        A difference in [0, 1].

    Example:
        >>> tolerance(0.04, 10000), tolerance(0.04, 100)
        (0.02, 0.04)
    """
    return max(0.02, 2 * math.sqrt(discordant / images))


def breaks_more(first: Tensor, second: Tensor) -> bool:
    """Whether more images are broken by one attack than by another, beyond the tolerance.

    Args:
        first: The images that the one breaks, ``(N,)`` bool.
        second: Those that the other breaks.

    Returns:
        True if so.
    """
    difference = share(first) - share(second)
    return difference > tolerance(share(first ^ second), len(first))


def share(images: Tensor) -> float:
    """How many of the images are chosen.

    Args:
        images: ``(N,)`` bool.

    Returns:
        A number in [0, 1].
    """
    return images.double().mean().item()
