"""What may be wrong with an answer and the linear system of the implicit adjoint, and remedies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bilevel.adjoints.condition import epsilon, reads_no_gradient
from bilevel.adjoints.solved import SolvedProblem
from bilevel.linear import LinearSolution
from bilevel.solvers import Iterative, Parametric, Solver
from bilevel.updates.base import Update

if TYPE_CHECKING:
    from bilevel.adjoints.implicit import Implicit

# Unless a tolerance was given, a system counts as solved if its residual is at most this part of v.
SOLVED = 1e-6
# And its solution as accurate if its error, estimated by ‖residual‖ over the smallest curvature
# met, is at most this part of its norm.
ACCURATE = 1e-2

_MIXED = '; if a sample\'s objective depends on others, method="gmres"'


def check_system(
    adjoint: Implicit,
    problem: SolvedProblem,
    solution: LinearSolution,
    b: Tensor,
    *,
    symmetric: bool,
) -> None:
    """Warns if the linear system is indefinite, singular, not solved or badly conditioned.

    Args:
        adjoint: The adjoint, which warns.
        problem: The problem, to whose statistics this adds.
        solution: The solution w of (−∂F/∂y + damping) w = b.
        b: The right-hand side.
        symmetric: Whether F is a gradient, so that its derivative is symmetric.
    """
    scale, eps = b.norm(), epsilon(problem.y)
    residual = solution.residual.norm() / torch.where(scale > 0, scale, 1)  # of v = 0, its own
    problem.record(residual=residual)
    unsolved = not float(residual) <= solved_at(adjoint.tolerance, eps)
    curvature, rounding, message = float(solution.curvature), solution.negligible(eps), ""
    if curvature != torch.inf:  # else solved at its start: none was met
        problem.record(curvature=solution.curvature - adjoint.damping)
    mixed = _MIXED if b.dim() > 1 else ""
    if symmetric and curvature < -4 * rounding:  # those of GMRES add up
        message = _indefinite(curvature - adjoint.damping, adjoint.method) + mixed
    elif solution.singular or (symmetric and curvature <= rounding):
        by_cg = symmetric and adjoint.method in (None, "cg")
        message = _singular(by_cg=by_cg) if unsolved else ""
    elif unsolved:
        message = (
            f"linear system not solved: its residual is {residual:.3g} ‖v‖ after "
            f"{solution.products} products, so that the gradient's relative error can be as large "
            f"as that times the condition number; raise max_steps, give damping, or take another "
            f"solver{mixed}"
        )
    elif symmetric and adjoint.tolerance is None:
        message = _inaccurate(solution)
    adjoint.warn_once(bool(message), message)


def solved_at(tolerance: float | None, eps: float) -> float:
    """The residual up to which a condition counts as met.

    Args:
        tolerance: The tolerance that was given; None for the default.
        eps: The relative rounding of a product.

    Returns:
        The residual, relative to what it is compared with.
    """
    return max(SOLVED if tolerance is None else tolerance, eps**0.5)


def remedy_for(solver: Solver, fixed_point: Update | None) -> str:
    """What to do about an answer at which the condition does not hold.

    Args:
        solver: The solver of the answer.
        fixed_point: The update that was given for the fixed-point map, if one was.

    Returns:
        The end of a message.
    """
    if isinstance(solver, Parametric):
        return "let the leader be slower than solver_opt, and watch the metric stationarity"
    if fixed_point is not None:
        return (
            "solve it further, or take Unrolled(); if fixed_point keeps a part of the answer in "
            "its state (a dual variable), make that a part of y: it is evaluated without a state"
        )
    if reads_no_gradient(solver):
        return (
            "the solver's update reads no gradient, so that its fixed point may be another one (a "
            "proximal step's): give fixed_point=update, or take Unrolled()"
        )
    if isinstance(solver, Iterative):
        further = "solve with more steps, or take Unrolled(), which is exact for any answer"
        if type(solver.update).__module__.startswith("bilevel.updates."):
            return further
        return (
            "if the solver's update is at its fixed point (a multiplicative step's, on a simplex), "
            f"give fixed_point=update; else {further}"
        )
    return (
        "solve it further or, with a set Y and curvatures far from 1, give "
        "fixed_point=updates.Gradient(step) with a step near 1/curvature; if the objective has "
        "kinks (L1), give fixed_point=a proximal step"
    )


def _indefinite(curvature: float, method: str | None) -> str:
    # The others solve an indefinite system as it is: damping would only make the gradient wrong.
    damped = f", give damping above {-curvature:.3g}" if method in (None, "cg") else ""
    return (
        "negative curvature: along some direction the follower's objective curves the wrong way at "
        f"its answer (by {curvature:.3g}), so y* is not its optimum; solve it further{damped}, or "
        "take Unrolled(), which assumes no optimum; if y* is meant to be a saddle point, give "
        "fixed_point=updates.Gradient(1.0)"
    )


def _singular(*, by_cg: bool) -> str:
    gmres = 'take method="gmres", which leaves that direction out, ' if by_cg else ""
    return (
        "singular system: along some direction the follower is flat at its answer, or curves both "
        "ways, so y* is not unique and has no derivative there; make the follower's objective "
        f"strictly convex (add 1e-3 * y.square().sum()), {gmres}or give damping"
    )


def _inaccurate(solution: LinearSolution) -> str:
    error = float(solution.residual.norm() / solution.curvature / solution.value.norm())
    if not error > ACCURATE:
        return ""
    return (
        "the linear system is badly conditioned: by its residual and the smallest curvature met, "
        f"its solution may be off by {error:.2g} of its norm or more, and the gradient with it; "
        "compute in float64, raise max_steps, or give damping"
    )
