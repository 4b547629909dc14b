"""Methods of the user's that change y in place, or take the gradients that the game takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Detached,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Penalty,
    Sampled,
    Unrolled,
)
from bilevel.testing import check_follower
from bilevel.updates import Gradient


class Near(FollowerProblem):
    """min over y of ‖y − θ x‖² / 2."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
        return (y - leader.theta * batch).square().sum(1) / 2


class Leader(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3).double())

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return (y - 1).square().mean() + self.theta.square().sum()


class Subtracting(Leader):
    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        y -= 1
        return y.square().mean() + self.theta.square().sum()


def step(leader: LeaderProblem, follower: FollowerProblem, adjoint: Adjoint) -> Tensor:
    """The gradient of θ."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = Iterative(Gradient(0.5), 2)
    game = Bilevel(leader, follower, solver, leader_opt=optimizer, adjoint=adjoint)
    game.step(torch.randn(4, 3).double())
    return leader.theta.grad


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize(
    "adjoint",
    [Implicit(), Penalty(10.0), Forward(), Sampled(0.1), Unrolled(recompute=True)],
    ids=repr,
)
def test_a_loss_that_changes_the_answer(adjoint: Adjoint) -> None:
    with pytest.raises(BilevelError, match=r"loss changes y\* in place, .* y = y - 1 in place of"):
        step(Subtracting(), Near(), adjoint)


def test_a_loss_that_changes_another_tensor_than_the_answer() -> None:
    class Growing(Leader):
        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            growth = self.theta.exp()
            growth += 1  # which the derivative of exp reads
            return y.square().mean() + growth.sum()

    with pytest.raises(RuntimeError, match=r"inplace operation: .* output 0 of Exp"):
        step(Growing(), Near(), Implicit())


@pytest.mark.parametrize("adjoint", [Detached(), Unrolled()], ids=repr)
def test_where_autograd_follows_the_change_the_gradient_is_right(adjoint: Adjoint) -> None:
    assert torch.equal(step(Subtracting(), Near(), adjoint), step(Leader(), Near(), adjoint))


@pytest.mark.parametrize("warm", [False, True])
def test_an_answer_that_the_solver_goes_on_from_is_not_changed(warm: bool) -> None:
    """Its loss would move the follower's weights, or the start of the next solve."""

    class Shared(Near):
        def init(self, batch: Tensor) -> Tensor:
            return torch.zeros(3).double()

        def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
            return (y - leader.theta * batch).square().sum() / 2

    def play(leader: LeaderProblem) -> None:
        solver = Iterative(Gradient(0.5), 1, warm_start=True)
        weights = None
        if not warm:
            solver = Parametric(torch.zeros(3).double())
            weights = torch.optim.SGD(solver.parameters(), lr=0.1)
        sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
        parts = {"leader_opt": sgd, "solver_opt": weights, "adjoint": Detached()}
        Bilevel(leader, Shared(), solver, **parts).step(torch.ones(4, 3).double())

    play(Leader())
    name = "Iterative" if warm else "Parametric"
    with pytest.raises(BilevelError, match=rf"y\* in place, from which {name} goes on: "):
        play(Subtracting())


def test_an_objective_that_changes_y() -> None:
    class Changing(Near):
        def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
            y -= leader.theta * batch
            return y.square().sum(1) / 2

    with pytest.raises(BilevelError, match=r"Changing changes y in place \(.*; compute a new"):
        step(Leader(), Changing(), Unrolled())


@pytest.mark.parametrize("method", ["objective", "context"])
def test_what_autograd_does_not_see_is_found_by_the_check(method: str) -> None:
    class Clamping(Near):
        def _clamp(self, y: Tensor) -> None:
            with torch.no_grad():
                y.clamp_(-0.1, 0.1)

        def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
            if method == "objective":
                self._clamp(y)
            return super().objective(leader, y, batch)

        def context(self, y: Tensor, batch: Tensor) -> Tensor:
            if method == "context":
                self._clamp(y)
            return y

    with pytest.raises(AssertionError, match="Clamping changes y in place in objective or context"):
        check_follower(Clamping(), Leader(), torch.randn(4, 3).double())


def test_a_loss_that_takes_its_gradient_itself() -> None:
    class Impatient(Leader):
        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            loss = super().loss(y, batch)
            loss.backward(retain_graph=True)
            return loss

    with pytest.raises(BilevelError, match="takes its gradient itself, and the game's would be"):
        step(Impatient(), Near(), Unrolled())


def test_a_gradient_in_the_leaders_parameters_within_an_objective() -> None:
    """As the message says, by torch.func.grad: ∇θ of the sum of θ³x."""

    class Slope(Near):
        def slope(self, theta: Tensor, batch: Tensor) -> Tensor:
            (slope,) = torch.autograd.grad((theta**3 * batch).sum(), theta)
            return slope

        def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
            slope = self.slope(leader.theta, batch)
            return (y - leader.theta * batch - slope).square().sum(1) / 2

    class Func(Slope):
        def slope(self, theta: Tensor, batch: Tensor) -> Tensor:
            return torch.func.grad(lambda theta: (theta**3 * batch).sum())(theta)

    class Formula(Slope):
        def slope(self, theta: Tensor, batch: Tensor) -> Tensor:
            return 3 * theta**2 * batch.sum(0)

    with pytest.raises(BilevelError, match=r"does not require one .*take torch\.func\.grad"):
        step(Leader(), Slope(), Implicit())
    exact = step(Leader(), Formula(), Unrolled())
    torch.testing.assert_close(step(Leader(), Func(), Unrolled()), exact)
