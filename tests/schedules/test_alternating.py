"""`Alternating`: the mode of the solver while the leader moves."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bilevel import (
    Alternating,
    Bilevel,
    Iterative,
    Parametric,
    Unrolled,
    ZeroSum,
    games,
)
from bilevel.robustness import Batch
from bilevel.updates import Gradient
from tests.problems import Nearest, Saddle, Scalar, Weights


def test_the_solver_is_in_evaluation_mode_however_often_the_leader_evaluates() -> None:
    class Normed(Gradient):
        def __init__(self) -> None:
            super().__init__(0.1)
            self.norm = nn.BatchNorm1d(3)
            self.modes: list[bool] = []

        def forward(self, y, gradient, context, state):
            self.modes.append(self.training)
            return super().forward(y, self.norm(gradient), context, state)

    update, leader, follower = Normed(), Weights(3), Nearest()
    solver = Iterative(update, 1)
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.LBFGS(leader.parameters(), max_iter=3),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
        adjoint=Unrolled(),
        schedule=Alternating(),
    )
    game.step(Batch(torch.rand(4, 3), torch.zeros(4)))
    assert len(update.modes) > 3
    assert update.modes == [False] * (len(update.modes) - 1) + [True]  # its own move comes last


def test_a_warm_start_that_is_not_trained_is_solved_once_a_step() -> None:
    leader = ZeroSum(Scalar(1.0), Saddle())
    solver = Iterative(Gradient(0.5), 1, warm_start=True)
    sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, leader.follower, solver, leader_opt=sgd, schedule=Alternating())
    game.step(None)
    assert solver.kept[0].item() == 0.5


def test_an_optimizer_that_has_a_length_of_its_own_moves_the_solver() -> None:
    class Stepped(torch.optim.SGD):
        def __len__(self) -> int:
            return len(self.state)  # none yet, which is no reason to leave the step out

    leader, solver = ZeroSum(Scalar(1.0), Saddle()), Parametric(torch.tensor(0.0))
    game = Bilevel(
        leader,
        leader.follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=Stepped(solver.parameters(), lr=0.1),
        schedule=Alternating(first="follower"),
    )
    game.step(None)
    assert solver.y.item() == torch.tensor(0.1).item()


def test_what_is_one_number_and_unconstrained_is_neither_averaged_nor_copied() -> None:
    """On f = xy each operation is a sizeable part of a step."""

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operations.add(func.name())
            return func(*args, **(kwargs or {}))

    operations: set[str] = set()
    game = games.begin(games.bilinear(), 1.0, 0.5, lr=0.1, schedule=Alternating())
    with Recorded():
        metrics = game.step(None)
    assert not operations & {"aten::mean", "aten::copy_"}
    assert metrics["objective_after"] == 0.5
    assert games.position(game).tolist() == [0.95, 0.595]
