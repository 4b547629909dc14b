"""The attack under which epochs are compared, unless another is given."""

from __future__ import annotations

from bilevel import Solver
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem
from bilevel.robustness.methods import TRAINING_STEP
from bilevel.robustness.threats.interpolation import Interpolation
from bilevel.robustness.threats.l1 import L1
from bilevel.robustness.threats.perturbation import L2, Linf, Perturbation
from bilevel.robustness.threats.threat import Threat

STEPS = 10

# The ball of a follower; a subclass of one may mean another set.
_BALLS: dict[type, type[Perturbation]] = {Linf: Linf, L2: L2, L1: L1, Interpolation: Linf}


def default_attack(follower: FollowerProblem) -> tuple[Threat, Solver]:
    """PGM-10 on the cross entropy, in the ball of a game's follower.

    Args:
        follower: The follower of a game on images; of :class:`~bilevel.robustness.Interpolation`
            only the ball is used, not its objective.

    Returns:
        A threat model of the follower's norm, radius and bounds, and the attack on it.

    Raises:
        BilevelError: If the follower is of another class: its ball is not known.

    Example:
        >>> default_attack(L2(0.5))[0]
        L2(eps=0.5, start=0.0, loss=cross_entropy)
    """
    kind = _BALLS.get(type(follower))
    if kind is None or not isinstance(follower, Perturbation):
        raise BilevelError(
            f"{type(follower).__name__} is none of Linf, L2 and L1: epochs are compared by "
            "accuracy under attack, within the adversary's reach; give validation_attack=(threat "
            "model, attack)"
        )
    ball = kind(follower.eps, bounds=follower.bounds)
    return ball, ball.pgm(TRAINING_STEP * ball.eps, STEPS)


def check_radius_stays(follower: FollowerProblem, threat: Threat) -> None:
    """Checks that the ball of :func:`default_attack` is still the follower's.

    Args:
        follower: The follower of the game.
        threat: The ball when the training began.

    Raises:
        BilevelError: If the follower's ε has changed since.
    """
    now, then = (getattr(one, "eps", None) for one in (follower, threat))
    if now != then:
        raise BilevelError(
            f"the follower's eps was {then} when the trainer was made and is {now} now: epochs are "
            "compared by accuracy under one attack; give validation_attack=(threat model, attack) "
            "with the eps of the last epoch"
        )
