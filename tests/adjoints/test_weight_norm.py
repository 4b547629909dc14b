"""Weight normalisation, of whose fused function torch has a wrong second derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Consensus,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Unrolled,
    ZeroSum,
)
from bilevel.testing import check_adjoint
from bilevel.updates import Gradient

SECOND: dict[str, Callable[[], Adjoint]] = {
    "unrolled": Unrolled,
    "recomputed": lambda: Unrolled(recompute=True),
    "implicit": lambda: Implicit("gmres"),
    "forward": Forward,
}
BATCH = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class ByHand(nn.Module):
    """The remedy that the message tells."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / v.norm(dim=1, keepdim=True))

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w.norm(dim=1, keepdim=True), w


def normalised(by_hand: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    if by_hand:
        parametrize.register_parametrization(layer, "weight", ByHand())
        return layer
    return parametrizations.weight_norm(layer)


class Fit(FollowerProblem):
    """Fits a normalised layer, with a weight decay that the leader sets."""

    sense = "min"

    def __init__(self, by_hand: bool) -> None:
        self.network = normalised(by_hand)

    def init(self, batch: Tensor) -> Any:
        return {name: p.detach() for name, p in self.network.named_parameters()}

    def objective(self, leader: Any, y: Any, batch: Tensor) -> Tensor:
        decay = sum(leaf.square().sum() for leaf in y.values())
        error = functional_call(self.network, y, (batch,)) - batch[:, :2].sin()
        return error.square().mean() + leader.decay * decay


class Decay(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def loss(self, y: Any, batch: Tensor) -> Tensor:
        return sum(leaf.square().sum() for leaf in y.values())


@pytest.mark.parametrize("adjoint", SECOND.values(), ids=SECOND.keys())
def test_it_is_refused_where_a_gradient_in_its_weights_is_differentiated(adjoint) -> None:
    leader, follower = Decay(), Fit(by_hand=False)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    solver = Iterative(Gradient(0.2), 5)
    game = Bilevel(leader, follower, solver, leader_opt=optimizer, adjoint=adjoint())
    with pytest.raises(BilevelError, match=r"weight_norm normalises, .* parametrization of your"):
        game.step(BATCH)


def test_the_remedy_has_the_derivative_of_finite_differences() -> None:
    check_adjoint(Unrolled(), Iterative(Gradient(0.2), 5), Fit(by_hand=True), Decay(), BATCH)


def test_schedules_with_second_derivatives_refuse_it_too() -> None:
    class Tilt(FollowerProblem):
        sense = "max"

        def init(self, batch: Tensor) -> Tensor:
            return torch.zeros(2).double()

        def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
            return (leader.model(batch) @ y).mean() - y.square().sum()

    results = []
    for by_hand in (True, False):
        leader, solver = ZeroSum(normalised(by_hand), Tilt()), Parametric(torch.ones(2).double())
        sgd = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (leader, solver)]
        parts = {"leader_opt": sgd[0], "solver_opt": sgd[1], "schedule": Consensus(0.1)}
        results.append(Bilevel(leader, leader.follower, solver, **parts))
    results[0].step(BATCH)
    with pytest.raises(BilevelError, match="weight_norm normalises"):
        results[1].step(BATCH)


@pytest.mark.parametrize("adjoint", SECOND.values(), ids=SECOND.keys())
def test_a_leader_may_have_it(adjoint) -> None:
    """Its weights are differentiated once: y's gradient in them."""

    class Normalised(Decay):
        def __init__(self, by_hand: bool) -> None:
            super().__init__()
            self.layer = normalised(by_hand)

        def loss(self, y: Any, batch: Tensor) -> Tensor:
            return y.sin().sum()

    class Image(FollowerProblem):
        sense = "min"

        def init(self, batch: Tensor) -> Tensor:
            return torch.zeros(6, 2).double()

        def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
            return (y - leader.layer(batch)).square().sum(1) + leader.decay * y.square().sum(1)

    slopes = []
    for by_hand in (True, False):
        leader = Normalised(by_hand)
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
        solver = Iterative(Gradient(0.25), 30)
        Bilevel(leader, Image(), solver, leader_opt=optimizer, adjoint=adjoint()).step(BATCH)
        slopes.append([p.grad for p in leader.parameters()])
    torch.testing.assert_close(*slopes)
