"""Methods of the user's may put other tensors under the names of y: ``y["w"] = y["w"] * mask``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    Bilevel,
    Detached,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Penalty,
    Unrolled,
    Update,
    ZeroSum,
)
from bilevel.updates import Gradient

SCALE = torch.tensor([2.0, 3.0, 1.0]).double()


class Scaled(FollowerProblem):
    """min over y of ‖s y − θ‖² / 2, attained at θ / s."""

    sense = "min"

    def init(self, batch: None) -> dict[str, Tensor]:
        return {"w": torch.full((3,), 0.1).double()}

    def objective(self, leader: Any, y: dict[str, Tensor], batch: None) -> Tensor:
        return (y["w"] * SCALE - leader.theta).square().sum() / 2


class Rebound(Scaled):
    def objective(self, leader: Any, y: dict[str, Tensor], batch: None) -> Tensor:
        y["w"] = y["w"] * SCALE
        y["more"] = y["w"]
        return (y["w"] - leader.theta).square().sum() / 2

    def context(self, y: dict[str, Tensor], batch: None) -> Tensor:
        y["w"] = 2 * y["w"]
        return y["w"]


class Leader(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]).double())

    def loss(self, y: dict[str, Tensor], batch: None) -> Tensor:
        y["w"] = y["w"] ** 3
        return y["w"].sum()


class Reading(Update):
    """A gradient step; what it adds is 0 if the context is twice y."""

    def forward(
        self, y: Any, gradient: Any, context: Any, state: Any
    ) -> tuple[dict[str, Tensor], None]:
        return {"w": y["w"] + 0.1 * gradient["w"] + (context - 2 * y["w"])}, None


@pytest.mark.parametrize("update", [Gradient(0.1), Reading()], ids=["objective", "and context"])
def test_a_solve_takes_the_gradient_in_y(update: Update) -> None:
    leader = Leader()
    answers = [
        Iterative(one, 5).solve(follower, leader, None).value["w"]
        for one, follower in ((update, Rebound()), (Gradient(0.1), Scaled()))
    ]
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(
    "adjoint",
    [
        Unrolled(),
        Unrolled(recompute=True),
        Unrolled(compile=True),
        Implicit(tolerance=1e-10),
        Forward(),
        Penalty(1e5),
    ],
    ids=repr,
)
def test_a_hypergradient(adjoint: Adjoint) -> None:
    update = Reading() if isinstance(adjoint, Unrolled) else Gradient(0.1)
    leader, solver = Leader(), Iterative(update, 200)
    answer = adjoint.solve(solver, Rebound(), leader, None).value
    (slope,) = torch.autograd.grad(leader.checked_loss(answer, None), leader.theta)
    expected = 3 * leader.theta.detach() ** 2 / SCALE**3
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-4)


def test_both_players_read_the_same_answer() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.ones(3).double())

    class Read(Rebound):
        def objective(self, leader: Any, y: dict[str, Tensor], batch: None) -> Tensor:
            return super().objective(leader.model, y, batch)

    follower = Read()
    leader, solver = ZeroSum(Model(), follower), Parametric(follower.init(None))
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
    )
    game.step(None)
    error = 0.1 * SCALE - 1
    torch.testing.assert_close(leader.model.theta.detach(), 1 - 0.1 * error)
    torch.testing.assert_close(solver.state_dict()["y.w"], 0.1 - 0.1 * error * SCALE)


def test_an_optimizer_that_asks_again_reads_the_same_answer() -> None:
    """The square of (s y)² − θ is least at θ = (s y)², and LBFGS needs several evaluations."""

    class Fitted(Leader):
        def loss(self, y: dict[str, Tensor], batch: None) -> Tensor:
            y["w"] = (y["w"] * SCALE) ** 2
            return (y["w"] - self.theta).square().sum()

    leader, follower = Fitted(), Rebound()
    solver = Parametric({"w": torch.full((3,), 0.5).double()}).requires_grad_(False)
    lbfgs = torch.optim.LBFGS(leader.parameters(), max_iter=20)
    game = Bilevel(leader, follower, solver, leader_opt=lbfgs, adjoint=Detached())
    game.step(None)
    torch.testing.assert_close(leader.theta.detach(), (0.5 * SCALE) ** 2)
