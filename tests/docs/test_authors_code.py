"""docs/algorithms.md, what the authors' code does, and optimizers that it needs, by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from tests.docs.algorithms import NAMES, PAGE


class Move(bilevel.LeaderProblem):
    """A player that lowers f(x, y)."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return saddle(self.x, y)


class Against(bilevel.FollowerProblem):
    sense = "max"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(2, dtype=torch.float64)

    def objective(self, leader: Move, y: Tensor, batch: Any) -> Tensor:
        return saddle(leader.x, y)


def saddle(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y).sin() + x.pow(4).sum() - y.pow(4).sum()


def test_lookahead_of_alternating_play() -> None:
    (code,) = re.findall(r"LAGAN trains by `(.*?)`", PAGE)
    leader, solver = Move(), bilevel.Parametric(torch.tensor([0.2, 0.7], dtype=torch.float64))
    x, y = leader.x.detach().clone(), solver.y.detach().clone()
    leader_opt, solver_opt = (torch.optim.SGD(p.parameters(), lr=0.1) for p in (leader, solver))
    game = bilevel.Bilevel(
        leader,
        Against(),
        solver,
        leader_opt=leader_opt,
        solver_opt=solver_opt,
        adjoint=bilevel.Detached(),
        schedule=eval(code, NAMES),
    )
    slow = x, y
    for k in range(10):
        game.step(None)
        y = y + 0.1 * torch.func.grad(saddle, 1)(x, y)
        x = x - 0.1 * torch.func.grad(saddle)(x, y)
        if k % 5 == 4:
            x, y = slow = tuple((old + new) / 2 for old, new in zip(slow, (x, y), strict=True))
        torch.testing.assert_close(leader.x.detach(), x)
        torch.testing.assert_close(solver.y.detach(), y)


def test_negative_momentum_takes_an_optimizer_of_ones_own() -> None:
    class HeavyBall(torch.optim.Optimizer):
        def __init__(self, parameters) -> None:
            super().__init__(parameters, {"lr": 0.1, "momentum": -0.3})

        def step(self, closure=None):
            loss = closure and closure()
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        v = self.state[p].get("v", torch.zeros_like(p)) * group["momentum"]
                        self.state[p]["v"] = v - group["lr"] * p.grad
                        p += self.state[p]["v"]
            return loss

    leader, solver = Move(), bilevel.Parametric(torch.tensor([0.2, 0.7], dtype=torch.float64))
    for optimizer in (torch.optim.SGD, torch.optim.RMSprop):
        with pytest.raises(ValueError, match="momentum"):
            optimizer(leader.parameters(), lr=0.1, momentum=-0.3)
    x, y = leader.x.detach().clone(), solver.y.detach().clone()
    game = bilevel.Bilevel(
        leader,
        Against(),
        solver,
        leader_opt=HeavyBall(leader.parameters()),
        solver_opt=HeavyBall(solver.parameters()),
        adjoint=bilevel.Detached(),
        schedule=bilevel.Alternating(),
    )
    moves = [torch.zeros_like(x), torch.zeros_like(y)]
    for _ in range(5):
        game.step(None)
        moves[0] = -0.3 * moves[0] - 0.1 * torch.func.grad(saddle)(x, y)
        x = x + moves[0]
        moves[1] = -0.3 * moves[1] + 0.1 * torch.func.grad(saddle, 1)(x, y)
        y = y + moves[1]
        torch.testing.assert_close(leader.x.detach(), x)
        torch.testing.assert_close(solver.y.detach(), y)


class Near(bilevel.FollowerProblem):
    """A task's loss, and a proximal term of the given weight to the leader's weights."""

    sense = "min"

    def __init__(self, leader: bilevel.LeaderProblem, weight: float) -> None:
        self.leader, self.weight = leader, weight

    def init(self, batch: Any) -> Tensor:
        return self.leader.theta.detach().clone()

    def objective(self, leader: bilevel.LeaderProblem, y: Tensor, batch: Any) -> Tensor:
        return task_loss(y, batch[0]) + self.weight / 2 * (y - leader.theta).square().sum()


class Initial(bilevel.LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return task_loss(y, batch[1])


def task_loss(y: Tensor, data: Tensor) -> Tensor:
    return F.softplus(data @ y).mean()


class PlainThenNear(bilevel.Solver):
    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = lam

    def answer(self, oracle: bilevel.Oracle) -> Tensor:
        start = y = oracle.init()
        for _ in range(8):
            y = y + 0.3 * (oracle.gradient(y) + oracle.follower.weight * (y - start))
        return y - 0.3 * self.lam * (y - start)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_what_the_code_of_imaml_solves() -> None:
    (code,) = re.findall(r"`(Implicit\(.*?damping.*?)`", PAGE)
    lam, c = 2.0, 1.0
    leader = Initial()
    game = bilevel.Bilevel(
        leader,
        Near(leader, lam + 10),
        PlainThenNear(lam),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=1.0),
        adjoint=eval(code, NAMES | {"λ": lam, "c": c}),
    )
    theta = leader.theta.detach().clone()
    torch.manual_seed(0)
    for _ in range(4):
        batch = torch.randn(2, 20, 5, dtype=torch.float64)
        game.step(batch)
        y = theta
        for _ in range(8):
            y = y - 0.3 * torch.func.grad(task_loss)(y, batch[0])
        y = y - 0.3 * lam * (y - theta)
        h = torch.func.hessian(task_loss)(y, batch[0])
        system = (1 + c) * torch.eye(5) + h / (lam + 10)
        theta = theta - torch.linalg.solve(system, torch.func.grad(task_loss)(y, batch[1]))
        torch.testing.assert_close(leader.theta.detach(), theta)
