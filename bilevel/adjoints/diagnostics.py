"""What may be wrong with the linear system of the implicit adjoint, and with its solution."""

from __future__ import annotations

from bilevel.adjoints.linear import LinearSolution

# Unless a tolerance was given, a system counts as solved if its residual is at most this part of v.
SOLVED = 1e-6
# And its solution as accurate if its error, estimated by ‖residual‖ over the smallest curvature
# met, is at most this part of its norm.
ACCURATE = 1e-2

_MIXED = '; if a sample\'s objective depends on others, solver="gmres"'

_SINGULAR = (
    "singular system: along some direction the follower's objective is flat at its answer, so y* "
    "is not unique and has no derivative there; make the follower's objective strictly convex "
    '(weight decay), take solver="gmres", which leaves that direction out, or give damping'
)


def trouble_with(
    solution: LinearSolution,
    residual: float,
    eps: float,
    *,
    method: str,
    symmetric: bool,
    damping: float,
    tolerance: float | None,
) -> str | None:
    """What a linear solve tells against the gradient.

    Args:
        solution: The solution of (−∂F/∂y + damping) w = v.
        residual: Its norm, relative to that of v.
        eps: The relative rounding of a product.
        method: The linear solver.
        symmetric: Whether F is a gradient, so that its derivative is symmetric.
        damping: See :class:`~bilevel.Implicit`.
        tolerance: The tolerance that was given; None for the default.

    Returns:
        The message of a warning; None if all is well.
    """
    curvature, flat = float(solution.curvature), solution.flat(eps)
    unsolved = not residual <= solved_at(tolerance, eps)
    mixed = solution.value.dim() > 1
    if symmetric and curvature < -flat:
        return _indefinite(curvature - damping, method, mixed)
    if symmetric and curvature <= flat:
        return _SINGULAR if unsolved else None
    if unsolved:
        return (
            f"linear system not solved: its residual is {residual:.3g} of v after "
            f"{solution.products} products, and the gradient's error up to the condition number "
            "times that; raise max_steps, give damping, or take another solver" + _MIXED * mixed
        )
    return _inaccurate(solution) if symmetric and tolerance is None else None


def solved_at(tolerance: float | None, eps: float) -> float:
    """The residual up to which a condition counts as met.

    Args:
        tolerance: The tolerance that was given; None for the default.
        eps: The relative rounding of a product.

    Returns:
        The residual, relative to what it is compared with.
    """
    return max(SOLVED if tolerance is None else tolerance, eps**0.5)


def _indefinite(curvature: float, method: str, mixed: bool) -> str:
    # The others solve an indefinite system as it is: damping would only make the gradient wrong.
    damped = f", give damping above {-curvature:.3g}" if method == "cg" else ""
    return (
        "negative curvature: along some direction the follower's objective curves the wrong way at "
        f"its answer (by {curvature:.3g}), so y* is not its optimum; solve it further{damped}, or "
        "take Unrolled(), which assumes no optimum; if y* is meant to be a saddle point, give "
        "fixed_point=updates.Gradient(1.0)" + _MIXED * mixed
    )


def _inaccurate(solution: LinearSolution) -> str | None:
    error = float(solution.residual.norm() / solution.curvature / solution.value.norm())
    if not error > ACCURATE:
        return None
    return (
        "the linear system is badly conditioned: by its residual and the smallest curvature met, "
        f"its solution may be off by {error:.2g} of its norm or more, and the gradient with it; "
        "compute in float64, raise max_steps, or give damping"
    )
