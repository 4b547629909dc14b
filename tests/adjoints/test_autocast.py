"""Hypergradients of an objective in bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel import Adjoint, FollowerProblem, Iterative, LeaderProblem, Unrolled
from bilevel.updates import Gradient
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
def test_steps_are_added_up_in_float32(cached: bool) -> None:
    """Not in bfloat16, as autograd adds those of a conversion that autocast keeps for all."""
    x, labels = torch.randn(64, 16), torch.arange(64) % 2
    batch, leader = (x[:32], labels[:32], x[32:], labels[32:]), Encoder()
    truth = slope(Unrolled(), leader, batch)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        slopes = [slope(adjoint, leader, batch) for adjoint in (Unrolled(), Unrolled(recompute=9))]
        assert torch.is_autocast_cache_enabled() is cached
    assert error(slopes[0], slopes[1]) < 1e-3
    assert error(slopes[0], truth) < 0.03
