"""Leaders with constraints, and optimizers that evaluate the loss several times."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bilevel import (
    Alternating,
    Bilevel,
    Consensus,
    Detached,
    Extragradient,
    FollowerProblem,
    Iterative,
    LeaderProblem,
    Parametric,
    Simultaneous,
    Unrolled,
)
from bilevel.updates import Gradient
from tests.schedules.test_base import l2l_game


class Walled(LeaderProblem):
    """min over w of 1.5 (w + 0.8)², subject to −1 ≤ w ≤ 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.2))

    def loss(self, y, batch):
        return 1.5 * (self.w + 0.8).square() + 0 * y.sum()

    def project(self) -> None:
        self.w.data.clamp_(-1, 1)


class Still(FollowerProblem):
    sense = "min"

    def init(self, batch):
        return torch.zeros(())

    def objective(self, leader, y, batch):
        return y.square()


def test_an_extrapolation_is_projected_before_the_step_from_it() -> None:
    leader = Walled()
    game = Bilevel(
        leader,
        Still(),
        Iterative(Gradient(0.1), 1),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=1.0),
        adjoint=Detached(),
        schedule=Extragradient(),
    )
    game.step(None)  # 0.2 − 3 is projected to −1, where the step is 0.6
    assert leader.w.item() == pytest.approx(0.8)


def test_a_solve_sees_a_leader_within_its_constraints() -> None:
    leader = Walled()
    solver, optimizer = Iterative(Gradient(0.1), 1), torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, Still(), solver, leader_opt=optimizer, adjoint=Detached())
    leader.w.data.fill_(7.0)
    game.solve(None)
    assert leader.w == 1


class Highest(LeaderProblem):
    """Min over t: the loss is the parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(3.0))

    def loss(self, y, batch):
        return self.t


@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating(), Consensus(0.1)], ids=repr)
def test_a_loss_that_is_a_parameter_is_told_as_it_was_before_the_move(schedule) -> None:
    leader, solver = Highest(), Parametric(torch.tensor(1.0))
    opts = [torch.optim.SGD(player.parameters(), lr=0.5) for player in (leader, solver)]
    parts = {"leader_opt": opts[0], "solver_opt": opts[1], "adjoint": Detached()}
    game = Bilevel(leader, Still(), solver, schedule=schedule, **parts)
    assert game.step(None)["loss"].item() == 3.0
    assert leader.t.item() == 2.5


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_mode_of_the_solver_while_the_leader_moves(mode) -> None:
    game, batch = l2l_game(Alternating(solver_mode=mode))
    seen: list[bool] = []
    game.solver.update.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    game.solver.train()
    game.step(batch)
    assert seen[0] == (mode == "train")


@pytest.mark.parametrize("adjoint", [Detached(), Unrolled()], ids=str)
def test_the_first_evaluation_of_the_loss_is_that_of_a_step(adjoint) -> None:
    """Its loss is reported, and φ gets its gradient."""
    game, batch = l2l_game(Simultaneous())
    game.adjoint = adjoint
    once = copy.deepcopy(game)
    expected = once.step(batch)["loss"]
    game.leader_opt = torch.optim.LBFGS(game.leader.parameters(), max_iter=4)
    torch.testing.assert_close(game.step(batch)["loss"], expected)
    for ours, others in zip(game.solver.parameters(), once.solver.parameters(), strict=True):
        torch.testing.assert_close(ours, others)
