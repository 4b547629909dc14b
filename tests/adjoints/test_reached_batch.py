"""Gradients of tensors of the batch: features that the leader computes before the solve."""

from __future__ import annotations

import gc
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Detached,
    FollowerProblem,
    Implicit,
    Iterative,
    LeaderProblem,
    Penalty,
    Pullback,
    Simultaneous,
    Unrolled,
)
from bilevel.updates import Gradient, Update
from tests.valleys import F64

ADJOINTS: list[tuple[Adjoint, float]] = [
    (Implicit(tolerance=1e-12), 1e-7),
    (Implicit("exact"), 1e-7),
    (Implicit("neumann", tolerance=1e-12, max_steps=500), 1e-7),
    (Implicit(fixed_point=Gradient(0.1), tolerance=1e-12), 1e-7),
    (Penalty(1e4), 1e-3),
]
SOLVER = Iterative(Gradient(0.2), 200)


class Pair(NamedTuple):
    x: Tensor
    rows: Tensor


def first(batch: Any) -> Tensor:
    """The data, whatever holds them."""
    if isinstance(batch, dict):
        return first(batch["data"])
    return batch if isinstance(batch, Tensor) else batch[0]


class Curved(FollowerProblem):
    """min over y_i of Σ cosh(y) − y x² exp(θ), for each sample."""

    sense = "min"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros_like(first(batch))

    def objective(self, leader: Log, y: Tensor, batch: Any) -> Tensor:
        return (y.cosh() - y * first(batch).square() * leader.log.exp()).sum(1)


class Clipped(Curved):
    """Within |y| ≤ x²: bounds that the batch moves."""

    def project(self, y: Tensor, batch: Any) -> Tensor:
        bound = first(batch).square()
        return torch.minimum(torch.maximum(y, -bound), bound)


class Log(LeaderProblem):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return y.square().sum()


def gradients(adjoint: Adjoint, follower: FollowerProblem, x: Tensor, wrap: Any) -> list[Tensor]:
    """Those of θ and of the data."""
    leader, batch = Log(), wrap(x)
    y = adjoint.solve(SOLVER, follower, leader, batch).value
    return [*torch.autograd.grad(leader.loss(y, batch) + y.sum(), [leader.log, x])]


def data() -> Tensor:
    return torch.tensor([[0.5, -0.3], [0.8, 1.2], [0.1, 0.9]], dtype=F64, requires_grad=True)


@pytest.mark.parametrize(("adjoint", "precision"), ADJOINTS, ids=str)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"data": (x, 3), "more": torch.arange(3)},
        lambda x: Pair(x, torch.arange(3)),
    ],
    ids=["tensor", "dict", "named tuple"],
)
def test_the_gradient_of_the_data(adjoint: Adjoint, precision: float, wrap: Any) -> None:
    expected = gradients(Unrolled(), Curved(), data(), wrap)
    found = gradients(adjoint, Curved(), data(), wrap)
    assert expected[1].abs().min() > 0.01
    torch.testing.assert_close(found, expected, rtol=precision, atol=precision)


