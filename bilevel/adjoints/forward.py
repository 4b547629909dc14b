"""The adjoint that differentiates the solve in forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bilevel.adjoints.continued import Continued
from bilevel.adjoints.solved import Gradients, SolvedProblem
from bilevel.adjoints.unrolled import Unrolled, check_steps
from bilevel.arguments import count
from bilevel.autograd_graph import check_no_dead_ends, check_second_derivatives
from bilevel.containers import partition
from bilevel.errors import BilevelError, first_line
from bilevel.parameters import lent
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Oracle, Solver
from bilevel.tree import (
    Value,
    as_real,
    from_leaves,
    leaves,
    ravel,
    requiring_grad,
    tree_map,
    unravel,
)
from bilevel.updates.base import State, Update

Tangents = list[Tensor | None]
"""Derivatives, along one direction of θ, of the tensors that a solver has kept."""


class Forward(Continued):
    r"""Forward-mode differentiation through the solver's steps (Franceschi et al., 2017).

    .. math:: \frac{dy_{k+1}}{dθ_i} = \frac{∂T}{∂y}\frac{dy_k}{dθ_i} + \frac{∂T}{∂θ_i}

    Their Forward-HG. The gradient is that of :class:`~bilevel.Unrolled`, in the memory of one step,
    whatever the number of steps. The backward pass solves once for each element of θ: suitable for
    leaders of a few (a learning rate, a weight decay). φ is trained as with
    :class:`~bilevel.Detached`, through the points and not through the gradients.

    With a warm-started solver the derivative goes on where that of the last solve has ended (their
    RTHO): solves of a few steps have the gradient of all steps since the start, taken at the θ of
    their time. It takes a copy of y, and of the update's state, for each element of θ.

    Args:
        limit: The largest number of elements that θ may have.

    Raises:
        BilevelError: In the solve, if θ has more, or the solver cannot be run again or
            differentiated through; in the first backward pass, if the solve leads elsewhere when it
            is repeated, as with the random numbers of a ``torch.Generator`` or numpy.

    Example:
        >>> Forward(limit=10)
        Forward(limit=10)
    """

    unused_remedy = Unrolled.unused_remedy

    def __init__(self, *, limit: int = 100) -> None:
        self.limit = count("limit", limit)
        self._checked = False

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the solver's steps are differentiable and repeatable, and the limit."""
        super().check(solver, follower, leader)
        check_steps(self, solver)
        size = sum(p.numel() for p in leader.parameters() if p.requires_grad)
        if size > self.limit:
            raise BilevelError(
                f"{self!r} would solve {size} times: forward mode takes a solve for each element "
                "of the leader's parameters; take Unrolled(recompute=True), or raise the limit"
            )

    def pull(self, problem: SolvedProblem, v: Value) -> Gradients:
        """Solves once for each element of θ, and multiplies the derivative of y* by v."""
        self.check_lent(problem)
        grads: dict[str, Tensor | None] = {}
        started, ended = self.known_at_start(problem), {}
        for name in problem.wanted:
            point = problem.theta[name]
            units = torch.eye(len(ravel(point))).to(ravel(point))
            starts = started[name] if started else [None] * len(units)
            pairs = [
                self._product(problem, v, name, *one) for one in zip(units, starts, strict=True)
            ]
            known = [product for product, _ in pairs if product is not None]
            grads[name] = unravel(torch.stack(known), like=point) if known else None
            ended[name] = [tangents for _, tangents in pairs]
        self.remember(problem, ended)
        return grads

    def _product(
        self, problem: SolvedProblem, v: Value, name: str, unit: Tensor, start: Tangents | None
    ) -> tuple[Tensor | None, Tangents]:
        """vᵀ dy/dθ along a unit vector, None if it does not move y, and that of what is kept."""
        point = problem.theta[name]
        # torch.autograd.Function, within which this runs, disables forward mode.
        with forward_ad._set_fwd_grad_enabled(True), forward_ad.dual_level():
            theta = {name: forward_ad.make_dual(point, unravel(unit, like=point))}
            solve = partial(_answer, problem, _with_tangents(problem.kept_before, start))
            try:
                y, end, began = problem.evaluate(theta, solve, kind=ForwardOracle)
            except RuntimeError as error:
                signs = "forward AD", "forward mode AD", "ZeroTensor"
                if any(sign in str(error) for sign in signs):
                    raise BilevelError(
                        f"{self!r}: torch cannot take the step's forward derivative "
                        f"({first_line(error)}): it lacks that of some operations, such as "
                        "cdist and torch.func.hessian (jacrev twice has one), in updates and "
                        "projections; write them out, or take Unrolled(recompute=True)"
                    ) from error
                raise
            tangents, ended = ([*map(_tangent, tree)] for tree in (leaves(y), partition(end)[0]))
        if not self._checked:  # once: this waits for the device
            self._check_repeated(problem.y, y, began)
            self._checked = True
        pairs = zip(tangents, leaves(v), strict=True)
        terms = [(as_real(t) * as_real(w)).sum() for t, w in pairs if t is not None]
        return torch.stack(terms).sum() if terms else None, ended

    def _check_repeated(self, once: Value, again: Value, start: Value | None) -> None:
        """Raises if the repeated solve has led elsewhere, by more than rounding."""
        end, off = ravel(once), ravel(tree_map(torch.sub, once, again))
        moved = end
        if start is not None and ravel(start).shape == end.shape:  # a path is longer than its start
            moved = ravel(tree_map(torch.sub, once, start))
        rounding = 1e3 * torch.finfo(end.dtype).eps * end.norm()
        if off.norm() > 1e-2 * moved.norm() + rounding:
            raise BilevelError(
                f"{self!r}: the solve led elsewhere when it was repeated, so that the gradient "
                "would be that of another solve; draw noise and minibatches by torch's global "
                "random numbers (not from a DataLoader, a Generator or numpy), let an update "
                "return its state (not keep it in self), or take Unrolled()"
            )


