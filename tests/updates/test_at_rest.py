"""Differentiating through a step whose gradient is exactly zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import FollowerProblem, Iterative, Unrolled
from bilevel.tree import leaves
from bilevel.updates import (
    MLP,
    CoordinateMLP,
    CoordinateRNN,
    Gradient,
    Momentum,
    NormalizedGradient,
    Optimizer,
)
from bilevel.updates.optimizer import STEPS
from tests.valleys import F64, Numbers


class Hinge(FollowerProblem):
    """max over y of Σ relu(y Σθ − 1), whose gradient is exactly 0 at the start."""

    sense = "max"

    def __init__(self, shared: bool) -> None:
        self.shared = shared

    def init(self, batch: None) -> Any:
        y = torch.zeros(2, 2, dtype=F64)
        return {"y": y} if self.shared else y

    def objective(self, leader: Numbers, y: Any, batch: None) -> Tensor:
        rest = (y["y"] if self.shared else y) * leader.theta.sum() - 1
        return rest.relu().sum() if self.shared else rest.relu().sum(1)


AT_REST = [
    NormalizedGradient(0.1),
    Momentum(Gradient(0.1), 0.9, normalize=True),
    CoordinateMLP(gradient_skip=0.1).double(),
    CoordinateRNN(0.1, gradient_skip=0.1).double(),
    MLP(4, gradient_skip=0.1).double(),
    *(Optimizer(kind, lr=0.1) for kind in STEPS),
    Optimizer(torch.optim.RMSprop, lr=0.1, centered=True, momentum=0.5),
    Optimizer(torch.optim.Adam, lr=0.1, amsgrad=True),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("update", AT_REST, ids=repr)
def test_a_gradient_of_zero_has_finite_derivatives(update, shared) -> None:
    leader = Numbers(3)
    players = [leader.theta, *update.parameters()]
    for part in update.parameters():  # a last layer that starts at zero would hide it
        torch.nn.init.normal_(part)
    value = Unrolled().solve(Iterative(update, 3), Hinge(shared), leader, None).value
    loss = leader.theta.sum() + sum((leaf - 1).square().sum() for leaf in leaves(value))
    slopes = torch.autograd.grad(loss, players, allow_unused=True)
    assert all(slope.isfinite().all() for slope in slopes if slope is not None)
