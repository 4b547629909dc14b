"""A game of two players that is not zero-sum, and the schedules that correct its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bilevel import (
    Bilevel,
    CompetitiveGradient,
    Consensus,
    Detached,
    FollowerProblem,
    LeaderProblem,
    Parametric,
    Schedule,
    Solver,
    SymplecticAdjustment,
    ZeroSum,
)

F64 = torch.float64
CORRECTIONS: dict[str, Callable[[], Schedule]] = {
    "consensus": lambda: Consensus(0.3),
    "symplectic": lambda: SymplecticAdjustment(0.7),
    "competitive": lambda: CompetitiveGradient(tolerance=1e-12),
}


def loss(x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
    return (x @ batch @ y).sin() + x.square().sum() * y[0].exp()


def objective(x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
    return (y.square() * x[:2].cos()).sum() + (x @ batch @ y).tanh()


class Chooser(LeaderProblem):
    """Nobody minimises what the other maximises."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.3, -0.8, 0.5], dtype=F64))
        self.aside = nn.Parameter(torch.ones(2))  # that no loss reads

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return loss(self.x, y, batch)


class Reply(FollowerProblem):
    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2, dtype=F64)

    def objective(self, leader: Chooser, y: Tensor, batch: Tensor) -> Tensor:
        return objective(leader.x, y, batch)


def descending(
    leader: LeaderProblem, follower: FollowerProblem, solver: Solver, schedule: Schedule, **parts
) -> Bilevel:
    """A game whose players take gradient steps of 0.1."""
    zero_sum = isinstance(leader, ZeroSum)
    chosen = {
        "leader_opt": torch.optim.SGD(leader.parameters(), lr=0.1),
        "solver_opt": torch.optim.SGD(solver.parameters(), lr=0.1),
        "adjoint": None if zero_sum else Detached(),
        **parts,
    }
    return Bilevel(leader, follower, solver, schedule=schedule, **chosen)


def general_game(schedule: Schedule, **parts) -> Bilevel:
    leader, solver = Chooser(), Parametric(torch.tensor([0.4, -0.2], dtype=F64))
    decaying = torch.optim.SGD(leader.parameters(), lr=0.1, weight_decay=0.5)
    return descending(leader, Reply(), solver, schedule, **{"leader_opt": decaying, **parts})