def _answer(problem: SolvedProblem, start: Any, oracle: Oracle) -> tuple[Value, Any, Value | None]:
    """The answer, what a warm-started solver keeps of it, and the point where it began."""
    y, end = problem.going_on_from(start, partial(problem.solver.answer, oracle))
    return y, end, oracle.start


def _tangent(leaf: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(leaf).tangent


def _with_tangents(kept: Any, tangents: Tangents | None) -> Any:
    """What a solver has kept, with these derivatives."""
    if tangents is None:
        return kept
    parts, rebuild = partition(kept)
    pairs = zip(parts, tangents, strict=True)
    return rebuild(part if t is None else forward_ad.make_dual(part, t) for part, t in pairs)


class ForwardOracle(Oracle):
    """An oracle whose gradients have a forward derivative: products with second derivatives.

    Those that torch's forward mode takes of a gradient are wrong for some objectives (``solve`` and
    ``logdet`` compute it from factors that have no tangent), do not exist for others
    (``mse_loss``), and keep the memory of each step until the end of the solve.
    """

    def advance(self, update: Update, y: Value, state: State, steps: int) -> tuple[Value, State]:
        """Takes steps from points that require a gradient, as in reverse mode: some updates ask."""
        for _ in range(steps):
            y, state = super().advance(update, tree_map(requiring_grad, y), state, 1)
        return y, state

    def _objective_and_gradient(self, y: Value) -> tuple[Tensor, Value]:
        """The objective, detached and with its own sign, and the gradient of the gain."""
        points = [forward_ad.unpack_dual(leaf) for leaf in leaves(y)]
        theta = {n: forward_ad.unpack_dual(p) for n, p in self.leader.named_parameters()}
        moved = {name: dual for name, dual in theta.items() if dual.tangent is not None}
        duals = [*points, *moved.values()]
        with torch.enable_grad():
            inputs = [dual.primal.detach().requires_grad_() for dual in duals]
            point = from_leaves(inputs[: len(points)], like=y)
            given = dict(zip(moved, inputs[len(points) :], strict=True))
            with lent(self.leader, given):
                value = self._objective(point)
                signs = torch.full_like(value, self.follower.sign)
                if not self.evaluations:  # once a solve, as the other check
                    check_second_derivatives(value, inputs[: len(points)])
                # Within: checkpointed layers are computed again with these parameters.
                grads = torch.autograd.grad(
                    value, inputs, signs, create_graph=True, materialize_grads=True
                )
        if not self.evaluations:  # once a solve: it walks through the graph
            check_no_dead_ends(grads)
        self._check_no_tangents(grads)
        # Contiguous: that of a sum is one number, expanded, of which forward mode makes no dual.
        gradient = [grad.detach().contiguous() for grad in grads[: len(points)]]
        products = _products(grads, [dual.tangent for dual in duals], inputs[: len(points)])
        if products:
            gradient = [
                forward_ad.make_dual(*pair) for pair in zip(gradient, products, strict=True)
            ]
        self.record(value.detach(), from_leaves(gradient, like=y))
        return value.detach(), from_leaves(gradient, like=y)

    def _check_no_tangents(self, grads: Sequence[Tensor]) -> None:
        """Refuses an objective that holds what has a derivative of its own."""
        if any(_tangent(grad) is not None for grad in grads):
            raise BilevelError(
                f"{type(self.follower).__name__}.objective reads a tensor that depends on the "
                "leader, beside the leader and y that it is given, such as the answer of another "
                "solve: Forward() would lack that part of the derivative; take Unrolled(), or make "
                "it a part of y"
            )


def _products(
    grads: Sequence[Tensor], tangents: Sequence[Tensor | None], y: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The rows of y of the Hessian, which is symmetric, times the tangents; empty if none moves."""
    pairs = zip(grads, tangents, strict=True)
    # Without a graph: constants, such as the zeros of what the objective does not use.
    moving = [(grad, t) for grad, t in pairs if t is not None and grad.grad_fn is not None]
    if not moving:
        return ()
    parts, directions = zip(*moving, strict=True)
    return torch.autograd.grad(parts, y, directions, materialize_grads=True)
