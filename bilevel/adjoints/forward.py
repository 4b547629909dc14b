"""The adjoint that differentiates the solve forward, one number of θ after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bilevel.adjoints.answered import Answered
from bilevel.adjoints.pullback import Pullback, Slopes
from bilevel.adjoints.unrolled import check_steps
from bilevel.errors import BilevelError
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Solver
from bilevel.tree import Value, leaves


class Forward(Pullback):
    r"""Differentiates through the solver's steps, forward (Franceschi et al., 2017, Forward-HG).

    .. math:: \frac{dy_{k+1}}{dθ_i} = \frac{∂T}{∂y}\frac{dy_k}{dθ_i} + \frac{∂T}{∂θ_i}

    The gradient is that of :class:`~bilevel.Unrolled`, in the memory of one step, however many
    there are. In the backward pass it solves again for each of the leader's numbers: a means for
    leaders of a few (a learning rate, a weight decay). φ is trained as without it, through the
    points and not through the gradients.

    Args:
        limit: The most numbers that the leader may have.

    Raises:
        BilevelError: In the solve, if the leader has more, or the solver cannot be differentiated
            through.

    Example:
        >>> Forward()
        Forward(limit=100)
    """

    def __init__(self, *, limit: int = 100) -> None:
        self.limit = limit

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Whether there are steps, each can be differentiated, and it ends."""
        check_steps(self, solver)
        size = sum(p.numel() for p in leader.parameters() if p.requires_grad)
        if size > self.limit:
            raise BilevelError(
                f"{self!r} would solve {size} times: forward mode takes a solve for each of the "
                "leader's numbers; take Unrolled(recompute=True), or raise the limit"
            )
        if not solver.repeatable:
            raise BilevelError(
                f"{self!r} solves again for each of the leader's numbers, but "
                f"{type(solver).__name__} goes on from its last answer: give it warm_start=False"
            )

    def pull(self, problem: Answered, v: Value) -> Slopes:
        """Solves once more for each number, and takes its derivative's product with v."""
        slopes: Slopes = {}
        for name in problem.wanted:
            size = problem.theta[name].numel()
            products = [self._product(problem, v, name, i) for i in range(size)]
            known = [product for product in products if product is not None]
            slopes[name] = torch.stack(known).view_as(problem.theta[name]) if known else None
        return slopes

    def _product(self, problem: Answered, v: Value, name: str, place: int) -> Tensor | None:
        """vᵀ dy/dθ_i; None where nothing of y depends on the parameter."""
        point = problem.theta[name].detach()
        direction = point.new_zeros(point.numel())
        direction[place] = 1
        # Autograd switches forward mode off within its functions, and this is called by one.
        with forward_ad._set_fwd_grad_enabled(True), forward_ad.dual_level():
            theta = {name: forward_ad.make_dual(point, direction.view_as(point))}
            y = problem.at(theta, problem.solver.answer)
            tangents = [forward_ad.unpack_dual(leaf).tangent for leaf in leaves(y)]
        pairs = [(t, w) for t, w in zip(tangents, leaves(v), strict=True) if t is not None]
        return torch.stack([(t * w).sum() for t, w in pairs]).sum() if pairs else None

    def __repr__(self) -> str:
        return f"Forward(limit={self.limit})"
