"""A check of adjoints against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bilevel.adjoints import Adjoint
from bilevel.arguments import count
from bilevel.autograd_graph import vjp
from bilevel.parameters import Parameters
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, networks_of
from bilevel.snapshot import Snapshot
from bilevel.solvers import Solver
from bilevel.testing.requirement import require
from bilevel.tree import from_leaves, ravel, unravel

NOISE = "does the objective compute in lower precision? Then give a larger step"
ROUNDED = "are the differences noise? Then give a leader in float64"


def check_adjoint(
    adjoint: Adjoint,
    solver: Solver,
    follower: FollowerProblem,
    leader: LeaderProblem,
    batch: Batch,
    *,
    tolerance: float = 1e-3,
    step: float | None = None,
    directions: int | None = None,
) -> None:
    """Checks an adjoint's gradient against central differences of θ ↦ L(θ, y*(θ)).

    It solves twice for each element of θ, or of a large leader for each of a few random directions.
    Give a leader in float64, and a solver that converges if the adjoint assumes an optimum. With a
    warm start each solve goes on from where the next one would, a constant.

    Args:
        adjoint: The adjoint under test.
        solver: The solver, which is left as it was.
        follower: The problem.
        leader: The leader, which is left as it was.
        batch: The data.
        tolerance: The largest error allowed, relative to the largest element of the gradient of
            each parameter.
        step: The step of the differences. The default is the cube root of the machine epsilon of
            θ, 6e-6 in float64. Where the objective computes in lower precision than θ, as networks
            do that normalise in float32, differences over so short a step are noise: give 1e-2.
        directions: The number of random directions in each parameter, always the same ones, in
            place of all of its elements. Few find a gradient that is wrong everywhere, not one that
            is wrong in a few elements of many.

    Raises:
        AssertionError: If an error is larger, with the name of the parameter.
        BilevelError: If the number of directions is not positive.

    Example:
        >>> import bilevel
        >>> from bilevel.testing import check_adjoint
        >>> class Shrunk(bilevel.FollowerProblem):
        ...     sense = "min"
        ...     def init(self, batch): return torch.zeros(1000, dtype=torch.float64)
        ...     def objective(self, leader, y, batch):
        ...         return (y - leader.w).square().sum() + y.square().sum()
        >>> class Target(bilevel.LeaderProblem):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.ones(1000, dtype=torch.float64))
        ...     def loss(self, y, batch): return (y - 1).square().sum()
        >>> solver = bilevel.Iterative(bilevel.updates.Gradient(0.25), 1)
        >>> check_adjoint(bilevel.Implicit(), solver, Shrunk(), Target(), None, directions=3)
    """
    if directions is not None:
        count("directions", directions)
    snapshot = Snapshot(leader, solver, *networks_of(follower))
    named = leader.named_parameters()
    theta: Parameters = {n: p for n, p in named if p.requires_grad and p.numel()}
    require(
        bool(theta),
        f"{type(leader).__name__} has no trainable parameter: there is nothing to check",
    )

    kept = solver.kept

    def loss() -> Tensor:
        try:
            with snapshot.restored():  # with the same random numbers each time
                return leader.loss(adjoint.solve(solver, follower, leader, batch).value, batch)
        finally:
            solver.kept = kept

    here = loss()
    # Of a loss without a graph it is zero, or the adjoint has lost it.
    grads = from_leaves(vjp([here], [*theta.values()], [torch.ones_like(here)]), like=theta)
    largest = max(float(grad.abs().max()) for grad in grads.values())
    for name, parameter in theta.items():
        eps = torch.finfo(parameter.dtype).eps
        h = step or eps ** (1 / 3)
        other = NOISE if parameter.dtype == torch.float64 else ROUNDED
        # At most what is allowed of the largest gradient, however short the step.
        rounding = min(100 * eps * float(here.detach().abs()) / h, tolerance * largest)
        allowed = tolerance * float(grads[name].abs().max()) + rounding
        for error in _errors(loss, parameter, grads[name], h, directions):
            require(
                math.isfinite(error),
                f"{adjoint!r}: the loss or the gradient of {name} is not finite: the solve "
                "diverges, or something is divided by 0; check its steps",
            )
            require(
                error <= allowed,
                f"{adjoint!r}: the gradient of {name} is off by {error:.3g} from differences of "
                f"step {h:.1g}: is it wrong, or {other}",
            )


def _errors(
    loss: Callable[[], Tensor],
    parameter: Tensor,
    gradient: Tensor,
    h: float,
    directions: int | None,
) -> Iterator[float]:
    """How far the gradient is off from central differences, along each of some directions."""
    point, slopes = parameter.detach(), ravel(gradient)
    for unit in _units(slopes, directions):
        rise = _rise(loss, parameter, unravel(h * unit, like=point))
        yield float((rise / (2 * h) - unit @ slopes).abs())


def _units(like: Tensor, directions: int | None) -> Iterator[Tensor]:
    """Vectors of norm 1: one for each element, or so many random ones."""
    if directions is None:
        for at in range(len(like)):
            yield torch.zeros_like(like).index_fill_(0, torch.tensor([at], device=like.device), 1)
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(directions):
        drawn = torch.randn(len(like), generator=generator).to(like)
        yield drawn / drawn.norm()


@torch.no_grad()
def _rise(loss: Callable[[], Tensor], parameter: Tensor, move: Tensor) -> Tensor:
    """The loss after a move less that after its opposite, in place, as others may hold it too."""
    before = parameter.clone()
    try:
        parameter.copy_(before + move)
        above = loss()
        parameter.copy_(before - move)
        return above - loss()
    finally:
        parameter.copy_(before)
