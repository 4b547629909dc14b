"""The first-order adjoint: how its error falls, its constraints, and what it refuses."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bilevel import (
    BilevelError,
    FollowerProblem,
    Forward,
    HypergradientWarning,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Penalty,
    Unrolled,
)
from bilevel.updates import Gradient, SignGradient, Update
from tests.valleys import (
    F64,
    Boxed,
    Curve,
    Known,
    Numbers,
    Quadratic,
    Valley,
    error,
    hypergradient,
    optimum,
    pulled_back,
    valley,
)


def test_the_error_falls_as_the_square_of_the_strength() -> None:
    batch, leader = torch.randn(4, 3, dtype=F64), Numbers(3)
    y = torch.asinh(batch @ leader.theta)
    v = torch.randn(4, dtype=F64)
    truth = batch.T @ (v / y.cosh()).detach()
    errors = []
    for strength in (8.0, 16.0, 32.0, 64.0):
        solver = Iterative(Gradient(0.1), 900)
        slope, _ = hypergradient(Penalty(strength), solver, Curve(), leader, batch, v)
        errors.append(error(slope, truth))
    for wide, narrow in pairwise(errors):
        assert wide / narrow == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("sense", ["min", "max"])
@pytest.mark.parametrize("solver", [Iterative(Gradient(0.1), 600), Known(optimum)])
def test_a_quadratic_follower_has_no_error(sense, solver) -> None:
    batch, leader, v = valley(4, 10.0), Numbers(3), torch.randn(4, dtype=F64)
    adjoint = Penalty(10.0, update=Gradient(0.1), steps=500)
    slope, solution = hypergradient(adjoint, solver, Quadratic(sense), leader, batch, v)
    assert error(slope, pulled_back(batch, v)) < 1e-8
    assert solution.stats["residual"] < 1e-6
    assert 1 <= solution.stats["curvature"] <= 10
    assert solution.stats["evaluations"] == 1002 + (0 if isinstance(solver, Known) else 600)


def test_a_box_stops_the_derivative() -> None:
    leader, batch = Numbers(4), 2 * torch.randn(5, 4, dtype=F64)
    reach = (leader.theta * batch).abs()
    batch = torch.where((reach - 1).abs() < 0.05, 1.2 * batch, batch)  # none at the very edge
    inside, v = (leader.theta * batch).abs() < 1, torch.randn(5, 4, dtype=F64)
    solver = Iterative(Gradient(0.4), 200)
    slope, _ = hypergradient(Penalty(1e4), solver, Boxed(), leader, batch, v)
    assert error(slope, (inside * batch * v).sum(0)) < 1e-8


def test_it_takes_no_second_derivatives() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            return slope

    class Rough(Quadratic):
        def objective(self, leader, y, batch):
            return super().objective(leader, Once.apply(y), batch)

    batch, leader, v = valley(3, 4.0), Numbers(3), torch.randn(3, dtype=F64)
    solver = Iterative(Gradient(0.2), 300)
    slope, _ = hypergradient(Penalty(10.0), solver, Rough(), leader, batch, v)
    assert error(slope, pulled_back(batch, v)) < 1e-8


@pytest.mark.parametrize(
    ("adjoint", "update", "message"),
    [
        (Penalty(10.0, steps=2), Gradient(0.001), "perturbed problems are not solved: their"),
        (Penalty(10.0), SignGradient(0.001), "perturbed problems are not solved: .* converges"),
        (Penalty(1e15), Gradient(0.1), "perturbation is lost in rounding: .* lower the"),
    ],
)
def test_what_should_not_be_trusted(adjoint, update, message) -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    given = adjoint, Iterative(update, 300), Quadratic(), leader, batch, v
    with pytest.warns(HypergradientWarning, match=message):
        hypergradient(*given)


@pytest.mark.parametrize("low", [False, True])
def test_solutions_that_autocast_cannot_tell_apart(low) -> None:
    """Which float32 can: they differ by a thousandth."""

    class Regression(FollowerProblem):
        sense = "min"

        def init(self, batch: Tensor) -> Tensor:
            return torch.zeros(1, 3)

        def objective(self, leader: Numbers, y: Tensor, batch: Tensor) -> Tensor:
            return ((y @ batch).float() - leader.theta.float()).square().sum() / 2

    class Length(Numbers):
        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            return y.square().sum()

    solver, leader = Iterative(Gradient(1.0), 3), Length(3)
    with warnings.catch_warnings(record=True) as caught, torch.autocast("cpu", enabled=low):
        warnings.simplefilter("always")
        solution = Penalty(1000.0).solve(solver, Regression(), leader, torch.eye(3))
        leader.loss(solution.value, None).backward()
    told = [str(one.message) for one in caught]
    assert any(re.search("lost in rounding: .* leave autocast", one) for one in told) is low, told


def test_an_answer_that_is_not_a_number_is_not_solved() -> None:
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    diverging = Iterative(Gradient(3.0), 2000)
    with pytest.warns(HypergradientWarning, match="perturbed problems are not solved"):
        _, solution = hypergradient(Penalty(10.0), diverging, Quadratic(), leader, batch, v)
    assert solution.stats["residual"].isnan()


def test_a_loss_that_is_flat_at_the_answer() -> None:
    """The Moreau envelope of ½‖w − c‖²: y* = (w + c) / 2, where the loss's slope is rounding."""

    class Personal(FollowerProblem):
        sense = "min"

        def init(self, batch: Tensor) -> Tensor:
            return torch.zeros_like(batch)

        def objective(self, leader: Envelope, y: Tensor, batch: Tensor) -> Tensor:
            return ((y - batch).square() + (y - leader.w).square()).sum(1) / 2

    class Envelope(LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))

        def loss(self, y: Tensor, batch: Tensor) -> Tensor:
            return Personal().objective(self, y, batch).mean()

    leader, batch = Envelope(), torch.randn(5, 3)
    solution = Penalty(100.0).solve(Iterative(Gradient(0.3), 60), Personal(), leader, batch)
    with pytest.warns(HypergradientWarning) as caught:
        leader.loss(solution.value, batch).backward()
    assert len(caught) == 1
    assert "rounding: " in str(caught[0].message)
    assert "Detached() is exact" in str(caught[0].message)
    assert solution.stats["residual"] == 0
    torch.testing.assert_close(leader.w.grad, (leader.w.detach() - batch.mean(0)) / 2)


