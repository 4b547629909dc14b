"""Followers whose objective has layers checkpointed by torch, or weights cached by it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import bilevel
from bilevel import BilevelError, Forward, Implicit, Penalty, Unrolled
from bilevel.updates import Gradient
from tests.valleys import F64

ADJOINTS = pytest.mark.parametrize(
    "adjoint", [Unrolled(), Unrolled(recompute=5), Implicit(), Forward(), Penalty(1e3)], ids=repr
)
Features = Callable[[nn.Module, Tensor], Tensor]


class Fit(bilevel.FollowerProblem):
    """min over y of the mean error of batch y, weighted by the leader's network."""

    sense = "min"

    def __init__(self, features: Features) -> None:
        self.features = features

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(batch.shape[1], dtype=F64)

    def objective(self, leader: Weighting, y: Tensor, batch: Tensor) -> Tensor:
        weights = self.features(leader.model, batch).squeeze(1).sigmoid()
        return (weights * (batch @ y - 1).square()).mean() + 0.1 * y.square().sum()


class Weighting(bilevel.LeaderProblem):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 2), layer, nn.Linear(2, 1)).double()

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return (batch @ y).square().mean()


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def again(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=False)


def hypergradient(
    adjoint: bilevel.Adjoint, features: Features, layer: Callable[[], nn.Module] = nn.Tanh
) -> list[Tensor]:
    torch.manual_seed(0)
    leader, batch = Weighting(layer()), torch.randn(8, 3, dtype=F64)
    solver = bilevel.Iterative(Gradient(0.3), 120)
    answer = adjoint.solve(solver, Fit(features), leader, batch).value
    return list(torch.autograd.grad(leader.loss(answer, batch), [*leader.model.parameters()]))


@ADJOINTS
def test_layers_are_computed_again_with_the_parameters_of_the_solve(adjoint) -> None:
    expected, found = (hypergradient(adjoint, features) for features in (plain, again))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("adjoint", [Implicit(), Penalty(1e3)], ids=repr)
def test_layers_that_are_computed_again_in_another_mode_are_told_the_remedy(adjoint) -> None:
    with pytest.raises(BilevelError, match=r"checkpointed layers .*bilevel.recompute.kept"):
        hypergradient(adjoint, again, lambda: nn.BatchNorm1d(2))


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit()], ids=repr)
def test_layers_that_hide_their_parameters_are_refused(adjoint) -> None:
    def hidden(model: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(model, x.clone().requires_grad_(), use_reentrant=True)

    with pytest.raises(BilevelError, match=r"use_reentrant=True, which hides their parameters"):
        hypergradient(adjoint, hidden)


@ADJOINTS
def test_weights_that_are_cached_around_a_solve_are_those_of_the_solve(adjoint) -> None:
    def normed() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))

    found = []
    for cached in (nullcontext, parametrize.cached):
        with cached():
            found.append(hypergradient(adjoint, plain, normed))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)
