"""Differentiating through the solve: closed forms, other libraries' answers, truncation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from bilevel import (
    BilevelError,
    FollowerProblem,
    Forward,
    Iterative,
    LeaderProblem,
    Parametric,
    Unrolled,
    testing,
)
from bilevel.solvers import Solver
from bilevel.updates import CNN, Gradient, Momentum, Optimizer, Update
from tests.problems import image_game
from tests.valleys import F64, Boxed, Numbers, Quadratic, error, hypergradient, valley

TURNS = 12
with torch.random.fork_rng():
    torch.manual_seed(0)
    NETWORK = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
UPDATES: dict[str, Update] = {
    "gradient": Gradient(0.1),
    "momentum": Momentum(Gradient(0.1), 0.9),
    "adam": Optimizer(torch.optim.Adam, lr=0.05),
}


class Weighted(LeaderProblem):
    """Weights of the training samples, judged on validation samples."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, count, dtype=F64))

    def loss(self, y: dict[str, Tensor], batch: Any) -> Tensor:
        return F.cross_entropy(functional_call(NETWORK, y, batch[2]), batch[3])


class Training(FollowerProblem):
    """A network's weighted training loss."""

    sense = "min"

    def init(self, batch: Any) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in NETWORK.named_parameters()}

    def objective(self, leader: Weighted, y: dict[str, Tensor], batch: Any) -> Tensor:
        outputs = functional_call(NETWORK, y, batch[0])
        losses = F.cross_entropy(outputs, batch[1], reduction="none")
        return (leader.theta.sigmoid() * losses).mean()


def data() -> Any:
    x, t = torch.randn(16, 3, dtype=F64), torch.arange(16) % 3
    return x[:8], t[:8], x[8:], t[8:]


def slope(adjoint, update: Update, batch: Any, *, steps: int = TURNS) -> Tensor:
    leader = Weighted(8)
    value = adjoint.solve(Iterative(update, steps), Training(), leader, batch).value
    (result,) = torch.autograd.grad(leader.loss(value, batch), leader.theta)
    return result


@given(
    size=st.integers(1, 6),
    condition=st.floats(1.0, 1e4),
    steps=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_a_quadratic_follower(size, condition, steps, seed) -> None:
    """y_T = (1 − (1 − ηH)ᵀ) H⁻¹ Bθ for T gradient steps."""
    batch, leader = valley(size, condition, seed=seed), Numbers(3)
    v, step = torch.randn(size, dtype=F64), 1 / condition
    solver = Iterative(Gradient(step), steps)
    rest = torch.linalg.matrix_power(torch.eye(size, dtype=F64) - step * batch.h, steps)
    truth = batch.b.T @ torch.linalg.solve(batch.h, (v - rest @ v))
    for adjoint in (Unrolled(), Unrolled(recompute=True), Unrolled(recompute=3), Forward()):
        found, solution = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
        assert error(found, truth) < 1e-8
        optimum = torch.linalg.solve(batch.h, batch.b @ leader.theta)
        torch.testing.assert_close(solution.value, optimum - rest @ optimum)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["gradient", "adam"])
def test_it_agrees_with_higher(name: str) -> None:
    higher = pytest.importorskip("higher")
    batch, leader, model = data(), Weighted(8), copy.deepcopy(NETWORK)
    # higher has Adam's eps elsewhere than torch. It enters the slope of the first step,
    # g/(|g| + eps), as eps/g²: it has to be far below the square of the smallest gradient.
    kind, given = {
        "gradient": (torch.optim.SGD, {"lr": 0.1}),
        "adam": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-30}),
    }[name]
    optimizer = kind(model.parameters(), **given)
    with higher.innerloop_ctx(model, optimizer) as (inner, steps):
        for _ in range(TURNS):
            losses = F.cross_entropy(inner(batch[0]), batch[1], reduction="none")
            steps.step((leader.theta.sigmoid() * losses).mean())
        (theirs,) = torch.autograd.grad(F.cross_entropy(inner(batch[2]), batch[3]), leader.theta)
    assert error(slope(Unrolled(), Optimizer(kind, **given), batch), theirs) < 1e-10


