"""The adjoint that differentiates the solve in forward mode."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bilevel.adjoints.pullback import Gradients, Pullback
from bilevel.adjoints.solved import SolvedProblem
from bilevel.adjoints.unrolled import check_steps
from bilevel.arguments import count
from bilevel.errors import BilevelError, first_line
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Solver
from bilevel.solvers.checks import check_repeatable
from bilevel.tree import Value, as_real, leaves, ravel, unravel


class Forward(Pullback):
    r"""Forward-mode differentiation through the solver's steps (Franceschi et al., 2017).

    .. math:: \frac{dy_{k+1}}{dθ_i} = \frac{∂T}{∂y}\frac{dy_k}{dθ_i} + \frac{∂T}{∂θ_i}

    Their Forward-HG. The gradient is that of :class:`~bilevel.Unrolled`, in the memory of one step,
    whatever the number of steps. The backward pass solves once for each element of θ: suitable for
    leaders of a few (a learning rate, a weight decay). φ is trained as with
    :class:`~bilevel.Detached`, through the points and not through the gradients.

    Args:
        limit: The largest number of elements that θ may have.

    Raises:
        BilevelError: In the solve, if θ has more, or the solver cannot be differentiated through.

    Example:
        >>> Forward(limit=10)
        Forward(limit=10)
    """

    def __init__(self, *, limit: int = 100) -> None:
        self.limit = count("limit", limit)

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the solver's steps are differentiable and repeatable, and the limit."""
        check_steps(self, solver)
        size = sum(p.numel() for p in leader.parameters() if p.requires_grad)
        if size > self.limit:
            raise BilevelError(
                f"{self!r} would solve {size} times: forward mode takes a solve for each element "
                "of the leader's parameters; take Unrolled(recompute=True), or raise the limit"
            )
        use = f"{self!r} solves again for each element of the leader's parameters"
        check_repeatable(solver, use)

    def pull(self, problem: SolvedProblem, v: Value) -> Gradients:
        """Solves once for each element of θ, and multiplies the derivative of y* by v."""
        grads: Gradients = {}
        for name in problem.wanted:
            point = problem.theta[name]
            units = torch.eye(len(ravel(point))).to(ravel(point))
            products = [self._product(problem, v, name, unit) for unit in units]
            known = [product for product in products if product is not None]
            grads[name] = leaves(unravel(torch.stack(known), like=point))[0] if known else None
        return grads

    def _product(self, problem: SolvedProblem, v: Value, name: str, unit: Tensor) -> Tensor | None:
        """vᵀ dy/dθ along a unit vector; None if y does not depend on the parameter."""
        point = problem.theta[name]
        (direction,) = leaves(unravel(unit, like=point))
        # torch.autograd.Function, within which this runs, disables forward mode.
        with forward_ad._set_fwd_grad_enabled(True), forward_ad.dual_level():
            theta = {name: forward_ad.make_dual(point, direction)}
            try:
                y = problem.evaluate(theta, problem.solver.answer)
            except RuntimeError as error:
                if "forward AD" in str(error) or "ZeroTensor" in str(error):
                    raise BilevelError(
                        f"{self!r}: torch cannot take the step's forward derivative "
                        f"({first_line(error)}): it lacks that of some operations, such as "
                        "mse_loss and huber_loss; write them out, (a - b).square().mean(), or take "
                        "Unrolled(recompute=True)"
                    ) from error
                raise
            tangents = [forward_ad.unpack_dual(leaf).tangent for leaf in leaves(y)]
        pairs = zip(tangents, leaves(v), strict=True)
        terms = [(as_real(t) * as_real(w)).sum() for t, w in pairs if t is not None]
        return torch.stack(terms).sum() if terms else None
