"""The leader's gradient by finite differences, to check an adjoint by."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.adjoints import Adjoint
from bilevel.parameters import Parameters, with_parameters
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.replay import Moment
from bilevel.solvers import Solver


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

    Two solves for each number of θ: give a small leader in float64, no warm start, and a solver
    that converges where the adjoint asks for an optimum.

    Args:
        adjoint: The adjoint under test.
        solver: What answers.
        follower: The problem.
        leader: The leader, which is left as it was.
        batch: The data.
        tolerance: How far off the gradient may be, in units of its largest number.

    Raises:
        AssertionError: If it is further off, with the name of the parameter.
    """
    moment = Moment(leader, solver)
    theta = {name: p for name, p in leader.named_parameters() if p.requires_grad}

    def loss(given: Parameters) -> Tensor:
        def call() -> Tensor:
            return leader.loss(adjoint.solve(solver, follower, leader, batch).value, batch)

        with moment.again():  # with the same random numbers each time
            return with_parameters(leader, given, call)

    found = torch.autograd.grad(loss({}), list(theta.values()), materialize_grads=True)
    allowed = tolerance * max(float(slope.abs().max()) for slope in found)
    for (name, parameter), slope in zip(theta.items(), found, strict=True):
        point, step = parameter.detach(), torch.finfo(parameter.dtype).eps ** (1 / 3)
        for number, ours in zip(torch.eye(point.numel()).to(point), slope.flatten(), strict=True):
            move = step * number.view_as(point)
            with torch.no_grad():
                rise = loss({name: point + move}) - loss({name: point - move})
            off = float((rise / (2 * step) - ours).abs())
            assert off <= allowed, f"{adjoint!r}: the gradient of {name} is off by {off:.3g}"