def test_bounds_that_the_data_move() -> None:
    expected = gradients(Unrolled(), Clipped(), data(), lambda x: x)
    found = gradients(Implicit(tolerance=1e-12), Clipped(), data(), lambda x: x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    with pytest.raises(BilevelError, match="project depends on"):
        gradients(Penalty(1e4), Clipped(), data(), lambda x: x)


def test_transforms() -> None:
    """The gradient of many problems at once, and in data alone."""
    leader, x = Log(), data().detach()

    def total(x: Tensor) -> Tensor:
        return Implicit(tolerance=1e-12).solve(SOLVER, Curved(), leader, x).value.sum()

    (expected,) = torch.autograd.grad(total(x := x.requires_grad_()), x)
    torch.testing.assert_close(torch.func.grad(total)(x.detach()), expected)
    each = vmap(torch.func.grad(lambda row: total(row[None])))(x.detach())
    torch.testing.assert_close(each, expected)


def test_only_what_requires_a_gradient_has_one() -> None:
    """Labels and constants of the batch cost nothing and get nothing."""
    wanted: list[tuple[str, ...]] = []

    class Spy(Implicit):
        def pull(self, problem, v):
            wanted.append(problem.wanted)
            return super().pull(problem, v)

    leader = Log()
    for x in (data(), data().detach()):
        Spy().solve(SOLVER, Curved(), leader, Pair(x, torch.arange(3))).value.sum().backward()
    assert wanted == [("log", "batch[0]"), ("log",)]


class Encoder(LeaderProblem):
    """Features of the data, which a schedule computes once a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.log = nn.Parameter(torch.tensor(0.3, dtype=F64))
        self.body = nn.Linear(2, 2).double()

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return (y * y).sum() + y.sum()


class Once(Simultaneous):
    def step(self, game, batch):
        return super().step(game, game.leader.body(batch))


@pytest.mark.parametrize(("adjoint", "precision"), ADJOINTS, ids=str)
def test_a_game_trains_what_computes_the_features(adjoint: Adjoint, precision: float) -> None:
    moved = []
    for chosen in (Unrolled(), adjoint):
        leader = Encoder()
        sgd = torch.optim.SGD(leader.parameters(), lr=0.1)
        game = Bilevel(leader, Curved(), SOLVER, leader_opt=sgd, adjoint=chosen, schedule=Once())
        for _ in range(3):
            game.step(data().detach())
        moved.append([p.detach().clone() for p in leader.parameters()])
    torch.testing.assert_close(*moved, rtol=10 * precision, atol=10 * precision)
    assert not torch.equal(moved[0][1], Encoder().body.weight)


def test_a_constant_answer_gives_the_features_no_gradient() -> None:
    leader, x = Log(), data()
    y = Detached().solve(SOLVER, Curved(), leader, x).value
    assert not y.requires_grad


class Capped(Curved):
    """At most the data: a bound that moves with them."""

    def project(self, y: Tensor, batch: Any) -> Tensor:
        return torch.minimum(y, first(batch))


def test_constraints_are_checked_for_what_is_asked_anew() -> None:
    adjoint, leader = Penalty(1e4), Log()
    adjoint.solve(SOLVER, Capped(), leader, data().detach()).value.sum().backward()
    with pytest.raises(BilevelError, match="or tensors of the batch"):
        gradients(adjoint, Capped(), data(), lambda x: x)


class Differences(Pullback):
    """Of two solves, for each number of the batch."""

    reaches_batch = True

    def pull(self, problem, v):
        name, found = problem.wanted[-1], []
        point = problem.theta[name].detach()
        for unit in torch.eye(point.numel(), dtype=F64).view(-1, *point.shape):
            ends = [problem.solve({name: point + side * 1e-5 * unit})[0] for side in (1, -1)]
            found.append((v * (ends[0] - ends[1])).sum() / 2e-5)
        grads = dict.fromkeys(problem.wanted)
        return {**grads, name: torch.stack(found).view_as(point)}


def test_solves_for_other_data() -> None:
    leader, x = Log(), data()
    leader.log.requires_grad_(False)
    (expected,) = torch.autograd.grad(Unrolled().solve(SOLVER, Curved(), leader, x).value.sum(), x)
    (found,) = torch.autograd.grad(Differences().solve(SOLVER, Curved(), leader, x).value.sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Sized(Update):
    """A step whose size is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor(0.2, dtype=F64))

    def forward(self, y: Tensor, gradient: Tensor, context: Any, state: Any) -> Any:
        return y + self.size * gradient, state


@pytest.mark.parametrize("adjoint", [Implicit(), Penalty(1e4)])
def test_a_solver_is_trained_by_every_solve(adjoint: Adjoint) -> None:
    """Also by those after the first one, in which it is checked that nothing else is."""
    solver = Iterative(Sized(), 1)
    for _ in range(2):
        x = data()
        y = adjoint.solve(solver, Curved(), Log(), x).value
        (found,) = torch.autograd.grad(y.sum(), solver.parameters())
        expected = (x.square() * Log().log.exp()).sum()  # ∂y/∂size, the gradient at y = 0
        torch.testing.assert_close(found, expected)


def alive(adjoint: Adjoint, x: Tensor) -> int:
    """The number of tensors that an answer's graph keeps."""
    saved: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = adjoint.solve(SOLVER, Clipped(), Log(), x).value
    gc.collect()
    assert answer.requires_grad
    return sum(tensor() is not None for tensor in saved)


def test_the_graph_of_a_solve_is_not_kept() -> None:
    """Projections that read the data would hang each iterate on the last one."""
    adjoint = Implicit()
    alive(adjoint, data())  # in which it is checked that nothing else is trained
    assert alive(adjoint, data()) <= alive(adjoint, data().detach()) + 1 < 20
