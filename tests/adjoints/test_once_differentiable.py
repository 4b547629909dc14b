"""Functions marked ``@once_differentiable``, of whose second derivative torch makes zeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Consensus,
    Forward,
    Implicit,
    Iterative,
    Parametric,
    Penalty,
    Unrolled,
    ZeroSum,
)
from bilevel.updates import Gradient
from tests.problems import Apart, Pulled

SECOND: dict[str, Callable[[], Adjoint]] = {
    "unrolled": Unrolled,
    "recomputed": lambda: Unrolled(recompute=True),
    "implicit": Implicit,
    "forward": Forward,
}
"""Those that differentiate the gradient."""


class Exp(torch.autograd.Function):
    """As a kernel of one's own, without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


class OfAnswer(Pulled):
    """exp(sin y) is pulled to 2θ, which is 2."""

    def objective(self, leader: Any, y: Tensor, batch: None) -> Tensor:
        return (Exp.apply(y.sin()) - 2 * leader.theta).square().sum()


class OfLeader(Pulled):
    """y is pulled to exp(θ)."""

    def objective(self, leader: Any, y: Tensor, batch: None) -> Tensor:
        return (y - Exp.apply(leader.theta)).square().sum()


def slope(follower: Pulled, adjoint: Adjoint, steps: int = 9) -> Tensor:
    """The gradient of ‖y*‖² in θ = (1, 1, 1)."""
    leader, solver = Apart(), Iterative(Gradient(0.1), steps)
    leader.loss(adjoint.solve(solver, follower, leader, None).value, None).backward()
    assert leader.theta.grad is not None
    return leader.theta.grad


@pytest.mark.parametrize("make", SECOND.values(), ids=SECOND)
def test_a_gradient_through_one_is_not_differentiated(make: Callable[[], Adjoint]) -> None:
    with pytest.raises(BilevelError, match=r"marked @once_differentiable: .* take Penalty"):
        slope(OfAnswer(), make())


def test_first_derivatives_suffice_for_a_penalty() -> None:
    y = math.asin(math.log(2))
    expected = torch.full((3,), 2 * y / math.cos(y))  # ∂y/∂θ is 1 / (θ cos y)
    torch.testing.assert_close(slope(OfAnswer(), Penalty(100.0), 200), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["unrolled", "recomputed", "implicit"])
def test_a_function_of_the_leader_alone_is_differentiated_once(name: str) -> None:
    found = slope(OfLeader(), SECOND[name](), 100)
    torch.testing.assert_close(found, torch.full((3,), 2 * math.e**2))


@pytest.mark.parametrize("steps", [1, 9])
def test_but_not_in_forward_mode(steps: int) -> None:
    """There ∂q/∂θ is differentiated in y."""
    with pytest.raises(BilevelError, match="marked @once_differentiable"):
        slope(OfLeader(), Forward(), steps)


def test_corrected_gradients_are_not_differentiated_either() -> None:
    class Saddle(Pulled):
        sense = "max"

        def objective(self, leader: Any, y: Tensor, batch: None) -> Tensor:
            return (Exp.apply(y) * leader.model.weight).sum()

    follower = Saddle()
    leader, solver = ZeroSum(nn.Linear(3, 1), follower), Parametric(torch.zeros(3))
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
        schedule=Consensus(0.1),
    )
    with pytest.raises(BilevelError, match="marked @once_differentiable"):
        game.step(None)