@pytest.mark.filterwarnings("ignore")
def test_it_agrees_with_torchopt() -> None:
    torchopt = pytest.importorskip("torchopt")
    batch, leader, model = data(), Weighted(8), copy.deepcopy(NETWORK)
    optimizer = torchopt.MetaSGD(model, lr=0.1)
    for _ in range(TURNS):
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        optimizer.step((leader.theta.sigmoid() * losses).mean())
    (theirs,) = torch.autograd.grad(F.cross_entropy(model(batch[2]), batch[3]), leader.theta)
    assert error(slope(Unrolled(), UPDATES["gradient"], batch), theirs) < 1e-6


@pytest.mark.parametrize("name", UPDATES)
def test_recomputed_and_forward_derivatives_are_the_same(name: str) -> None:
    batch, update = data(), UPDATES[name]
    plain = slope(Unrolled(), update, batch)
    for recompute in (True, 1, 5, 100):
        assert error(slope(Unrolled(recompute=recompute), update, batch), plain) < 1e-12
    assert error(slope(Forward(), update, batch), plain) < 1e-12


def test_truncation_drops_what_comes_before() -> None:
    """On ½h(y − θ)² the last k of the steps give 1 − (1 − ηh)ᵏ, whatever came before."""
    batch, leader = valley(1, 1.0, numbers=1), Numbers(1)
    v = torch.ones(1, dtype=F64)
    for kept in (1, 4, 10, 50):
        found, solution = hypergradient(
            Unrolled(truncate=kept, recompute=3), Iterative(Gradient(0.2), 10), Quadratic(),
            leader, batch, v,
        )  # fmt: skip
        assert error(found, (1 - 0.8 ** min(kept, 10)) * batch.b[0]) < 1e-12
        assert solution.stats["evaluations"] == 10
        answer = (1 - 0.8**10) * batch.b @ leader.theta
        torch.testing.assert_close(solution.value, answer)


@pytest.mark.parametrize("recompute", [False, 1])
def test_phi_is_trained_through_the_gradients(recompute) -> None:
    """Two learned steps written by hand, with second derivatives."""
    leader, follower, batch = image_game(dtype=F64)
    leader.eval()
    update = CNN(1, 0.1, width=4, form="two-layer").double()
    players = [*leader.parameters(), *update.parameters()]
    weights = torch.randn(6, 1, 4, 4, dtype=F64)
    twin = copy.deepcopy(update)
    value = Unrolled(recompute=recompute).solve(Iterative(update, 2), follower, leader, batch).value
    ours = torch.autograd.grad((value * weights).sum(), players)

    delta = torch.zeros_like(batch.x).requires_grad_()
    for _ in range(2):
        loss = follower.objective(leader, delta, batch).sum()
        (gradient,) = torch.autograd.grad(loss, delta, create_graph=True)
        delta, _ = twin(delta, gradient, batch.x + delta, None)
        delta = (batch.x + delta.clamp(-0.1, 0.1)).clamp(0, 1) - batch.x
    by_hand = torch.autograd.grad(
        (delta * weights).sum(), [*leader.parameters(), *twin.parameters()]
    )
    for mine, theirs in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert ours[0].any()


def test_a_box_stops_the_derivative() -> None:
    leader, batch = Numbers(4), 2 * torch.randn(5, 4, dtype=F64)
    inside, v = (leader.theta * batch).abs() < 1, torch.randn(5, 4, dtype=F64)
    solver = Iterative(Gradient(0.4), 200)
    for adjoint in (Unrolled(), Unrolled(recompute=True), Forward()):
        found, _ = hypergradient(adjoint, solver, Boxed(), leader, batch, v)
        assert error(found, (inside * batch * v).sum(0)) < 1e-10


