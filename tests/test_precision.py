"""Gradients through many steps in bfloat16: autocast keeps no conversion that all would share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel import Adjoint, FollowerProblem, Iterative, LeaderProblem, Unrolled
from bilevel.updates import CoordinateRNN, Gradient
from tests.valleys import error

STEPS = 200


class Encoder(LeaderProblem):
    """Features, judged on other samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 32)

    def loss(self, y: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(F.linear(self.layer(batch[2]).tanh(), y).float(), batch[3])


class Head(FollowerProblem):
    """A classifier of the features."""

    sense = "min"

    def init(self, batch: tuple[Tensor, ...]) -> Tensor:
        return torch.zeros(2, 32)

    def objective(self, leader: Encoder, y: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        outputs = F.linear(leader.layer(batch[0]).tanh(), y).float()
        return F.cross_entropy(outputs, batch[1]) + 0.01 * y.square().sum()


def slope(adjoint: Adjoint, leader: Encoder, batch: tuple[Tensor, ...]) -> Tensor:
    y = adjoint.solve(Iterative(Gradient(0.3), STEPS), Head(), leader, batch).value
    return torch.autograd.grad(leader.loss(y, batch), leader.layer.weight)[0]


@pytest.mark.parametrize("cached", [True, False])
def test_the_leaders_gradient(cached: bool) -> None:
    x, labels = torch.randn(64, 16), torch.arange(64) % 2
    batch, leader = (x[:32], labels[:32], x[32:], labels[32:]), Encoder()
    truth = slope(Unrolled(), leader, batch)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        slopes = [slope(adjoint, leader, batch) for adjoint in (Unrolled(), Unrolled(recompute=9))]
        assert torch.is_autocast_cache_enabled() is cached
    assert error(slopes[0], slopes[1]) < 1e-3
    assert error(slopes[0], truth) < 0.03


class Quadratics(FollowerProblem):
    """½‖Ay − c‖² for each sample."""

    sense = "min"

    def init(self, batch: tuple[Tensor, ...]) -> Tensor:
        return torch.zeros_like(batch[1])

    def objective(self, leader: LeaderProblem, y: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        return (torch.einsum("bij,bj->bi", batch[0], y) - batch[1]).square().sum(1) / 2


def test_the_gradient_of_a_learned_solver() -> None:
    batch = torch.randn(16, 10, 10) / 10**0.5, torch.randn(16, 10)
    follower, leader = Quadratics(), Encoder()
    solver = Iterative(CoordinateRNN(scale=0.1, hidden=8, gradient_skip=0.05), STEPS)

    def slopes(low: bool = True, cached: bool = True) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low, cache_enabled=cached):
            y = solver.solve(follower, leader, batch).value
            gain = follower.objective(leader, y, batch).mean()
        grads = torch.autograd.grad(gain, [*solver.parameters()])
        return torch.cat([grad.flatten() for grad in grads])

    torch.testing.assert_close(slopes(), slopes(cached=False), rtol=1e-4, atol=1e-4)
    assert error(slopes(), slopes(low=False)) < 0.05
