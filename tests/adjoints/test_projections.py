"""Projections that an adjoint differentiates: by a formula, by bisection, and by both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bilevel import FollowerProblem, Implicit, Iterative, LeaderProblem, Unrolled
from bilevel.updates import Gradient
from tests.valleys import F64

PAGE = Path(__file__).parents[2] / "docs" / "adjoints.md"
(NEWTON,) = re.findall(r"```python\n(tau = .*?)```", PAGE.read_text(), re.DOTALL)
N = 12


def threshold(y: Tensor) -> Tensor:
    """τ with Σ max(y − τ, 0) = 1, by sorting."""
    ordered = y.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(y) + 1)
    return excess[(ordered > excess).sum() - 1]


@torch.no_grad()
def bisected(y: Tensor) -> Tensor:
    low, high = y.min() - 1, y.max()
    for _ in range(60):
        tau = (low + high) / 2
        low, high = (tau, high) if (y - tau).clamp(min=0).sum() > 1 else (low, tau)
    return tau


class Weights(FollowerProblem):
    """max over w in the simplex of ⟨w, losses⟩ − t ‖w‖²: robust over groups."""

    sense = "max"

    def __init__(self, newton: bool) -> None:
        self.newton = newton

    def init(self, batch: Tensor) -> Tensor:
        return torch.full((N,), 1 / N, dtype=F64)

    def objective(self, leader: LeaderProblem, w: Tensor, batch: Tensor) -> Tensor:
        return w @ batch - leader.t * w.square().sum()

    def project(self, w: Tensor, batch: Tensor) -> Tensor:
        if not self.newton:
            return (w - threshold(w)).clamp(min=0)
        names = {"y": w, "tau": bisected(w)}
        exec(NEWTON, names)
        return (w - names["tau"]).clamp(min=0)


class Mean(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(1.0, dtype=F64))

    def loss(self, w: Tensor, batch: Tensor) -> Tensor:
        return w @ torch.linspace(-1, 1, N, dtype=F64)


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=repr)
def test_a_step_of_newtons_method_gives_bisection_its_derivative(adjoint) -> None:
    losses = torch.randn(N, dtype=F64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for newton in (False, True):
        leader, follower = Mean(), Weights(newton)
        solver = Iterative(Gradient(0.1), 300)
        solution = adjoint.solve(solver, follower, leader, losses)
        leader.loss(solution.value, losses).backward()
        gradients.append(leader.t.grad)
    assert gradients[0].abs() > 0.01
    torch.testing.assert_close(*gradients)
