"""The threat models by the names of their norms."""

from __future__ import annotations

import math
from typing import Literal

from bilevel.arguments import one_of
from bilevel.errors import BilevelError
from bilevel.robustness.threats.l1 import L1
from bilevel.robustness.threats.perturbation import L2, Linf, Perturbation

Norm = Literal["linf", "l2", "l1"]
"""The norm of a threat model, as the command line names it."""

NORMS: dict[Norm, type[Perturbation]] = {"linf": Linf, "l2": L2, "l1": L1}
"""The threat models by the names of their norms."""

_USUAL: dict[Norm, str] = {
    "linf": "≤ 1, 8/255 = 0.031 rather than 8",
    "l2": "< ∞, say 0.5 for CIFAR-10",
    "l1": "< ∞, say 12 for CIFAR-10",
}


def ball_of(norm: Norm) -> type[Perturbation]:
    """The threat model of a norm.

    Args:
        norm: The name of the norm.

    Returns:
        Its class, which takes ε.

    Raises:
        BilevelError: If there is no such norm.

    Example:
        >>> ball_of("l2")(0.5)
        L2(eps=0.5, start=0.0, loss=cross_entropy)
    """
    return NORMS[one_of("norm", norm, tuple(NORMS))]


def check_epsilon(eps: float, norm: Norm) -> None:
    """Checks the radius of a threat model that leaves an adversary some room.

    Args:
        eps: ε.
        norm: The name of the norm.

    Raises:
        BilevelError: If there is no such norm, or ε is 0 or out of its range.
    """
    ball_of(norm)
    if not (0 < eps <= 1 if norm == "linf" else 0 < eps < math.inf):
        raise BilevelError(
            f"epsilon is {eps}: an adversary needs room, in units of the pixel range; give 0 < "
            f"epsilon {_USUAL.get(norm, '< ∞')} (the method plain trains without an adversary)"
        )
