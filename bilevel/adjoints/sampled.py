"""The adjoint that takes no derivatives at all: what becomes of the answer at other leaders."""

from __future__ import annotations

import torch

from bilevel.adjoints.answered import Answered
from bilevel.adjoints.pullback import Pullback, Slopes
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Solver
from bilevel.tree import Value, leaves, ravel, unravel

# Of an estimate that is nothing but noise the standard error is the length.
NOISE = 0.7


class Sampled(Pullback):
    r"""Antithetic evolution strategies over θ (Nesterov and Spokoiny, 2017; Salimans et al., 2017).

    .. math:: \Bigl(\frac{dy^*}{dθ}\Bigr)^{\!T} v \approx \frac{1}{n} \sum_{i=1}^n
              \frac{v^T\bigl(y^*(θ + σu_i) - y^*(θ - σu_i)\bigr)}{2σ}\, u_i,
              \qquad u_i \sim N(0, I)

    It needs nothing of the follower but its answers, and works where they jump. Unbiased for an
    answer that is smoothed over a distance of σ; its variance grows with the number of the leader's
    parameters, so that a leader of many takes many samples. Each is two solves, with the random
    numbers of the first. The statistics are ``residual`` (the estimate's standard error, in units
    of its length) and ``evaluations``.

    Args:
        scale: σ, in units of θ. Leader constraints (:meth:`LeaderProblem.project`) are not kept to.
        samples: n.

    Raises:
        BilevelError: If an argument is out of its range; in the solve, if the solver goes on from
            its last answer.

    Example:
        >>> Sampled(0.01, samples=64)
        Sampled(0.01, samples=64)
    """

    def __init__(self, scale: float, *, samples: int = 32) -> None:
        if not scale > 0:
            raise BilevelError(f"scale is {scale}: the leader is not moved; give σ > 0")
        if samples < 2:
            raise BilevelError(
                f"samples is {samples!r}: without a second one nothing tells how far the estimate "
                "is off; give 2, 3, …"
            )
        self.scale = scale
        self.samples = samples

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Whether the solver answers for other leaders without a trace."""
        if not solver.repeatable:
            raise BilevelError(
                f"{self!r} asks for answers to other leaders, but {type(solver).__name__} goes on "
                "from its last answer: give it warm_start=False"
            )

    def pull(self, problem: Answered, v: Value) -> Slopes:
        """Answers for leaders around θ, on both sides."""
        theta = {name: problem.theta[name] for name in problem.wanted}
        point, weights = ravel(theta), ravel(v)
        estimates = []
        for _ in range(self.samples):
            u = torch.randn_like(point)
            up, down = (
                ravel(problem.solved(unravel(point + side * self.scale * u, like=theta)))
                for side in (1, -1)
            )
            estimates.append((weights @ (up - down)) / (2 * self.scale) * u)
        every = torch.stack(estimates)
        mean, variance = every.mean(0), every.var(0)
        length = mean.norm().clamp(min=torch.finfo(mean.dtype).tiny)  # 0 if no answer moves
        residual = (variance.sum() / self.samples).sqrt() / length
        problem.note(residual=residual)
        self.doubt(
            residual > NOISE,
            "the samples say little: the estimate's standard error is most of the estimate; give "
            "more samples, or a leader of fewer parameters",
        )
        return dict(zip(theta, leaves(unravel(mean, like=theta)), strict=True))

    def __repr__(self) -> str:
        return f"Sampled({self.scale:g}, samples={self.samples})"
