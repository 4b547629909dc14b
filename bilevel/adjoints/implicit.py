"""The adjoint of a follower that is solved: from its optimality condition, not from its steps."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bilevel.adjoints import linear
from bilevel.adjoints.answered import Answered
from bilevel.adjoints.linear import LinearSolution, LinearSolver
from bilevel.adjoints.pullback import Pullback, Slopes
from bilevel.adjoints.unrolled import check_differentiable
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Iterative, Oracle, Solver
from bilevel.tree import Value, grow, leaves, ravel, tree_map, unravel
from bilevel.updates.base import Update
from bilevel.updates.gradient import Gradient

Method = Literal["cg", "neumann", "gmres", "exact"]
"""How the linear system is solved."""

SOLVERS: dict[Method, LinearSolver] = {
    "cg": linear.conjugate_gradient,
    "neumann": linear.neumann,
    "gmres": linear.gmres,
    "exact": linear.exact,
}

# An answer is near enough where its residual has fallen to this part of that at the start.
STATIONARY = 1e-2


class Implicit(Pullback):
    r"""The implicit function theorem at the answer (Bengio, 2000; Pedregosa, 2016).

    Where the follower is stationary, F(θ, y*) = ∇_y q = 0 differentiates to

    .. math:: \Bigl(\frac{dy^*}{dθ}\Bigr)^{\!T} v = \Bigl(\frac{∂F}{∂θ}\Bigr)^{\!T} w, \qquad
              -\Bigl(\frac{∂F}{∂y}\Bigr)^{\!T} w = v

    Where Y is not everything, or with ``fixed_point``, F = T(θ, y) − y, where T is an update step
    and the projection after it: the answer is differentiated through that projection.

    It is exact for an answer that is exact, whatever way led there, and needs the memory of one
    gradient. Each product costs about two gradient evaluations. The statistics are ``residual``
    (of the linear system, in units of v), ``curvature`` (the smallest met: 0 or less says that y*
    is no strict optimum), ``gradient_norm`` at the answer, and ``evaluations`` (gradients of the
    objective and products with its second derivatives).

    Args:
        solver: ``"cg"`` for a strict optimum; ``"gmres"`` for any F; ``"neumann"`` adds terms of
            the series of T, which has to contract; ``"exact"`` writes the matrix out, for m numbers
            of y by m products. By default ``"cg"``, and ``"gmres"`` with a fixed point.
        tolerance: The linear solve ends where its residual has fallen to this part of v.
        max_steps: The most steps of the linear solve.
        damping: Added to the matrix's diagonal: it makes a flat follower solvable, and biased.
        warm_start: Start from the last linear solve's answer. Worth it where θ and the batch move
            slowly.
        fixed_point: The update whose step, projected, leaves y* where it is; by default the
            solver's own if that is a plain gradient step, else one of size 1.

    Raises:
        BilevelError: If an argument is out of its range; in the solve, if the linear solver does
            not suit the problem.

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
        if solver is not None and solver not in SOLVERS:
            raise BilevelError(
                f"solver is {solver!r}: there is no such linear solver; give one of "
                f"{', '.join(map(repr, SOLVERS))}"
            )
        if not isinstance(max_steps, int) or max_steps < 1:
            raise BilevelError(f"max_steps is {max_steps!r}: nothing is solved; give 1, 2, …")
        if not (tolerance >= 0 and damping >= 0):
            raise BilevelError(
                f"tolerance is {tolerance} and damping {damping}: neither can be negative; give "
                "0 or more"
            )
        if fixed_point is not None:
            check_differentiable(fixed_point)
        self.solver = solver
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.damping = damping
        self.warm_start = warm_start
        self.fixed_point = fixed_point
        self._kept: Tensor | None = None
        self._scale: Tensor | None = None

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Whether the linear solver suits the problem."""
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

    def pull(self, problem: Answered, v: Value) -> Slopes:
        """Solves the linear system, and takes its answer to θ."""
        step = self._step(problem.solver, problem.follower)
        theta = {name: problem.theta[name].detach().requires_grad_() for name in problem.wanted}
        y = tree_map(lambda leaf: leaf.detach().requires_grad_(), problem.y)
        with torch.enable_grad():
            rest, norm = problem.at(theta, lambda oracle: _condition(oracle, step, y))

        def product(row: Tensor) -> Tensor:
            slopes = _vjp(rest, leaves(y), unravel(row, like=v))
            return self.damping * row - ravel(grow(slopes, like=y))

        b = ravel(v)
        start = self._kept if self._kept is not None and self._kept.shape == b.shape else None
        solve = SOLVERS[self.solver or ("cg" if step is None else "gmres")]
        solution = solve(product, b, self.max_steps, tolerance=self.tolerance, start=start)
        if self.warm_start:
            self._kept = solution.value
        problem.stats["evaluations"] += solution.products
        problem.note(gradient_norm=norm)
        self._judge(problem, solution, b, symmetric=step is None)
        self._judge_answer(problem, step, rest, float(solution.largest))
        slopes = _vjp(rest, list(theta.values()), unravel(solution.value, like=v))
        return dict(zip(theta, slopes, strict=True))

    def _step(self, solver: Solver, follower: FollowerProblem) -> Update | None:
        """The update of the fixed-point map; None where the gradient's zero is the condition."""
        if self.fixed_point is not None:
            return self.fixed_point
        project = getattr(follower.project, "__func__", None)
        constrained = project is not FollowerProblem.project
        own = solver.update if isinstance(solver, Iterative) else None
        if isinstance(own, Gradient) and (constrained or self.solver == "neumann"):
            return own
        return Gradient(1.0) if constrained and self.solver != "neumann" else None

    def _judge(
        self, problem: Answered, solution: LinearSolution, b: Tensor, *, symmetric: bool
    ) -> None:
        """What the linear solve says of the gradient."""
        residual = solution.residual.norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny)
        problem.note(residual=residual, curvature=solution.curvature)
        curvature, largest = float(solution.curvature), float(solution.largest)
        rounding = torch.finfo(b.dtype).eps * len(b) * largest
        if symmetric and curvature < -rounding:
            self.doubt(
                True,
                f"negative curvature: along some direction the follower's objective curves the "
                f"wrong way at its answer (by {curvature:.3g}), so y* is not its optimum; solve it "
                f"further, give damping above {-curvature:.3g}, or take Unrolled(), which asks for "
                "no optimum",
            )
        elif symmetric and curvature <= rounding:
            self.doubt(
                float(residual) > self.tolerance,
                "singular system: along some direction the follower's objective is flat at its "
                "answer, so y* is not unique and has no derivative there; make the follower's "
                "objective strictly convex (weight decay), or give damping",
            )
        elif not float(residual) <= max(self.tolerance, torch.finfo(b.dtype).eps ** 0.5):
            self.doubt(
                True,
                f"linear system not solved: its residual is {float(residual):.3g} of v after "
                f"{solution.products} products, where {self.tolerance:g} was asked for; raise "
                "max_steps, give damping, or take another solver",
            )

    def _judge_answer(
        self, problem: Answered, step: Update | None, rest: Value, curvature: float
    ) -> None:
        """Whether the condition holds at the answer, beside how far from it the start is."""
        if self._scale is None:
            with torch.no_grad():
                start = problem.at({}, lambda oracle: _condition(oracle, step, oracle.init())[0])
            scale, y = ravel(start).norm(), ravel(problem.y)
            if scale <= 100 * torch.finfo(y.dtype).eps * curvature * y.norm():
                return  # it starts at the optimum, up to rounding: nothing to compare with
            self._scale = scale
        part = float(ravel(rest).norm() / self._scale)
        self.doubt(
            part > STATIONARY,
            f"the follower is not stationary at its answer: its optimality condition is missed by "
            f"{part:.2g} of what it is missed by at the start, and the implicit gradient is exact "
            "at an optimum only; solve with more steps, or take Unrolled(), which is exact for any "
            "answer",
        )

    def state_dict(self) -> dict[str, Any]:
        """The last linear solve's answer, for a warm start."""
        return {"kept": self._kept, "scale": self._scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._kept, self._scale = state["kept"], state["scale"]

    def __repr__(self) -> str:
        default = inspect.signature(Implicit).parameters
        given = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in default.items()
            if getattr(self, name) != parameter.default
        ]
        return f"Implicit({', '.join(given)})"


def _condition(oracle: Oracle, step: Update | None, y: Value) -> tuple[Value, Tensor]:
    """F, which is zero at an optimum, and the norm of the gradient."""
    if step is None:
        rest = oracle.gradient(y)
    else:
        rest = tree_map(torch.sub, oracle.advance(step, y, None, 1)[0], y)
    return rest, oracle.stats()["gradient_norm"]


def _vjp(value: Value, inputs: Sequence[Tensor], weights: Value) -> Sequence[Tensor | None]:
    """The weighted derivatives of a value whose graph is kept; None where it has none."""
    pairs = zip(leaves(value), leaves(weights), strict=True)
    outputs = [(leaf, weight) for leaf, weight in pairs if leaf.requires_grad]
    if not outputs:
        return [None for _ in inputs]
    values, slopes = zip(*outputs, strict=True)
    return torch.autograd.grad(values, inputs, slopes, retain_graph=True, allow_unused=True)
