"""Named algorithms: each is a composition of the six nouns in one line, not a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from bilevel.frozen import Mode
from bilevel.schedules import (
    Alternating,
    Extragradient,
    Lookahead,
    Optimistic,
    ProximalPoint,
    Schedule,
    Simultaneous,
)
from bilevel.solvers import Iterative
from bilevel.updates import SignGradient

ScheduleName = Literal[
    "simultaneous", "alternating", "extragradient", "optimistic", "proximal-point", "lookahead"
]
"""The names of the schedules on command lines."""

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "simultaneous": Simultaneous,
    "alternating": Alternating,
    "extragradient": Extragradient,
    "optimistic": Optimistic,
    "proximal-point": lambda: ProximalPoint(iterations=5),
    "lookahead": Lookahead,
}
"""Constructors of the schedules by name, with default settings."""


def pgm(step: float, steps: int, *, leader_mode: Mode = "eval") -> Iterative:
    r"""Projected sign-gradient method (Kurakin et al., 2017; Madry et al., 2018), also called PGD.

    .. math:: \delta \leftarrow \Pi_Y(\delta + \eta\,\mathrm{sign}\,\nabla_\delta q(\theta, \delta))

    Eq. 4 of Jiang et al. (2021). The start and the set Y are the follower's.

    Args:
        step: η, in the units of y.
        steps: Iterations.
        leader_mode: See :class:`~bilevel.Solver`.

    Returns:
        A solver without parameters.

    Example:
        >>> pgm(0.007, 10)
        Iterative(
          steps=10
          (update): SignGradient(step=0.007)
        )
    """
    return Iterative(SignGradient(step), steps, leader_mode=leader_mode)


def fgsm(eps: float, *, leader_mode: Mode = "eval") -> Iterative:
    """Fast gradient sign method (Goodfellow et al., 2015): :func:`pgm` with one step of size ε.

    Args:
        eps: ε, in the units of y.
        leader_mode: See :class:`~bilevel.Solver`.

    Returns:
        A solver without parameters.
    """
    return pgm(eps, 1, leader_mode=leader_mode)