def test_a_solver_without_steps() -> None:
    solver = Parametric(torch.zeros(3, dtype=F64))
    with pytest.raises(BilevelError, match=r"Parametric has none: give update=.* and steps"):
        Penalty(10.0).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))
    with pytest.raises(BilevelError, match="Parametric has none"):
        Penalty(10.0, steps=3).solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))


class Capped(FollowerProblem):
    """min ‖y − 2‖² subject to y ≤ θ, of three numbers each."""

    sense = "min"

    def __init__(self, leader: Numbers) -> None:
        self.leader = leader

    def init(self, batch: None) -> Tensor:
        return torch.zeros(3, dtype=F64)

    def objective(self, leader: Numbers, y: Tensor, batch: None) -> Tensor:
        return (y - 2).square().sum()

    def project(self, y: Tensor, batch: None) -> Tensor:
        return torch.minimum(y, self.leader.theta)


def test_constraints_that_move_with_the_leader() -> None:
    leader, v = Numbers(3), torch.ones(3, dtype=F64)
    solver = Iterative(Gradient(0.2), 50)
    for adjoint in (Implicit(), Unrolled(), Forward()):
        slope, _ = hypergradient(adjoint, solver, Capped(leader), leader, None, v)
        torch.testing.assert_close(slope, v)
    with pytest.raises(BilevelError, match=r"project depends on the leader's .* take Implicit"):
        hypergradient(Penalty(100.0), solver, Capped(leader), leader, None, v)


