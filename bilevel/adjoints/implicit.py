"""The adjoint that differentiates the follower's optimality condition, not the solver's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bilevel.adjoints import linear
from bilevel.adjoints.pullback import Gradients, Pullback
from bilevel.adjoints.solved import SolvedProblem, is_constrained
from bilevel.adjoints.unrolled import check_differentiable
from bilevel.arguments import count, instance_of, one_of
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Iterative, Oracle, Solver
from bilevel.tree import Value, from_leaves, leaves, ravel, tree_map, unravel
from bilevel.updates.base import Update
from bilevel.updates.gradient import Gradient

Method = Literal["cg", "neumann", "gmres", "exact"]
"""How the linear system is solved."""

SOLVERS: dict[Method, linear.LinearSolver] = {
    "cg": linear.conjugate_gradient,
    "neumann": linear.neumann,
    "gmres": linear.gmres,
    "exact": linear.exact,
}

# An answer counts as optimal if its residual is at most this part of the start's.
STATIONARY = 1e-2
# And if its distance from the optimum, estimated by ‖F‖ over the smallest curvature met, is at most
# this part of its norm.
FAR = 3e-2

_NOT_STATIONARY = "the follower is not stationary at its answer"


class Implicit(Pullback):
    r"""The implicit function theorem at the answer (Bengio, 2000; Pedregosa, 2016).

    The optimality condition F(θ, y*) = ∇_y q = 0 differentiates to

    .. math:: \Bigl(\frac{dy^*}{dθ}\Bigr)^{\!T} v = \Bigl(\frac{∂F}{∂θ}\Bigr)^{\!T} w, \qquad
              -\Bigl(\frac{∂F}{∂y}\Bigr)^{\!T} w = v

    If Y has constraints, or with ``fixed_point``, the condition is F = T(θ, y) − y, where T is an
    update step followed by the projection: the answer is differentiated through the projection.

    Exact for an exact answer, however it was computed, in the memory of one gradient. Each product
    costs about two gradient evaluations. The statistics are ``residual`` (of the linear system,
    relative to v), ``curvature`` (the smallest met, without damping: y* is no strict optimum if it
    is 0 or less), ``stationarity`` (‖F‖), ``gradient_norm`` at the answer where F is the gradient,
    and ``evaluations`` (gradients of the objective and products with its second derivatives).

    Args:
        solver: ``"cg"`` for a strict optimum; ``"gmres"`` for any F; ``"neumann"`` adds terms of
            the series of T, which must be a contraction; ``"exact"`` computes the matrix, by m
            products for m elements of y. By default ``"cg"``, or ``"gmres"`` with a fixed point.
        tolerance: The linear solve ends when its residual is at most this times the norm of v.
        max_steps: The largest number of steps of the linear solve.
        damping: Added to the matrix's diagonal: makes a flat follower solvable, at a bias.
        warm_start: Start from the last linear solve's solution, if θ and the batch change slowly.
        fixed_point: The update that defines T; by default the solver's own if that is a plain
            gradient step, else one of size 1.

    Raises:
        BilevelError: If an argument is out of range; in the solve, if the linear solver does not
            suit the problem.

    Example:
        >>> Implicit(solver="neumann", max_steps=50)
        Implicit(solver='neumann', max_steps=50)
    """

    def __init__(
        self,
        solver: Method | None = None,
        *,
        tolerance: float = 1e-6,
        max_steps: int = 100,
        damping: float = 0.0,
        warm_start: bool = False,
        fixed_point: Update | None = None,
    ) -> None:
        if not (tolerance >= 0 and damping >= 0):
            raise BilevelError(
                f"tolerance is {tolerance} and damping {damping}: neither can be negative; give "
                "0 or more"
            )
        if fixed_point is not None:
            instance_of("fixed_point", fixed_point, Update, "updates.Gradient(step) or your own")
            check_differentiable(fixed_point)
        self.solver = None if solver is None else one_of("solver", solver, SOLVERS)
        self.tolerance = tolerance
        self.max_steps = count("max_steps", max_steps)
        self.damping = damping
        self.warm_start = warm_start
        self.fixed_point = fixed_point
        self._kept: Tensor | None = None
        self._scale: Tensor | None = None

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the linear solver suits the problem."""
        step = self._step(solver, follower)
        if self.solver == "cg" and step is not None:
            raise BilevelError(
                f"{self!r} cannot solve for {type(follower).__name__}: conjugate gradients need a "
                "symmetric matrix, and that of a projected or fixed-point step is not; give "
                'solver="gmres" or "exact"'
            )
        if self.solver == "neumann" and step is None:
            rule = type(getattr(solver, "update", solver)).__name__
            raise BilevelError(
                f"{self!r} has no step to make a series of: {rule} is no plain gradient step; "
                "give fixed_point=updates.Gradient(step)"
            )

    def pull(self, problem: SolvedProblem, v: Value) -> Gradients:
        """Solves the linear system for w, and multiplies it by ∂F/∂θ."""
        step = self._step(problem.solver, problem.follower)
        theta = {name: problem.theta[name].detach().requires_grad_() for name in problem.wanted}
        y = tree_map(lambda leaf: leaf.detach().requires_grad_(), problem.y)
        with torch.enable_grad():
            residual, stats = problem.evaluate(theta, lambda own: _residual(own, step, y))

        def product(w: Tensor) -> Tensor:
            grads = _vjp(residual, leaves(y), unravel(w, like=v))
            return self.damping * w - _vector(from_leaves(grads, like=y))

        b, kept = _vector(v), self._kept
        start = kept.to(b) if kept is not None and kept.shape == b.shape else None
        solve = SOLVERS[self.solver or ("cg" if step is None else "gmres")]
        solution = solve(product, b, self.max_steps, tolerance=self.tolerance, start=start)
        if self.warm_start:
            self._kept = solution.value
        problem.stats["evaluations"] += solution.products
        problem.record(stationarity=_vector(residual).norm(), **stats)
        self._check_system(problem, solution, b, symmetric=step is None)
        self._check_optimal(problem, step, residual, solution)
        grads = _vjp(residual, list(theta.values()), unravel(solution.value, like=v))
        return dict(zip(theta, grads, strict=True))

    def _step(self, solver: Solver, follower: FollowerProblem) -> Update | None:
        """The update of the fixed-point map; None if the condition is a zero gradient."""
        if self.fixed_point is not None:
            return self.fixed_point
        constrained = is_constrained(follower)
        own = solver.update if isinstance(solver, Iterative) else None
        if isinstance(own, Gradient) and (constrained or self.solver == "neumann"):
            return own
        return Gradient(1.0) if constrained and self.solver != "neumann" else None

    def _check_system(
        self, problem: SolvedProblem, solution: linear.LinearSolution, b: Tensor, *, symmetric: bool
    ) -> None:
        """Warns if the linear system is indefinite, singular or not solved."""
        residual = solution.residual.norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny)
        problem.record(residual=residual, curvature=solution.curvature - self.damping)
        curvature, largest = float(solution.curvature), float(solution.largest)
        eps = _eps(problem.y)
        rounding = eps * len(b) * largest
        if symmetric and curvature < -rounding:
            self.warn_once(
                True,
                f"negative curvature: along some direction the follower's objective curves the "
                f"wrong way at its answer (by {curvature - self.damping:.3g}), so y* is not its "
                f"optimum; solve it further, give damping above {self.damping - curvature:.3g}, or "
                "take Unrolled(), which assumes no optimum",
            )
        elif symmetric and curvature <= rounding:
            self.warn_once(
                float(residual) > self.tolerance,
                "singular system: along some direction the follower's objective is flat at its "
                "answer, so y* is not unique and has no derivative there; make the follower's "
                "objective strictly convex (weight decay), or give damping",
            )
        elif not float(residual) <= max(self.tolerance, eps**0.5):
            self.warn_once(
                True,
                f"linear system not solved: its residual is {float(residual):.3g} of v after "
                f"{solution.products} products, where {self.tolerance:g} was asked for; raise "
                "max_steps, give damping, or take another solver",
            )

    def _check_optimal(
        self,
        problem: SolvedProblem,
        step: Update | None,
        residual: Value,
        solution: linear.LinearSolution,
    ) -> None:
        """Warns if the condition does not hold at the answer, or holds far from the optimum too."""
        y = _vector(problem.y)
        norm, tiny = _vector(residual).norm(), torch.finfo(y.dtype).tiny
        # Before a warning that of this problem: another one may have had another scale.
        fresh = self._scale is None or norm / self._scale > STATIONARY
        if fresh and not self.has_warned(_NOT_STATIONARY):
            with torch.no_grad():
                start, _ = problem.evaluate({}, lambda own: _residual(own, step, own.init()))
            scale = _vector(start).norm()
            if scale <= 100 * _eps(problem.y) * solution.largest * y.norm():
                return  # the start is optimal up to rounding: nothing to compare with
            self._scale = scale
        if self._scale is None:
            return
        ratio = float(norm / self._scale)
        distance = float(norm / (solution.curvature - self.damping) / y.norm().clamp(min=tiny))
        remedy = "solve with more steps, or take Unrolled(), which is exact for any answer"
        self.warn_once(
            ratio > STATIONARY,
            f"{_NOT_STATIONARY}: the residual of its optimality condition is {ratio:.2g} of that "
            f"at the start, and the implicit gradient is exact at an optimum only; {remedy}",
        )
        self.warn_once(
            ratio <= STATIONARY and distance > FAR,
            f"the follower is badly conditioned: by its gradient and the smallest curvature met, "
            f"its answer may be off by {distance:.2g} of its norm, and the implicit gradient is "
            f"exact at an optimum only; {remedy}",
        )

    def state_dict(self) -> dict[str, Any]:
        """The last linear solve's solution, and the residual's scale."""
        return {"kept": self._kept, "scale": self._scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned."""
        self._kept, self._scale = state["kept"], state["scale"]


def _residual(oracle: Oracle, step: Update | None, y: Value) -> tuple[Value, dict[str, Tensor]]:
    """F, which is zero at an optimum, and the gradient's norm where that is zero there too."""
    if step is None:
        return oracle.gradient(y), {"gradient_norm": oracle.stats()["gradient_norm"]}
    moved, _ = oracle.advance(step, y, None, 1)
    return tree_map(lambda own, other: other - own, y, moved), {}  # in y's order of names


def _vector(y: Value) -> Tensor:
    """All elements, in float32 at least: half precision overflows, and torch.linalg refuses it."""
    vector = ravel(y)
    return vector.to(torch.promote_types(vector.dtype, torch.float32))


def _eps(y: Value) -> float:
    """The rounding of a gradient in y."""
    return max(torch.finfo(leaf.dtype).eps for leaf in leaves(y))


def _vjp(value: Value, inputs: Sequence[Tensor], v: Value) -> Sequence[Tensor | None]:
    """The vector-Jacobian product, keeping the graph; None where an input is not used."""
    pairs = zip(leaves(value), leaves(v), strict=True)
    outputs = [(leaf, weight) for leaf, weight in pairs if leaf.requires_grad]
    if not outputs:
        return [None for _ in inputs]
    values, weights = zip(*outputs, strict=True)
    return torch.autograd.grad(values, inputs, weights, retain_graph=True, allow_unused=True)
