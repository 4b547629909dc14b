"""The adjoint that takes no second derivatives: a finite difference of perturbed solutions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bilevel.adjoints.pullback import Pullback
from bilevel.adjoints.solved import Gradients, SolvedProblem
from bilevel.arguments import count, instance_of, positive
from bilevel.autograd_graph import vjp
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem, LeaderProblem, overrides
from bilevel.solvers import Iterative, Oracle, Solver
from bilevel.tree import Value, leaves, ravel, tree_map
from bilevel.updates.base import Update

# A solve counts as converged if its last step, times the number of steps, is at most this part of
# the distance that it has moved.
CONVERGED = 0.1


class Penalty(Pullback):
    r"""A finite difference of the follower's answers, first-order only (Kwon et al., 2023).

    With v = ∂L/∂y and the follower's cost c (q, or −q where it maximises),

    .. math:: \Bigl(\frac{dy^*}{dθ}\Bigr)^{\!T} v \approx
              \frac{λ}{2}\bigl(∂_θ c(θ, y_+) - ∂_θ c(θ, y_-)\bigr), \qquad
              y_\pm = \arg\min_{y ∈ Y} c(θ, y) \pm \frac{1}{λ} v^T y

    which is the gradient of a penalty method (F2SA; BOME of Liu et al., 2022) with the leader's
    loss linearised in y, as a central difference: the error is O(1/λ²), until rounding dominates.
    The perturbed problems are solved from y* by the solver's own steps, so that constraints are
    respected. The statistics are ``residual`` (the last step times the number of steps, relative
    to the distance moved; 0 if that is rounding), ``curvature`` (along the difference of the two
    solutions; 0 if they do not differ) and ``evaluations``.

    Args:
        strength: λ. The perturbation moves y by about v / (λ · curvature), which should be small
            compared with the distance over which the curvature changes.
        update: The step rule for the perturbed problems; by default the solver's own.
        steps: The number of its steps; by default as many as the solver's.

    Raises:
        BilevelError: If an argument is out of range; in the solve, if the solver has no steps and
            none are given, they read no gradient, or Y depends on θ.

    Example:
        >>> Penalty(1e3)
        Penalty(1000.0)
    """

    reaches_batch = True

    def __init__(
        self, strength: float, *, update: Update | None = None, steps: int | None = None
    ) -> None:
        if update is not None:
            instance_of("update", update, Update, "updates.Gradient(step) or your own")
        self.strength = positive("strength", strength)
        self.update = update
        self.steps = None if steps is None else count("steps", steps)
        self._checked: set[str] = set()

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that there are steps to solve the perturbed problems with."""
        update, steps = self._steps(solver)
        if update is None or not steps:
            raise BilevelError(
                f"{self!r} solves by the solver's own steps, and {type(solver).__name__} has none: "
                "give update=updates.Gradient(step) and steps"
            )
        if not update.needs_gradient:
            raise BilevelError(
                f"{self!r} perturbs the objective, and {type(update).__name__} reads no gradient "
                "of it: the perturbed answers would be the same; give "
                "update=updates.Gradient(step) and steps, or take Implicit(fixed_point=update)"
            )

    def _steps(self, solver: Solver) -> tuple[Update | None, int]:
        """The rule and the number of steps of a perturbed solve."""
        if isinstance(solver, Iterative):
            # Not the truth of a module: one that is compiled, or a container, has a length.
            update = solver.update if self.update is None else self.update
            return update, self.steps or solver.steps
        return self.update, self.steps or 0

    def pull(self, problem: SolvedProblem, v: Value) -> Gradients:
        """Solves both perturbed problems, and takes the difference of the costs' gradients."""
        if not {*problem.wanted} <= self._checked:
            self._check_constraints(problem)
            self._checked |= {*problem.wanted}
        (plus, residual), (minus, other) = (self._perturbed(problem, v, sign) for sign in (1, -1))
        moved = tree_map(lambda _, a, b: a - b, v, minus, plus)  # in v's order of names
        difference = ravel(moved) * self.strength / 2
        square = (difference @ difference).clamp(min=torch.finfo(difference.dtype).tiny)
        curvature = ravel(v) @ difference / square
        problem.record(residual=torch.maximum(residual, other), curvature=curvature)
        self.warn_once(
            difference.norm() < self.strength * _rounding(problem),
            "the perturbation is lost in rounding: the two perturbed solutions hardly differ; "
            "lower the strength, leave autocast, or compute in float64; if the leader's loss is "
            "flat in y at y*, as the follower's own objective is, or y* rests on constraints that "
            "it would cross, nothing is missing, and Detached() is exact too",
        )
        grads = [self._gradients(problem, y) for y in (minus, plus)]
        return {
            name: None if a is None or b is None else (a - b) * (self.strength / 2)
            for (name, a), b in zip(grads[0].items(), grads[1].values(), strict=True)
        }

    def _check_constraints(self, problem: SolvedProblem) -> None:
        """Raises if Y depends on θ: the difference of costs has no term for moving constraints."""
        if not overrides(problem.follower, "project"):
            return
        theta = problem.variables()
        with torch.enable_grad():
            point = problem.evaluate(theta, lambda oracle: oracle.project(problem.y))
        if any(leaf.requires_grad for leaf in leaves(point)):
            raise BilevelError(
                f"{self!r}: {type(problem.follower).__name__}.project depends on the leader's "
                "parameters, or tensors of the batch, and a difference of objectives does not see "
                "constraints that move with them; take Implicit() or Unrolled()"
            )

    def _perturbed(self, problem: SolvedProblem, v: Value, sign: int) -> tuple[Value, Tensor]:
        """Solves the problem with a linear term from y* on: the solution and its residual."""
        update, steps = self._steps(problem.solver)
        assert update is not None
        cost = tree_map(lambda leaf: leaf * (sign / self.strength), v)

        def solve(oracle: Oracle) -> tuple[Value, Value]:
            # From copies: an update of one's own may work in place.
            start = tree_map(Tensor.clone, problem.y)
            y, state = oracle.advance(update, start, None, steps - 1)
            return y, oracle.advance(update, tree_map(Tensor.clone, y), state, 1)[0]

        before, end = problem.evaluate({}, solve, kind=partial(Perturbed, cost))
        last, moved = (ravel(tree_map(torch.sub, end, y)).norm() for y in (before, problem.y))
        # Solutions that have not moved say nothing about convergence.
        residual = torch.where(moved <= _rounding(problem), 0.0, steps * last / moved)
        self.warn_once(
            ~(residual <= CONVERGED),  # it may be NaN
            "the perturbed problems are not solved: their iterates still move as far as at first, "
            "and the finite difference needs converged ones; give more steps, or an update that "
            "converges",
        )
        return end, residual

    def _gradients(self, problem: SolvedProblem, y: Value) -> Gradients:
        """The gradient of the follower's gain in θ, at a point."""
        theta = problem.variables()
        with torch.enable_grad():
            gain = problem.evaluate(theta, lambda oracle: oracle.gain(y))
        self.check_lent(problem, [gain])
        problem.stats["evaluations"] += 1
        grads = vjp([gain], [*theta.values()], [torch.ones_like(gain)])
        return dict(zip(theta, grads, strict=True))


def _rounding(problem: SolvedProblem) -> Tensor:
    """The distance from y that two solutions may have by rounding alone."""
    point = ravel(problem.y)
    # What autocast converts cannot tell solutions apart that are closer than its precision.
    low = problem.snapshot.converted_to(point.device.type)
    unit = max(100 * torch.finfo(point.dtype).eps, torch.finfo(low).eps if low else 0.0)
    return unit * point.norm()


class Perturbed(Oracle):
    """An oracle of the problem with a linear cost on y, which its gradient alone knows.

    Args:
        cost: The cost's coefficients, in the shape of y.
        *problem: The arguments of :class:`~bilevel.Oracle`.
        **settings: Likewise.
    """

    def __init__(self, cost: Value, *problem: Any, **settings: Any) -> None:
        super().__init__(*problem, **settings)
        self.cost = cost

    def gradient(self, y: Value) -> Any:
        """The gradient of each sample's gain less its cost."""
        return tree_map(torch.sub, super().gradient(y), self.cost)