def test_steps_that_do_not_read_what_is_perturbed() -> None:
    class Halving(Update):
        needs_gradient = False

        def forward(self, y, gradient, context, state):
            return y / 2, state

    with pytest.raises(BilevelError, match=r"Halving reads no gradient of it: .*fixed_point="):
        Penalty(10.0).solve(Iterative(Halving(), 3), Quadratic(), Numbers(3), valley(3, 2.0))


def test_settings_out_of_range() -> None:
    with pytest.raises(BilevelError, match=r"strength is 0.0: it is positive"):
        Penalty(0.0)
    with pytest.raises(BilevelError, match=r"steps is 0.*give 1, 2"):
        Penalty(1.0, steps=0)


ONES = torch.ones(3, dtype=F64)
ROUND = Valley(torch.eye(3, dtype=F64), torch.ones(3, 3, dtype=F64))


def test_solves_that_have_converged_as_far_as_is_needed() -> None:
    """The last step of eight is 0.03 of an eighth of the way, which is no reason to warn."""
    adjoint = Penalty(10.0, update=Gradient(0.5), steps=8)
    _, solution = hypergradient(adjoint, Known(optimum), Quadratic(), Numbers(3), ROUND, ONES)
    assert solution.stats["residual"].item() == pytest.approx(8 * 0.5**8, rel=0.01)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("v", [1.0, -1.0])
def test_the_residual_is_of_the_solve_that_is_further_off(v: float) -> None:
    """At y* the box stops one of the two; the other is not solved in three steps."""
    leader, batch = Numbers(1), torch.full((1, 1), 2.0, dtype=F64)  # θx = 1
    solver = Known(lambda leader, batch: leader.theta * batch)
    adjoint = Penalty(10.0, update=Gradient(0.1), steps=3)
    given = solver, Boxed(), leader, batch, torch.full((1, 1), v, dtype=F64)
    assert hypergradient(adjoint, *given)[1].stats["residual"] > 0.5


class Jump(Update):
    """To the optimum, whatever the objective."""

    needs_gradient = False

    def __init__(self, leader: LeaderProblem) -> None:
        super().__init__()
        self.leaders = [leader]  # not registered

    def forward(self, y, gradient, context, state):
        return optimum(self.leaders[0], ROUND), state


def test_an_update_of_its_own() -> None:
    leader = Numbers(3)
    adjoint = Penalty(10.0, update=Gradient(0.5), steps=30)
    slope, _ = hypergradient(adjoint, Iterative(Jump(leader), 1), Quadratic(), leader, ROUND, ONES)
    assert error(slope, pulled_back(ROUND, ONES)) < 1e-6
    with pytest.raises(BilevelError, match="Known has none"):  # no number of steps
        Penalty(10.0, update=Gradient(0.5)).solve(Known(optimum), Quadratic(), leader, ROUND)


class Contextual(Update):
    def forward(self, y, gradient, context, state):
        return y + 0.5 * (gradient + 0 * context), state


class Seen(Quadratic):
    def context(self, y, batch):
        return y


def test_an_update_that_reads_the_context() -> None:
    solver = Iterative(Contextual(), 40)
    slope, _ = hypergradient(Penalty(10.0), solver, Seen(), Numbers(3), ROUND, ONES)
    assert error(slope, pulled_back(ROUND, ONES)) < 1e-6


def test_a_compiled_step_is_one() -> None:
    """A compiled module says that it has a length, and does not."""
    batch, v = valley(3, 2.0), torch.randn(3, dtype=F64)
    solver = Iterative(Gradient(0.1), 200)
    slope, _ = hypergradient(Penalty(10.0), solver, Quadratic(), Numbers(3), batch, v)
    solver.update = torch.compile(solver.update, backend="eager")
    same, _ = hypergradient(Penalty(10.0), solver, Quadratic(), Numbers(3), batch, v)
    assert error(same, slope) < 1e-12
