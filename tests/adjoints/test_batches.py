"""Batches that adjoints pass on: sparse tensors, and points at which slopes are taken."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bilevel import (
    Adjoint,
    BilevelError,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Penalty,
    Unrolled,
)
from bilevel.updates import Gradient
from tests.valleys import F64

ADJOINTS = [Implicit(tolerance=1e-10), Penalty(1e4), Forward()]


class Log(LeaderProblem):
    """One number; its loss is ‖y‖²."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros((), dtype=F64))

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return y.square().sum()


def gradient(adjoint: Adjoint, follower: FollowerProblem, batch: Any) -> Tensor:
    leader = Log()
    solution = adjoint.solve(Iterative(Gradient(0.2), 200), follower, leader, batch)
    return torch.autograd.grad(leader.loss(solution.value, batch), leader.log)[0]


class Smooth(FollowerProblem):
    """Values on a graph that are smooth along its edges, batch["laplacian"]."""

    sense = "min"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(3, dtype=F64)

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        return (y - 1).square().sum() / 2 + leader.log.exp() / 2 * y @ (batch["laplacian"] @ y)


@pytest.mark.parametrize("form", [Tensor.to_sparse, Tensor.to_sparse_csr], ids=["coo", "csr"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_tensors(adjoint: Adjoint, form: Any) -> None:
    laplacian = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    expected = gradient(Unrolled(), Smooth(), {"laplacian": laplacian})
    found = gradient(adjoint, Smooth(), {"laplacian": form(laplacian)})
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


class Items(FollowerProblem):
    """A number for each item, looked up in a table, and one that no loss reads."""

    sense = "min"
    table = nn.Embedding(5, 1, sparse=True, dtype=F64)

    def init(self, batch: Any) -> dict[str, Tensor]:
        zeros = torch.zeros(5, 1, dtype=F64)
        return {"rest": zeros, "weight": zeros}

    def objective(self, leader: Any, y: dict[str, Tensor], batch: Any) -> Tensor:
        found = functional_call(self.table, {"weight": y["weight"]}, torch.arange(3))
        squares = sum(numbers.square().sum() for numbers in y.values())
        return (found - leader.log.exp()).square().sum() + squares


class Found(Log):
    """The first two numbers are to be large."""

    def loss(self, y: dict[str, Tensor], batch: Any) -> Tensor:
        return -functional_call(Items.table, {"weight": y["weight"]}, torch.arange(2)).sum()


def test_sparse_gradients_in_y() -> None:
    leader, solver = Found(), Iterative(Gradient(0.2), 100)
    solution = Unrolled().solve(solver, Items(), leader, None)
    (slope,) = torch.autograd.grad(leader.loss(solution.value, None), leader.log)
    assert slope.item() == pytest.approx(-1.0)  # of −2 · exp(log) / 2
    for adjoint in ADJOINTS:
        solution = adjoint.solve(solver, Items(), leader, None)
        with pytest.raises(BilevelError, match=r"sparse gradient in y, .* with sparse=False"):
            torch.autograd.grad(leader.loss(solution.value, None), leader.log)


class Sized(NamedTuple("Sized", [("scale", Tensor), ("rows", int)])):
    """A batch that cannot be rebuilt from its entries."""

    def __new__(cls, scale: Tensor) -> Any:
        return super().__new__(cls, scale, 1)


class Kept(FollowerProblem):
    """Keeps in the batch, if it can, what the objective reads."""

    sense = "min"

    def init(self, batch: Any) -> Tensor:
        if isinstance(batch, dict):
            batch["target"] = 3 * batch["scale"]
        return torch.zeros(2, dtype=F64)

    def objective(self, leader: Any, y: Tensor, batch: Any) -> Tensor:
        target = batch["target"] if isinstance(batch, dict) else batch.scale
        return (y - target).square().sum() + leader.log.exp() * y.square().sum()


@pytest.mark.parametrize("kind", [lambda scale: {"scale": scale}, Sized], ids=["dict", "tuple"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_a_batch_is_handed_on_itself(adjoint: Adjoint, kind: Any) -> None:
    scale = torch.tensor(0.5, dtype=F64)
    given, expected = kind(scale), gradient(Unrolled(), Kept(), kind(scale))
    torch.testing.assert_close(gradient(adjoint, Kept(), given), expected, rtol=1e-3, atol=0)
    if isinstance(given, dict):
        assert given["target"] == 1.5


class Slopes(FollowerProblem):
    """The slope in x of a function of y and x is part of the objective."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(3, dtype=F64)

    def objective(self, leader: Any, y: Tensor, batch: Tensor) -> Tensor:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad((batch.sin() * y.sum()).sum(), batch, create_graph=True)
        return (y - leader.log.exp()).square().sum() + slope.square().mean()


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_points_at_which_slopes_are_taken(adjoint: Adjoint) -> None:
    """They require gradients, and y does not depend on them."""
    x = torch.linspace(0, 1, 5, dtype=F64, requires_grad=True)
    a = x.detach().cos().square().mean()  # y = c/(1 + 3a), for slopes 3y·cos x
    expected = 2 * 3 / (1 + 3 * a) ** 2
    torch.testing.assert_close(gradient(adjoint, Slopes(), x), expected, rtol=1e-3, atol=0)
