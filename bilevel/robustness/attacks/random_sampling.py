"""Random sampling of the threat model, an attack without gradients."""

from __future__ import annotations

import torch

from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.robustness.attacks.attack import Kind
from bilevel.robustness.attacks.checks import check_gain
from bilevel.robustness.attacks.samples import better
from bilevel.solvers import Oracle, Solver
from bilevel.tree import Value, leaves

_REPEATS = 10  # a random start may repeat by chance, where it is one of a few points


class RandomSampling(Solver):
    """The best of many random points.

    If it breaks images that gradient-based attacks do not, the gradients are masked. Jiang et al.
    (2021), Sec. 4, draw 1e5 points an image, uniformly in the ball of radius ε:
    ``Linf(eps, start=eps)``.

    Args:
        points: Random points a sample; each costs the batch one forward pass.

    Raises:
        BilevelError: If ``points`` is less than 1; in the solve, if the follower does not start at
            random, or its loss is one number for all images.

    Example:
        >>> from bilevel.robustness import Linf, SolverAttack
        >>> from bilevel.robustness.threats.losses import margin
        >>> follower = Linf(0.031, start=0.031, loss=margin)
        >>> SolverAttack("random", follower, RandomSampling(1000))
        SolverAttack('random')
    """

    kind: Kind = "black-box"

    def __init__(self, points: int) -> None:
        super().__init__()
        self.points = count("points", points)

    @torch.no_grad()
    def answer(self, oracle: Oracle) -> Value:
        """For each sample the point with the largest gain."""
        (best,) = leaves(oracle.init())
        gain = oracle.gain(best)
        check_gain(gain, best, oracle.batch)
        repeated = bool(len(best))
        for number in range(1, self.points):
            (point,) = leaves(oracle.init())
            repeated = repeated and torch.equal(point, best)
            if repeated and number == min(_REPEATS, self.points - 1):
                raise BilevelError(
                    "RandomSampling was given the same point each time: the follower's start is "
                    "not random; give it a random one, Linf(eps, start=eps)"
                )
            best, gain = better(oracle, point, best, gain)
        oracle.evaluations += self.points
        return best

    def extra_repr(self) -> str:
        """The settings, as ``repr`` shows them."""
        return f"points={self.points}"
