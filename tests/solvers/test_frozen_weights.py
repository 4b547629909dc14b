"""Frozen weights of a network that is the follower: a solve does not train them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Detached,
    FollowerProblem,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
)
from bilevel.updates import Gradient


class Fit(FollowerProblem):
    """All weights of the network, or those that train."""

    sense = "min"

    def __init__(self, network: nn.Module, *, everything: bool) -> None:
        self.network = network
        named = network.named_parameters()
        self.start = {name: p for name, p in named if everything or p.requires_grad}

    def init(self, batch: Tensor) -> dict[str, Tensor]:
        return self.start

    def objective(self, leader: Any, weights: dict[str, Tensor], batch: Tensor) -> Tensor:
        errors = functional_call(self.network, weights, (batch,)) - 1
        return (leader.weights * errors[:, 0].square()).mean()


class Weights(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(8))

    def loss(self, y: Any, batch: Tensor) -> Tensor:
        return y["bias"].sum()


def half_frozen() -> nn.Module:
    network = nn.Linear(3, 1)
    network.weight.requires_grad_(False)
    return network


def test_a_start_with_frozen_weights() -> None:
    network, batch, leader = half_frozen(), torch.rand(8, 3), Weights()
    solver = Iterative(Gradient(0.1), 3)
    with pytest.raises(BilevelError, match=r"Fit\.init returned weight, which is frozen .*: the"):
        solver.solve(Fit(network, everything=True), leader, batch)
    assert [*solver.solve(Fit(network, everything=False), leader, batch).value] == ["bias"]


@pytest.mark.parametrize("adjoint", [Detached(), Implicit()], ids=repr)
def test_frozen_weights_of_a_parametric_answer(adjoint: Adjoint) -> None:
    network, leader = half_frozen(), Weights()

    def make(answer: Any, *, everything: bool) -> Bilevel:
        solver = Parametric(answer)
        return Bilevel(
            leader,
            Fit(network, everything=everything),
            solver,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
            solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1),
            adjoint=adjoint,
        )

    make({"bias": network.bias}, everything=False)
    if isinstance(adjoint, Detached):  # solver_opt leaves them as they are
        make(network, everything=True)
        return
    with pytest.raises(BilevelError, match=r"Parametric's y\.weight is frozen .*: Implicit\(\)"):
        make(network, everything=True)
