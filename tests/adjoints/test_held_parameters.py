"""Parts that hold a parameter of the leader's themselves, where the leader is lent others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    BilevelError,
    Detached,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Penalty,
    Sampled,
    Unrolled,
    Update,
)
from bilevel.testing import check_adjoint
from bilevel.updates import Gradient, Optimizer
from tests.valleys import F64

OTHERS = (Unrolled(recompute=True), Forward(), Implicit(), Penalty(100.0), Sampled(0.01))


class Rate(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1, dtype=F64))

    def loss(self, y: Tensor, batch: None) -> Tensor:
        return y


class One(FollowerProblem):
    """½(y − 1)², with ½ w y² for a weight that it holds."""

    sense = "min"

    def __init__(self, weight: Tensor | None = None) -> None:
        self.weight = weight

    def init(self, batch: None) -> Tensor:
        return torch.zeros((), dtype=F64)

    def objective(self, leader: Rate, y: Tensor, batch: None) -> Tensor:
        held = 0.0 if self.weight is None else self.weight * y.square()
        return ((y - 1).square() + held) / 2


def test_unrolled_reads_what_is_held() -> None:
    """Y = 1 − (1 − η)³, so dy/dη = 3(1 − η)²."""
    leader = Rate()
    solver = Iterative(Optimizer(torch.optim.SGD, lr=leader.rate), 3)
    Unrolled().solve(solver, One(), leader, None).value.backward()
    assert leader.rate.grad is not None
    assert leader.rate.grad.item() == pytest.approx(3 * 0.9**2)


@pytest.mark.parametrize("adjoint", OTHERS, ids=repr)
def test_others_refuse_an_update_that_holds_it(adjoint: Adjoint) -> None:
    leader = Rate()
    solver = Iterative(Optimizer(torch.optim.SGD, lr=leader.rate), 3)
    with pytest.raises(BilevelError, match=r"but rate itself is read: .* hold the leader and read"):
        adjoint.solve(solver, One(), leader, None).value.backward()


def test_recomputed_steps_refuse_a_follower_that_holds_it() -> None:
    leader = Rate()
    value = (
        Unrolled(recompute=True)
        .solve(Iterative(Gradient(0.1), 3), One(leader.rate), leader, None)
        .value
    )
    with pytest.raises(BilevelError, match=r"recompute computes .* but rate itself is read"):
        value.backward()


@pytest.mark.parametrize("read_too", [False, True], ids=["held", "held and read"])
@pytest.mark.parametrize("adjoint", OTHERS[1:], ids=repr)
def test_others_refuse_a_follower_that_holds_it(adjoint: Adjoint, read_too: bool) -> None:
    """Also where the leader's own is read beside it, so that a part of the gradient is right."""

    class Both(One):
        def objective(self, leader: Rate, y: Tensor, batch: None) -> Tensor:
            return super().objective(leader, y, batch) + leader.rate * y * read_too

    leader = Rate()
    value = adjoint.solve(Iterative(Gradient(0.5), 40), Both(leader.rate), leader, None).value
    with pytest.raises(BilevelError, match=r"but rate itself is read: .* or the follower holds it"):
        value.backward()


def test_finite_differences_move_what_is_held() -> None:
    leader = Rate()
    solver = Iterative(Gradient(0.5), 40)
    check_adjoint(Unrolled(), solver, One(leader.rate), leader, None)
    with pytest.raises(AssertionError, match="the gradient of rate is off"):
        check_adjoint(Detached(), solver, One(leader.rate), leader, None)


def test_a_fixed_point_that_holds_it_is_refused() -> None:
    """Of a solver that does not use it, so that only the backward pass reads it."""

    class Shrunk(Update):
        needs_context = False

        def __init__(self, rate: Tensor) -> None:
            super().__init__()
            self.held = [rate]

        def forward(self, y: Tensor, gradient: Tensor, context: None, state: None) -> Any:
            return y + 0.5 * gradient - self.held[0] * y, state

    leader = Rate()
    leader.register_parameter("used", nn.Parameter(torch.ones((), dtype=F64)))
    adjoint = Implicit(fixed_point=Shrunk(leader.rate))
    value = adjoint.solve(Iterative(Gradient(0.5), 40), One(), leader, None).value
    with pytest.raises(BilevelError, match=r"Implicit\(.* but rate itself is read"):
        value.backward()
