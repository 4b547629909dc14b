"""A check of adjoints against finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.adjoints import Adjoint
from bilevel.parameters import Parameters, with_parameters
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.snapshot import Snapshot
from bilevel.solvers import Solver
from bilevel.tree import from_leaves, leaves, ravel, unravel


def check_adjoint(
    adjoint: Adjoint,
    solver: Solver,
    follower: FollowerProblem,
    leader: LeaderProblem,
    batch: Batch,
    *,
    tolerance: float = 1e-3,
) -> None:
    """Checks an adjoint's gradient against central differences of θ ↦ L(θ, y*(θ)).

    It solves twice for each element of θ: give a small leader in float64, no warm start, and a
    solver that converges if the adjoint assumes an optimum.

    Args:
        adjoint: The adjoint under test.
        solver: The solver.
        follower: The problem.
        leader: The leader, which is left as it was.
        batch: The data.
        tolerance: The largest error allowed, relative to the gradient's largest element.

    Raises:
        AssertionError: If an error is larger, with the name of the parameter.
    """
    snapshot = Snapshot(leader, solver)
    theta: Parameters = {n: p for n, p in leader.named_parameters() if p.requires_grad}
    assert theta, f"{type(leader).__name__} has no trainable parameter: there is nothing to check"

    def loss(given: Parameters) -> Tensor:
        def call() -> Tensor:
            return leader.loss(adjoint.solve(solver, follower, leader, batch).value, batch)

        with snapshot.restored():  # with the same random numbers each time
            return with_parameters(leader, given, call)

    found = torch.autograd.grad(loss({}), list(theta.values()), allow_unused=True)
    grads = leaves(from_leaves(found, like=theta))
    allowed = tolerance * max(float(grad.abs().max()) for grad in grads)
    for (name, parameter), grad in zip(theta.items(), grads, strict=True):
        point, step = parameter.detach(), torch.finfo(parameter.dtype).eps ** (1 / 3)
        slopes = ravel(grad)
        for unit, actual in zip(torch.eye(len(slopes)).to(slopes), slopes, strict=True):
            move = step * unravel(unit, like=point)
            with torch.no_grad():
                rise = loss({name: point + move}) - loss({name: point - move})
            error = float((rise / (2 * step) - actual).abs())
            assert error <= allowed, f"{adjoint!r}: the gradient of {name} is off by {error:.3g}"
