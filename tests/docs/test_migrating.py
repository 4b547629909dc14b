"""docs/migrating.md: what a row names is what the other library computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bilevel

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
STEPS = 3


def inner(theta: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return nn.functional.softplus(x @ y).mean() + (theta.exp() * y.square()).sum()


def outer(theta: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return (x @ y - 1).square().mean() + 0.05 * theta.square().sum()


class Inner(bilevel.FollowerProblem):
    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(4, dtype=torch.float64)

    def objective(self, leader: bilevel.LeaderProblem, y: Tensor, batch: Tensor) -> Tensor:
        return inner(leader.theta, y, batch[0])


class Outer(bilevel.LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((4,), -1.0, dtype=torch.float64))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return outer(self.theta, y, batch[1])


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_darts_of_betty() -> None:
    """Its difference of ∂q/∂θ, at the weights after the steps and along the outer gradient."""
    (line,) = [line for line in PAGE.splitlines() if 'Config(type="darts"' in line]
    (adjoint,) = re.findall(r"`steps=k` with `(.*?)`", line)
    leader, theta = Outer(), torch.full((4,), -1.0, dtype=torch.float64)
    game = bilevel.Bilevel(
        leader,
        Inner(),
        bilevel.Iterative(bilevel.updates.Gradient(0.3), STEPS, warm_start=True),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.5),
        adjoint=eval(adjoint, vars(bilevel.updates) | vars(bilevel)),
    )
    torch.manual_seed(0)
    y, grad = torch.zeros(4, dtype=torch.float64), torch.func.grad
    for _ in range(6):
        batch = torch.randn(2, 20, 4, dtype=torch.float64)
        game.step(batch)
        for _ in range(STEPS):
            y = y - 0.3 * grad(inner, 1)(theta, y, batch[0])
        direct, v = grad(outer, (0, 1))(theta, y, batch[1])
        r = 1e-4
        ahead, behind = (grad(inner)(theta, y + step * v, batch[0]) for step in (r, -r))
        theta = theta - 0.5 * (direct - (ahead - behind) / (2 * r))
        torch.testing.assert_close(leader.theta.detach(), theta, rtol=1e-6, atol=1e-7)
