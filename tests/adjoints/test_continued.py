"""Derivatives of warm-started solves, which go on from one solve to the next."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Adjoint,
    Bilevel,
    BilevelError,
    Forward,
    HypergradientWarning,
    Iterative,
    LeaderProblem,
    Oracle,
    Sampled,
    Solver,
    Unrolled,
)
from bilevel.updates import CoordinateRNN, Gradient, Momentum, Optimizer, Update
from tests.valleys import F64, Numbers, Quadratic, error, hypergradient, valley

UPDATES: dict[str, Callable[[], Update]] = {
    "gradient": lambda: Gradient(0.1),
    "momentum": lambda: Momentum(Gradient(0.1), 0.5),
    "adam": lambda: Optimizer(torch.optim.Adam, lr=0.1),
    "rnn": lambda: _rnn(),
}


def _rnn() -> Update:
    torch.manual_seed(3)
    return CoordinateRNN(0.1, gradient_skip=0.5).double().requires_grad_(False)


class Bent(Quadratic):
    """Its second derivatives depend on θ and y; y is a dict, which learned updates take whole."""

    def init(self, batch: Any) -> Any:
        return {"y": super().init(batch)}

    def objective(self, leader: Numbers, y: Any, batch: Any) -> Tensor:
        return super().objective(leader, y["y"], batch) + (leader.theta.sum() * y["y"].sin()).sum()


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES.keys())
def test_windows_have_the_gradient_of_all_steps(update: Callable[[], Update]) -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), {"y": torch.randn(4, dtype=F64)}
    adjoint, solver = Forward(), Iterative(update(), 3, warm_start=True)
    for steps in (3, 6, 9, 12):
        slope, _ = hypergradient(adjoint, solver, Bent(), leader, batch, v)
        whole, _ = hypergradient(Unrolled(), Iterative(update(), steps), Bent(), leader, batch, v)
        assert error(slope, whole) < 1e-10


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_persistent_samples_spread_around_the_gradient_of_all_steps() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    solvers = [Iterative(Gradient(0.1), 9), Iterative(Gradient(0.1), 3)]
    whole, window = (
        hypergradient(Unrolled(), solver, Quadratic(), leader, batch, v)[0] for solver in solvers
    )
    slopes, said = [], []
    for _ in range(40):
        adjoint, solver = Sampled(0.1, samples=20), Iterative(Gradient(0.1), 3, warm_start=True)
        for _ in range(3):
            slope, solution = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
        slopes.append(slope)
        said.append(solution.stats["residual"] * slope.norm())
    every = torch.stack(slopes)
    mean, off = every.mean(0), every.std(0) / 40**0.5
    assert ((mean - whole).abs() < 4 * off).all()
    assert ((mean - window).abs() > 4 * off).any()
    assert torch.stack(said).mean() == pytest.approx(float(every.std(0).norm()), rel=0.2)


class Influence(Update):
    """y ← A y + b θ with A = (I + shift) / 2 (Vicol et al., 2021, influence balancing).

    The first coordinate sees the last ones, where b = −1, only after as many steps.
    """

    needs_gradient = False

    def __init__(self, leader: LeaderProblem) -> None:
        super().__init__()
        self._leaders = (leader,)  # not a part of the solver

    def forward(self, y: Tensor, gradient: Any, context: Any, state: Any) -> tuple[Tensor, Any]:
        signs = torch.where(torch.arange(len(y)) < 10, 1.0, -1.0)
        return (y + torch.cat([y[1:], y[:1] * 0])) / 2 + signs * self._leaders[0].theta, state


def test_influences_that_balance_after_many_steps() -> None:
    """θ first moves y₁ up, and in the end down: a window of one step has the wrong sign."""

    class Free(Quadratic):
        def init(self, batch: None) -> Tensor:
            return torch.zeros(23, dtype=F64)

        def objective(self, leader: Numbers, y: Tensor, batch: None) -> Tensor:
            return y.sum() * 0

    v = torch.eye(23, dtype=F64)[0]
    signs = torch.where(torch.arange(23) < 10, 1.0, -1.0).to(F64)
    matrix = (torch.eye(23, dtype=F64) + torch.eye(23, dtype=F64).roll(1, 1).triu()) / 2
    limit = torch.linalg.solve(torch.eye(23, dtype=F64) - matrix, signs)[0]  # Σ Aᵏ b
    assert limit < 0
    slopes = {}
    for adjoint in (Forward(), Unrolled()):
        leader = Numbers(1)
        solver = Iterative(Influence(leader), 1, warm_start=True)
        for _ in range(400):
            slope, _ = hypergradient(adjoint, solver, Free(), leader, None, v)
        slopes[repr(adjoint)] = slope.item()
    assert slopes["Forward()"] == pytest.approx(limit.item(), rel=1e-6)
    assert slopes["Unrolled()"] == 1.0


def test_a_new_start_begins_a_new_derivative() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    adjoint, solver = Forward(), Iterative(Gradient(0.1), 3, warm_start=True)
    slopes = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            slopes += [
                hypergradient(adjoint, solver, Quadratic(), leader, batch, v)[0] for _ in range(2)
            ]
            solver.kept = None
    assert torch.equal(slopes[0], slopes[2])
    assert torch.equal(slopes[1], slopes[3])
    assert not torch.equal(slopes[0], slopes[1])


def test_solves_that_do_not_go_on_any_longer_have_samples_of_their_own() -> None:
    given = Quadratic(), Numbers(3), valley(4, 5.0), torch.ones(4, dtype=F64)
    adjoint, solver = Sampled(0.1, samples=100), Iterative(Gradient(0.1), 3, warm_start=True)
    hypergradient(adjoint, solver, *given)
    solver.warm_start = False
    slopes = []
    for one in (adjoint, Sampled(0.1, samples=100)):
        torch.manual_seed(0)
        slopes.append(hypergradient(one, solver, *given)[0])
    assert torch.equal(*slopes)


@pytest.mark.parametrize("make", [Forward, partial(Sampled, 0.1, samples=100)])
def test_a_solve_without_a_backward_pass_ends_the_derivative(make: Callable[[], Adjoint]) -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.ones(4, dtype=F64)
    adjoint, solver = make(), Iterative(Gradient(0.1), 3, warm_start=True)
    given = solver, Quadratic(), leader, batch
    hypergradient(adjoint, *given, v)
    with torch.no_grad():
        adjoint.solve(*given)
    kept, slopes = solver.kept, []
    for one in (adjoint, make()):
        torch.manual_seed(0)
        solver.kept = kept
        with pytest.warns(HypergradientWarning, match="start is not known: .* with copy.copy"):
            slopes.append(hypergradient(one, *given, v)[0])
    assert torch.equal(*slopes)


def test_the_derivative_goes_on_where_the_loss_is_flat() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    adjoint, solver = Forward(), Iterative(Gradient(0.1), 3, warm_start=True)
    slope, _ = hypergradient(adjoint, solver, Quadratic(), leader, batch, torch.zeros_like(v))
    assert not slope.any()
    slope, _ = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
    whole = Iterative(Gradient(0.1), 6)
    assert error(slope, hypergradient(Unrolled(), whole, Quadratic(), leader, batch, v)[0]) < 1e-12


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("adjoint", [Forward(), Sampled(0.1, samples=4)], ids=repr)
def test_a_resumed_game_goes_on_as_if_it_had_not_stopped(adjoint: Adjoint, tmp_path: Any) -> None:
    batch = valley(4, 5.0)

    def make() -> Bilevel:
        leader = Numbers(3, torch.ones(4, dtype=F64))
        return Bilevel(
            leader,
            Quadratic(),
            Iterative(Momentum(Gradient(0.1), 0.5), 2, warm_start=True),
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
            adjoint=adjoint,
        )

    game, resumed = make(), make()
    for _ in range(2):
        game.step(batch)
    torch.save(game.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for one in (game, resumed):
        torch.manual_seed(1)
        one.step(batch)
    assert torch.equal(game.leader.theta, resumed.leader.theta)
    anew = make()
    forgotten = {"adjoint": anew.adjoint.state_dict()}
    anew.load_state_dict({**torch.load(tmp_path / "state.pt"), **forgotten})
    torch.manual_seed(1)
    anew.step(batch)
    assert not torch.equal(game.leader.theta, anew.leader.theta)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_a_state_of_another_number_of_samples_is_a_mean_over_these() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.ones(4, dtype=F64)
    adjoint, solver = Sampled(0.1, samples=4), Iterative(Gradient(0.1), 2, warm_start=True)
    hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
    kept, other, slopes = solver.kept, Sampled(0.1, samples=8), []
    other.load_state_dict(adjoint.state_dict())
    for one in (adjoint, other):
        torch.manual_seed(1)
        solver.kept = kept
        slopes.append(hypergradient(one, solver, Quadratic(), leader, batch, v)[0])
    assert torch.equal(*slopes)


@pytest.mark.parametrize("scale", [0.03, 0.3])
def test_samples_count_by_the_scale_that_they_were_drawn_at(scale: float) -> None:
    batch, leader, v = valley(1, 1.0), Numbers(3), torch.ones(1, dtype=F64)
    adjoint, solver = Sampled(0.1, samples=400), Iterative(Gradient(0.1), 1, warm_start=True)
    given = solver, Quadratic(), leader, batch, v
    for _ in range(3):
        hypergradient(adjoint, *given)
    adjoint.scale = scale
    slope, _ = hypergradient(adjoint, *given)
    whole, _ = hypergradient(Unrolled(), Iterative(Gradient(0.1), 4), *given[1:])
    assert error(slope, whole) < 0.25


def test_what_one_adjoint_knows_is_not_read_by_another() -> None:
    adjoint, solver = Forward(), Iterative(Gradient(0.1), 2, warm_start=True)
    given = solver, Quadratic(), Numbers(3), valley(4, 5.0), torch.ones(4, dtype=F64)
    hypergradient(adjoint, *given)
    with pytest.raises(KeyError, match="Sampled"):
        Sampled(0.1).load_state_dict(adjoint.state_dict())


@pytest.mark.parametrize("adjoint", [Forward(), Sampled(0.1, samples=100)], ids=repr)
def test_the_derivative_ends_where_other_parameters_train(adjoint: Adjoint) -> None:
    batch, v = valley(4, 5.0), torch.ones(4, dtype=F64)

    class Two(Numbers):
        def __init__(self) -> None:
            super().__init__(3)
            self.scale = torch.nn.Parameter(torch.ones((), dtype=F64), requires_grad=False)

    class Scaled(Quadratic):
        def objective(self, leader: Any, y: Any, batch: Any) -> Tensor:
            return leader.scale * super().objective(leader, y, batch)

    leader, solver = Two(), Iterative(Gradient(0.1), 2, warm_start=True)
    hypergradient(adjoint, solver, Scaled(), leader, batch, v)
    leader.scale.requires_grad_(True)
    with pytest.warns(HypergradientWarning, match="no backward pass of the same parameters"):
        hypergradient(adjoint, solver, Scaled(), leader, batch, v)


@pytest.mark.parametrize("adjoint", [Forward(), Sampled(0.1)], ids=repr)
def test_a_solver_with_a_memory_of_its_own(adjoint: Adjoint) -> None:
    class Remembers(Solver):
        @property
        def repeatable(self) -> bool:
            return False

        def answer(self, oracle: Oracle) -> Tensor:
            return oracle.init()

    with pytest.raises(BilevelError, match="starts from its last answer at each solve"):
        adjoint.solve(Remembers(), Quadratic(), Numbers(3), valley(3, 2.0))


class Scaled(Quadratic):
    def objective(self, leader: Any, y: Any, batch: Any) -> Tensor:
        return leader.scale * super().objective(leader, y, batch)


@pytest.mark.parametrize("adjoint", [Forward(), Sampled(0.1, samples=100)], ids=repr)
def test_what_is_known_is_of_the_parameters_that_are_trained(adjoint: Adjoint) -> None:
    batch, v, leader = valley(4, 5.0), torch.ones(4, dtype=F64), Numbers(3)
    leader.scale = nn.Parameter(torch.ones((), dtype=F64))
    solver = Iterative(Gradient(0.1), 2, warm_start=True)
    value = adjoint.solve(solver, Scaled(), leader, batch).value
    torch.autograd.grad(value, [*leader.parameters()], v)
    leader.scale.requires_grad_(False)
    with pytest.warns(HypergradientWarning, match="no backward pass of the same parameters"):
        hypergradient(adjoint, solver, Scaled(), leader, batch, v)


class Idle(Quadratic):
    """A part of its answer does not move."""

    def init(self, batch: Any) -> Any:
        return {"idle": torch.ones(1, dtype=F64), "y": super().init(batch)}

    def objective(self, leader: Any, y: Any, batch: Any) -> Tensor:
        return super().objective(leader, y["y"], batch)


def test_a_start_is_known_if_all_of_its_parts_are() -> None:
    batch, leader, adjoint = valley(4, 5.0), Numbers(3), Forward()
    given = Iterative(Gradient(0.1), 3, warm_start=True), Idle(), leader, batch
    v = {"idle": torch.zeros(1, dtype=F64), "y": torch.ones(4, dtype=F64)}
    hypergradient(adjoint, *given, v)
    adjoint.solve(*given)  # without a backward pass
    with pytest.warns(HypergradientWarning, match="start is not known"):
        hypergradient(adjoint, *given, v)


def test_a_loss_that_is_flat_says_nothing_of_the_follower() -> None:
    given = Iterative(Gradient(0.1), 3, warm_start=True), Quadratic(), Numbers(3), valley(4, 5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope, _ = hypergradient(Sampled(0.1, samples=100), *given, torch.zeros(4, dtype=F64))
    assert not slope.any()
