"""The adjoint that takes no second derivatives: two more solves, tilted to either side."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bilevel.adjoints.answered import Answered
from bilevel.adjoints.pullback import Pullback, Slopes
from bilevel.errors import BilevelError
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers import Iterative, Oracle, Solver
from bilevel.tree import Value, beside, leaves, ravel, tree_map
from bilevel.updates.base import Update

# A solve has settled where its last step, as often as there were steps, would not lead this part
# of the way once more.
SETTLED = 0.1


class Penalty(Pullback):
    r"""A finite difference of the follower's answers, first-order only (Kwon et al., 2023).

    With v = ∂L/∂y and the follower's cost c (q, or −q where it maximises),

    .. math:: \Bigl(\frac{dy^*}{dθ}\Bigr)^{\!T} v \approx
              \frac{λ}{2}\bigl(∂_θ c(θ, y_+) - ∂_θ c(θ, y_-)\bigr), \qquad
              y_\pm = \arg\min_{y ∈ Y} c(θ, y) \pm \frac{1}{λ} v^T y

    which is the gradient of a penalty method (F2SA; BOME of Liu et al., 2022) with the leader's
    loss linear in y, and both of its signs for a symmetric difference: the error falls as 1/λ²,
    until the tilt drowns in rounding. The tilted problems are solved from y* by the solver's own
    steps, so that constraints need no case of their own. The statistics are ``residual`` (how much
    further as many steps would lead again), ``curvature`` (that along the answers' difference; 0
    where they do not differ) and ``evaluations``.

    Args:
        strength: λ. The tilt moves y by about v / (λ · curvature): that should be small beside
            the distance in which the curvature changes.
        update: The step rule of the tilted solves; the solver's own unless given.
        steps: How many of its steps; as many as the solver's own unless given.

    Raises:
        BilevelError: If an argument is out of its range; in the solve, if the solver has no steps
            and none are given.

    Example:
        >>> Penalty(1e3)
        Penalty(1000)
    """

    def __init__(
        self, strength: float, *, update: Update | None = None, steps: int | None = None
    ) -> None:
        if not 0 < strength < math.inf:
            raise BilevelError(f"strength is {strength}: λ weighs the follower; give λ > 0")
        if steps is not None and steps < 1:
            raise BilevelError(f"steps is {steps!r}: nothing is solved; give 1, 2, …")
        self.strength = strength
        self.update = update
        self.steps = steps

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Whether there are steps to solve the tilted problems by."""
        if not all(self._steps(solver)):
            raise BilevelError(
                f"{self!r} solves by the solver's own steps, and {type(solver).__name__} has none: "
                "give update=updates.Gradient(step) and steps"
            )

    def _steps(self, solver: Solver) -> tuple[Update | None, int]:
        """The rule and the number of steps of a tilted solve."""
        if isinstance(solver, Iterative):
            return self.update or solver.update, self.steps or solver.steps
        return self.update, self.steps or 0

    def pull(self, problem: Answered, v: Value) -> Slopes:
        """Solves both tilted problems and compares the follower's costs in θ."""
        (up, rest), (down, other) = (self._tilted(problem, v, sign) for sign in (1, -1))
        distance = ravel(tree_map(torch.sub, down, up)) * self.strength / 2
        square = (distance @ distance).clamp(min=torch.finfo(distance.dtype).tiny)
        curvature = ravel(v) @ distance / square
        problem.note(residual=torch.maximum(rest, other), curvature=curvature)
        rounding = torch.finfo(distance.dtype).eps * ravel(problem.y).norm() * self.strength
        self.doubt(
            distance.norm() < 100 * rounding,
            "the tilt drowns in rounding: the tilted answers hardly differ from each other; lower "
            "the strength, or compute in float64",
        )
        slopes = [self._slopes(problem, y) for y in (down, up)]
        return {
            name: None if a is None or b is None else (a - b) * (self.strength / 2)
            for (name, a), b in zip(slopes[0].items(), slopes[1].values(), strict=True)
        }

    def _tilted(self, problem: Answered, v: Value, sign: int) -> tuple[Value, Tensor]:
        """The answer to the follower's problem with a linear term, from y* on, and its residual."""
        update, steps = self._steps(problem.solver)
        assert update is not None
        tilt = tree_map(lambda leaf: leaf * (sign / self.strength), v)

        def solve(oracle: Oracle) -> tuple[Value, Value]:
            y, state = oracle.advance(update, problem.y, None, steps - 1)
            return y, oracle.advance(update, y, state, 1)[0]

        before, end = problem.at({}, solve, Tilted(problem.follower, tilt))
        last, way = (ravel(tree_map(torch.sub, end, begin)).norm() for begin in (before, problem.y))
        residual = steps * last / way.clamp(min=torch.finfo(way.dtype).tiny)
        self.doubt(
            residual > SETTLED,
            "the tilted problems are not solved: their answers still move as they did at first, "
            "and the difference is of where they are and not of where they go; give more steps, "
            "or an update that settles",
        )
        return end, residual

    def _slopes(self, problem: Answered, y: Value) -> Slopes:
        """The gradient of the follower's gain in θ, at a point."""
        theta = {name: problem.theta[name].detach().requires_grad_() for name in problem.wanted}
        with torch.enable_grad():
            gain = problem.at(theta, lambda oracle: oracle.gain(y)).sum()
        problem.stats["evaluations"] += 1
        if not gain.requires_grad:
            return dict.fromkeys(theta)
        slopes = torch.autograd.grad(gain, list(theta.values()), allow_unused=True)
        return dict(zip(theta, slopes, strict=True))

    def __repr__(self) -> str:
        return f"Penalty({self.strength:g})"


class Tilted(FollowerProblem):
    """A follower with a linear cost on top of its own.

    Args:
        follower: The problem.
        tilt: What each number of y costs, in the shape of y.
    """

    def __init__(self, follower: FollowerProblem, tilt: Value) -> None:
        self.follower = follower
        self.sense = follower.sense
        self.tilt = tilt

    def init(self, batch: Batch) -> Value:
        """The follower's own."""
        return self.follower.init(batch)

    def objective(self, leader: Any, y: Any, batch: Batch) -> Tensor:
        """The follower's own, less the cost of y for one that maximises, plus it otherwise."""
        value = self.follower.objective(leader, y, batch)
        products = [a * b for a, b in zip(leaves(y), beside(y, self.tilt), strict=True)]
        costs = [p[..., None].flatten(1).sum(1) if value.dim() else p.sum() for p in products]
        return value - self.sign * torch.stack(costs).sum(0)

    def project(self, y: Any, batch: Batch) -> Value:
        """The follower's own."""
        return self.follower.project(y, batch)

    def context(self, y: Any, batch: Batch) -> Tensor | None:
        """The follower's own."""
        return self.follower.context(y, batch)
