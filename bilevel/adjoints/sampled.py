"""The zeroth-order adjoint: finite differences of solves at random perturbations of θ."""

from __future__ import annotations

import torch

from bilevel.adjoints.continued import Continued
from bilevel.adjoints.solved import Gradients, SolvedProblem
from bilevel.arguments import count, positive
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Iterative, Parametric, Solver
from bilevel.tree import Value, ravel, unravel

# The standard error, relative to the estimate's norm, above which to warn; of pure noise it is 1.
NOISE = 0.7


class Sampled(Continued):
    r"""Antithetic evolution strategies over θ (Nesterov and Spokoiny, 2017; Salimans et al., 2017).

    .. math:: \Bigl(\frac{dy^*}{dθ}\Bigr)^{\!T} v \approx \frac{1}{n} \sum_{i=1}^n
              \frac{v^T\bigl(y^*(θ + σu_i) - y^*(θ - σu_i)\bigr)}{2σ}\, u_i,
              \qquad u_i \sim N(0, I)

    It needs only the follower's answers, which may be discontinuous in θ. It is an unbiased
    estimate of vᵀ times the derivative of y* smoothed by a Gaussian of width σ, and so of the
    smoothed loss's gradient only if L is nearly linear in y over those answers: v is that at y*
    itself. Its variance grows with the dimension of θ, and so does the number of samples needed. A
    sample takes two solves, with the random numbers of the original solve if they are torch's
    global ones; others are noise of the estimate. The statistics are ``residual`` (the estimate's
    standard error relative to its norm) and ``evaluations``.

    With a warm-started solver each solve of a sample goes on where its last one has ended, and u_i
    outside of the bracket is the sum of what the sample has drawn since the start (persistent
    evolution strategies, PES; Vicol et al., 2021): solves of a few steps have the gradient of all
    steps, at a variance that grows with their number. It takes two copies of y for each sample.

    Args:
        scale: σ, in units of θ. Perturbed leaders may violate :meth:`LeaderProblem.project`.
        samples: n.

    Raises:
        BilevelError: If an argument is out of range; in the solve, if the solver cannot be run
            again.

    Example:
        >>> Sampled(0.01, samples=64)
        Sampled(0.01, samples=64)
    """

    def __init__(self, scale: float, *, samples: int = 32) -> None:
        self.scale = positive("scale", scale)
        self.samples = count("samples", samples, least=2)  # for a standard error

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the solver can be run again."""
        if type(solver).answer is Parametric.answer:
            raise BilevelError(
                f"{self!r} cannot tell how the answer of {type(solver).__name__} depends on θ: an "
                "optimizer moves it, so it is the same for every sample; take Implicit(), or "
                "Iterative as the solver"
            )
        super().check(solver, follower, leader)

    def pull(self, problem: SolvedProblem, v: Value) -> Gradients:
        """Solves at perturbations of θ, in antithetic pairs."""
        if isinstance(problem.solver, Iterative):  # others may never evaluate the objective
            self.check_lent(problem)
        theta = {name: problem.theta[name] for name in problem.wanted}
        point, weights = ravel(theta), ravel(v)
        total, squares = torch.zeros_like(point), point.new_zeros(())
        starts = [(torch.zeros_like(point), [problem.kept_before] * 2)] * self.samples
        ended = []
        for drawn, pair in self.known_at_start(problem) or starts:
            u = torch.randn_like(point)
            sides = [unravel(point + side * self.scale * u, like=theta) for side in (1, -1)]
            (up, above), (down, below) = map(problem.solve, sides, pair)
            drawn = drawn + u / self.scale  # in each solve with the scale of its time
            ended.append((drawn, [above, below]))
            slope = weights @ (ravel(up) - ravel(down)) / 2
            total = torch.addcmul(total, slope, drawn)
            squares = squares + slope.square() * (drawn @ drawn)
        self.remember(problem, ended)
        n = len(ended)  # a loaded state may hold another number
        mean = total / n
        norm = mean.norm().clamp(min=torch.finfo(mean.dtype).tiny)  # 0 if no answer moves
        variance = (squares / n - mean.square().sum()).clamp(min=0) / (n - 1)  # of the mean
        residual = variance.sqrt() / norm
        problem.record(residual=residual)
        self.warn_once(
            residual > NOISE,
            "too few samples: the estimate's standard error is nearly as large as the estimate; "
            "give more samples, or a leader of fewer parameters",
        )
        if squares.is_cpu and not squares and weights.any():
            self.warn_unused([*theta])
        return unravel(mean, like=theta)