def test_any_solver_that_asks_a_differentiable_oracle() -> None:
    class TwoSteps(Solver):
        def answer(self, oracle):
            y = oracle.init()
            for _ in range(2):
                y = y + 0.1 * oracle.gradient(y)
            return y

    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    found, _ = hypergradient(Unrolled(), TwoSteps(), Quadratic(), leader, batch, v)
    like, _ = hypergradient(Unrolled(), Iterative(Gradient(0.1), 2), Quadratic(), leader, batch, v)
    torch.testing.assert_close(found, like)

    class Rows(TwoSteps):
        def answer(self, oracle):
            every = torch.ones(5, dtype=torch.bool)
            return super().answer(oracle.restricted(every))

    batch, leader, v = torch.randn(5, 4, dtype=F64), Numbers(4), torch.randn(5, 4, dtype=F64)
    found, like = (
        hypergradient(Unrolled(), solver, Boxed(), leader, batch, v)[0]
        for solver in (Rows(), TwoSteps())
    )
    torch.testing.assert_close(found, like)
    with pytest.raises(BilevelError, match=r"cannot cut TwoSteps into steps.*Unrolled\(\) without"):
        Unrolled(truncate=1).solve(TwoSteps(), Quadratic(), leader, batch)


@pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(recompute=True), Unrolled(truncate=1)])
def test_the_leader_is_left_as_it_was(adjoint) -> None:
    class Through(Solver):
        """Solves as the adjoint does."""

        def __init__(self):
            super().__init__()
            self.inner = Iterative(Gradient(0.1), 3, warm_start=True, leader_mode="train")

        def solve(self, follower, leader, batch, *, evaluate=True):
            return adjoint.solve(self.inner, follower, leader, batch)

        def answer(self, oracle):
            raise NotImplementedError

    leader, follower, batch = image_game()
    leader.train()
    leader.loss(torch.zeros_like(batch.x), batch).backward()
    testing.check_solver(Through(), follower, leader, batch)


class Started(Quadratic):
    """Its start is computed from θ."""

    def __init__(self, leader: Numbers) -> None:
        super().__init__()
        self.leader = leader

    def init(self, batch: Any) -> Tensor:
        return batch.b @ self.leader.theta.sin()


@pytest.mark.parametrize(
    "adjoint",
    [
        Unrolled(recompute=True),
        Unrolled(recompute=2),
        Unrolled(truncate=TURNS),
        Unrolled(truncate=TURNS + 1, recompute=True),
        Forward(),
    ],
    ids=str,
)
def test_a_start_that_depends_on_the_leader(adjoint) -> None:
    """dy_0/dθ is a part of the gradient, unless the first steps are cut off."""
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    given = Iterative(Gradient(0.1), TURNS), Started(leader), leader, batch, v
    found, like = (hypergradient(one, *given)[0] for one in (adjoint, Unrolled()))
    assert error(found, like) < 1e-10
    cut, whole = (hypergradient(Unrolled(truncate=k), *given)[0] for k in (TURNS - 1, TURNS))
    assert error(cut, whole) > 1e-3


def test_a_parameter_that_is_not_contiguous() -> None:
    class Turned(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.arange(6.0, dtype=F64).view(2, 3).T)

        def loss(self, y, batch):
            raise NotImplementedError

    class Product(Quadratic):
        def objective(self, leader, y, batch):
            return y.square().sum() / 2 - y @ leader.matrix @ batch

        def init(self, batch):
            return torch.zeros(3, dtype=F64)

    leader, batch, v = Turned(), torch.randn(2, dtype=F64), torch.randn(3, dtype=F64)
    for adjoint in (Forward(), Unrolled()):
        value = adjoint.solve(Iterative(Gradient(0.5), 60), Product(), leader, batch).value
        (slope,) = torch.autograd.grad(value, leader.matrix, v)
        torch.testing.assert_close(slope, torch.outer(v, batch))


def test_parameters_that_an_answer_goes_on_from() -> None:
    """One step from y₀, so that the derivative in θ is that of the step."""

    class Ahead(Parametric):
        def answer(self, oracle):
            start = super().answer(oracle)
            return start + 0.1 * oracle.gradient(start)

    leader, batch, v = Numbers(3), valley(3, 2.0), torch.randn(3, dtype=F64)
    found, like = (
        hypergradient(Unrolled(), solver, Quadratic(), leader, batch, v)[0]
        for solver in (Ahead(torch.zeros(3, dtype=F64)), Iterative(Gradient(0.1), 1))
    )
    assert error(found, like) < 1e-12
