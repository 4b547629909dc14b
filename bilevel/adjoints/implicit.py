"""The adjoint that differentiates the follower's optimality condition, not the solver's steps."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from bilevel import linear
from bilevel.adjoints.condition import (
    decays,
    epsilon,
    reads_no_gradient,
    residual_of,
    step_size,
    vector,
)
from bilevel.adjoints.diagnostics import SOLVED, check_system, remedy_for, solved_at
from bilevel.adjoints.pullback import Pullback
from bilevel.adjoints.solved import Gradients, SolvedProblem
from bilevel.arguments import count, instance_of, one_of
from bilevel.autograd_graph import vjp
from bilevel.errors import BilevelError
from bilevel.linear import LinearSolution
from bilevel.linear.system import LinearSolver, Product
from bilevel.problem import FollowerProblem, LeaderProblem, overrides
from bilevel.solvers import Iterative, Oracle, Solver
from bilevel.tree import Value, from_leaves, leaves, tree_map, unravel
from bilevel.updates.base import Update, check_differentiable
from bilevel.updates.gradient import Gradient

Method = Literal["cg", "neumann", "gmres", "exact"]
"""How the linear system is solved."""

SOLVERS: dict[Method, LinearSolver] = {
    "cg": linear.conjugate_gradient,
    "neumann": linear.neumann,
    "gmres": linear.gmres,
    "exact": linear.exact,
}

# Those that solve a system for each sample at once.
BY_SAMPLE: tuple[Method, ...] = ("cg", "exact")

# The tolerance of the linear solve in float64 unless one is given: a Gaussian process's kernel may
# have a condition number of 1e7, and up to a residual of 1e-6 its small eigenvalues are not met.
PRECISE = 1e-12

# An answer counts as optimal if its residual is at most this part of the start's.
STATIONARY = 1e-2
# And if its distance from the optimum, estimated by ‖F‖ over the smallest singular value met, is at
# most this part of its norm.
FAR = 3e-2

_NOT_STATIONARY = "the follower is not stationary at its answer"
_ILL_CONDITIONED = "the follower is badly conditioned"


class Implicit(Pullback):
    r"""The implicit function theorem at the answer (Bengio, 2000; Pedregosa, 2016).

    The optimality condition F(θ, y*) = ∇_y q = 0 differentiates to

    .. math:: \Bigl(\frac{dy^*}{dθ}\Bigr)^{\!T} v = \Bigl(\frac{∂F}{∂θ}\Bigr)^{\!T} w, \qquad
              -\Bigl(\frac{∂F}{∂y}\Bigr)^{\!T} w = v

    If Y has constraints, or with ``fixed_point``, the condition is F = (T(θ, y) − y) / η, where T
    is an update step followed by the projection: the answer is differentiated through the
    projection. η is the size of a gradient step, so that F does not depend on it, or else 1.

    Where F is the gradient of an objective ``(B,)`` and y one tensor, there is a linear system for
    each sample, and ``"cg"`` and ``"exact"`` solve all at once. With ``leader_mode="train"``, since
    batch normalisation mixes the samples, they solve one for all.

    Exact for an exact answer, however it was computed, in the memory of one gradient. Each product
    costs about two gradient evaluations. The statistics are ``residual`` (of the linear system,
    relative to v; if ``"cg"`` solves one, that of the recursion, which has no rounding in it),
    ``curvature`` (the smallest met, without damping: where F is the gradient, y* is no strict
    optimum if it is 0 or less), ``stationarity`` (‖F‖), ``gradient_norm`` at the answer where F is
    the gradient, and ``evaluations`` (gradients of the objective and products with its second
    derivatives).

    Args:
        method: ``"cg"`` for a strict optimum; ``"gmres"`` for any F; ``"neumann"`` adds terms of
            the series of T, which must be a contraction; ``"exact"`` computes the matrix, by m
            products for m elements of y, or of a sample's. By default ``"cg"``, or ``"gmres"``
            with a fixed point.
        tolerance: The linear solve ends when its residual is at most this times the norm of v. The
            gradient's relative error is at worst about the condition number times this. By default
            1e-6, and 1e-12 where y is float64. If it is given, there is no warning of a badly
            conditioned linear system.
        max_steps: The largest number of steps of the linear solve; of ``"neumann"``, of terms of
            the series, i + 1 for the i of Lorraine et al. (2020), Algorithm 3.
        damping: Added to the diagonal of −∂F/∂y, with gradient steps of any size to the Hessian, if
            Y is the whole space or a box: makes a flat follower solvable, at a bias.
        warm_start: Start from the last linear solve's solution, if θ and the batch change slowly.
            A ``"neumann"`` solve then takes its steps where v = 0 too.
        fixed_point: The update that defines T; by default the solver's own if that is a plain
            gradient step, else one of size 1. It is evaluated without a state, so y must hold all
            that a step needs: the dual variables of ADMM too, ``y = {"z": …, "u": …}``.

    Raises:
        BilevelError: If an argument is out of range; in the solve, if the linear solver does not
            suit the problem.

    Example:
        >>> Implicit(method="neumann", max_steps=50)
        Implicit(method='neumann', max_steps=50)
    """

    reaches_batch = True

    def __init__(
        self,
        method: Method | None = None,
        *,
        tolerance: float | None = None,
        max_steps: int = 100,
        damping: float = 0.0,
        warm_start: bool = False,
        fixed_point: Update | None = None,
    ) -> None:
        if not (damping >= 0 and (tolerance is None or tolerance >= 0)):
            raise BilevelError(
                f"tolerance is {tolerance} and damping {damping}: neither can be negative; give "
                "0 or more"
            )
        if fixed_point is not None:
            instance_of("fixed_point", fixed_point, Update, "updates.Gradient(step) or your own")
            check_differentiable(fixed_point)
        self.method = None if method is None else one_of("method", method, SOLVERS)
        self.tolerance = tolerance
        self.max_steps = count("max_steps", max_steps)
        self.damping = damping
        self.warm_start = warm_start
        self.fixed_point = fixed_point
        self.pulls_zero = warm_start and method == "neumann"  # w then still takes its steps
        self._kept: Tensor | None = None
        self._scale: Tensor | None = None

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the linear solver suits the problem."""
        step = self._step(solver, follower)
        if self.method == "cg" and step is not None:
            raise BilevelError(
                f"{self!r} cannot solve for {type(follower).__name__}: conjugate gradients need a "
                "symmetric matrix, and that of a projected or fixed-point step is not; give "
                'method="gmres" or "exact"'
            )
        if self.method == "neumann" and step is None:
            rule = type(getattr(solver, "update", solver)).__name__
            raise BilevelError(
                f"{self!r} has no step to make a series of: {rule} is no plain gradient step; "
                "give fixed_point=updates.Gradient(step)"
            )
        if decays(solver):
            self.warn_of_decay()

    def warn_of_decay(self) -> None:
        """Warns once that the answer is moved by a weight decay too, which F does not know."""
        self.warn_once(
            self.fixed_point is None,
            "weight decay of y is no part of the objective: the answer is the optimum of both, and "
            "the implicit gradient that of the objective alone; add the decay to the objective in "
            "its place, or give fixed_point=updates.Optimizer(torch.optim.SGD, lr=…, "
            "weight_decay=…)",
        )

    def pull(self, problem: SolvedProblem, v: Value) -> Gradients:
        """Solves the linear system for w, and multiplies it by ∂F/∂θ."""
        step = self._step(problem.solver, problem.follower)
        theta = problem.variables()
        y = tree_map(lambda leaf: leaf.detach().requires_grad_(), problem.y)
        with torch.enable_grad():
            residual, parts, stats = problem.evaluate(theta, lambda own: residual_of(own, step, y))
        self.check_lent(problem, leaves(residual))

        def product(w: Tensor) -> Tensor:
            weights = leaves(unravel(w.flatten(), like=v))
            grads = vjp(leaves(residual), leaves(y), weights, retain_graph=True)
            image = vector(from_leaves(grads, like=y)).view_as(w)
            return self.damping * w - image if self.damping else -image

        b, method = vector(v), self.method or ("cg" if step is None else "gmres")
        # In "train", batch normalisation mixes the samples.
        if parts > 1 and method in BY_SAMPLE and problem.solver.leader_mode == "eval":
            b = b.view(parts, -1)
        solution = self._solve(method, product, b, step_size(step))
        problem.stats["evaluations"] += solution.products
        problem.record(stationarity=vector(residual).norm(), **stats)
        check_system(self, problem, solution, b, symmetric=step is None)
        self._check_optimal(problem, step, residual, solution)
        w = leaves(unravel(solution.value.flatten(), like=v))
        grads = vjp(leaves(residual), [*theta.values()], w)
        return dict(zip(theta, grads, strict=True))

    def _solve(self, method: Method, product: Product, b: Tensor, size: float) -> LinearSolution:
        """Solves the linear system; where b has a row for each sample, that of each."""
        solve = partial(linear.neumann, size=size) if method == "neumann" else SOLVERS[method]
        kept = self._kept if self.warm_start else None  # a loaded state may hold one
        start = kept.to(b).view_as(b) if kept is not None and kept.numel() == b.numel() else None
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = PRECISE if b.dtype == torch.float64 else SOLVED
        solution = solve(product, b, self.max_steps, tolerance=tolerance, start=start)
        if start is not None and start.norm() > 100 * solution.value.norm():
            # Its rounding is much of the solution, which the residual of a recursion does not show.
            spent = solution.products
            solution = solve(product, b, self.max_steps, tolerance=tolerance, start=None)
            solution = solution._replace(products=solution.products + spent)
        if self.warm_start:
            self._kept = solution.value.flatten()
        if b.dim() > 1:  # samples that depend on each other show in a product with all of them only
            residual, products = b - product(solution.value), solution.products + 1
            solution = solution._replace(residual=residual, products=products)
        return solution

    def _step(self, solver: Solver, follower: FollowerProblem) -> Update | None:
        """The update of the fixed-point map; None if the condition is a zero gradient."""
        if self.fixed_point is not None:
            return self.fixed_point
        own = solver.update if isinstance(solver, Iterative) else None
        own = own if isinstance(own, Gradient) else None
        if self.method == "neumann":
            return own
        return own or Gradient(1.0) if overrides(follower, "project") else None

    def _check_optimal(
        self, problem: SolvedProblem, step: Update | None, residual: Value, solution: LinearSolution
    ) -> None:
        """Warns if the condition does not hold at the answer, or holds far from the optimum too."""
        if self.fixed_point is None and decays(problem.solver):
            return  # of which it has been told, and why
        y, eps, norm = vector(problem.y), epsilon(problem.y), vector(residual).norm()
        rounding = 100 * eps * solution.largest  # of F, relative to ‖y‖
        # A fixed point of steps that read no gradient may be near a zero of it without being one.
        other = self.fixed_point is None and reads_no_gradient(problem.solver)
        limit = solved_at(self.tolerance, eps) if other else STATIONARY
        if other and norm <= rounding * y.norm():
            return
        scale = self._scale
        # Before a warning that of this problem: another one may have had another scale.
        if (scale is None or norm / scale > limit) and _NOT_STATIONARY not in self._warned:
            scale = _residual_at_start(problem, step, rounding)
        if scale is None:
            return
        self._scale, ratio = scale, float(norm / scale)
        size = y.norm().clamp(min=torch.finfo(y.dtype).tiny)
        distance = float(norm / (solution.sigma - self.damping) / size)
        part = f"{distance:.2g} of" if distance < 1 else "more than"  # near 0 all is far
        remedy = remedy_for(problem.solver, self.fixed_point)
        self.warn_once(
            ratio > limit,
            f"{_NOT_STATIONARY}: the residual of its optimality condition is {ratio:.2g} of that "
            f"at the start, and the implicit gradient is exact at an optimum only; {remedy}",
        )
        known = float(solution.sigma) > solution.negligible(eps)
        topic = _ILL_CONDITIONED if scale.isfinite() else _NOT_STATIONARY
        self.warn_once(
            ratio <= limit and distance > FAR and known,
            f"{topic}: by the residual of its optimality condition and the smallest singular value "
            f"met, its answer may be off by {part} its norm, and the implicit gradient "
            f"is exact at an optimum only; {remedy}",
        )

    def state_dict(self) -> dict[str, Any]:
        """The last linear solve's solution, the residual's scale, and what it has warned of."""
        return {"kept": self._kept, "scale": self._scale, "warned": sorted(self._warned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned."""
        self._kept, self._scale = state["kept"], state["scale"]
        self._warned = set(state["warned"])


def _residual_at_start(
    problem: SolvedProblem, step: Update | None, rounding: Tensor
) -> Tensor | None:
    """‖F‖ where the solve began; None if it is rounding, and infinite if that is the answer."""
    with torch.no_grad():
        start = problem.start
        if start is None or not problem.solver.repeatable:  # then it is near the optimum
            start = problem.evaluate({}, Oracle.init)
        there, *_ = problem.evaluate({}, lambda own: residual_of(own, step, start))
    point, scale = vector(start), vector(there).norm()
    if scale <= rounding * point.norm():
        return None  # the start is optimal: nothing to compare with
    # The weights of a Parametric network may be their own start: the distance tells alone.
    return torch.full_like(scale, torch.inf) if torch.equal(point, vector(problem.y)) else scale
