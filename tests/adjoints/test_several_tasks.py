"""Solves of several tasks before one backward pass, as in meta-learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import Adjoint, FollowerProblem, Forward, Implicit, Iterative, Penalty, Sampled
from bilevel.updates import Gradient
from tests.valleys import F64, Numbers

TASKS = 1.0, 5.0, 1.0


class Scaled(FollowerProblem):
    """min over y of ½ ‖y − task · θ‖², whose task is an attribute or in the batch."""

    sense = "min"
    task: float

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(3, dtype=F64)

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        task = self.task if batch is None else batch["task"]
        return (y - task * leader.theta).square().sum() / 2


class Wrapped(FollowerProblem):
    """Finds at another follower what it has not itself, and has slots."""

    __slots__ = ("inner",)

    def __init__(self, inner: FollowerProblem) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def init(self, batch: Any) -> Tensor:
        return self.inner.init(batch)

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        return self.inner.objective(leader, y, batch)


def test_a_follower_that_looks_up_attributes_elsewhere() -> None:
    leader, inner = Numbers(3), Scaled()
    inner.task, Wrapped.sense = 2.0, "min"
    solver, wrapped = Iterative(Gradient(0.5), 40), Wrapped(inner)
    solved = Implicit().solve(solver, wrapped, leader, None)
    (slope,) = torch.autograd.grad(solved.value.sum(), list(leader.parameters()))
    torch.testing.assert_close(slope, torch.full((3,), 2.0, dtype=F64))


@pytest.mark.parametrize("within", ["follower", "batch"])
@pytest.mark.parametrize(
    ("adjoint", "tolerance"),
    [
        (Forward(), 1e-9),
        (Implicit(), 1e-9),
        (Penalty(10.0), 1e-4),
        (Sampled(1e-3, samples=99), 0.4),
    ],
    ids=repr,
)
def test_each_solve_is_differentiated_at_its_own_task(
    adjoint: Adjoint, tolerance: float, within: str
) -> None:
    """Σ ‖y*‖² / 2 with y* = task · θ."""
    torch.manual_seed(0)
    leader, follower, solver = Numbers(3), Scaled(), Iterative(Gradient(0.5), 40)
    batch: dict[str, float] = {}
    total = torch.zeros((), dtype=F64)
    for task in TASKS:
        follower.task = batch["task"] = task
        solved = adjoint.solve(solver, follower, leader, batch if within == "batch" else None)
        total = total + solved.value.square().sum() / 2
    (slope,) = torch.autograd.grad(total, list(leader.parameters()))
    exact = sum(task**2 for task in TASKS) * leader.theta.detach()
    torch.testing.assert_close(slope, exact, rtol=tolerance, atol=0)
