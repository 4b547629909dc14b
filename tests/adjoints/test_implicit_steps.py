"""The implicit adjoint by a step: of what its size, damping and a kept solution mean."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Bilevel,
    FollowerProblem,
    HypergradientWarning,
    Implicit,
    Iterative,
    LeaderProblem,
)
from bilevel.updates import Gradient, Update
from tests.valleys import F64, Boxed, Numbers, Quadratic, hypergradient, pulled_back, valley


class Near(FollowerProblem):
    """min over y of ½(y − θ)²: the Hessian is 1."""

    sense = "min"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros((), dtype=F64)

    def objective(self, leader: Scaled, y: Tensor, batch: Any) -> Tensor:
        return (y - leader.theta).square() / 2


class Scaled(LeaderProblem):
    """∂L/∂y is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones((), dtype=F64))

    def loss(self, y: Tensor, batch: float) -> Tensor:
        return batch * y


def single_loop(step: float, fixed_point: Gradient | None = None) -> Bilevel:
    """A single loop in which θ stays."""
    leader = Scaled()
    return Bilevel(
        leader,
        Near(),
        Iterative(Gradient(step), steps=1, warm_start=True),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.0),
        adjoint=Implicit("neumann", max_steps=1, warm_start=True, fixed_point=fixed_point),
    )


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("own", [True, False])
def test_a_kept_solution_means_the_same_for_another_step(own: bool) -> None:
    game = single_loop(0.5, None if own else Gradient(0.5))
    step = game.solver.update if own else game.adjoint.fixed_point
    for _ in range(60):
        game.step(3.0)
    assert game.leader.theta.grad.item() == pytest.approx(3.0)
    step.step = 0.005
    game.step(3.0)
    assert game.leader.theta.grad.item() == pytest.approx(3.0)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_steps_that_decrease_are_those_of_the_loop_by_hand() -> None:
    """Each is w ← w − ηₖ(w − v), also where v = 0."""
    game, w = single_loop(0.5), 0.0
    for k, v in enumerate([1.0, -2.0, 0.0, 3.0, 0.0, 1.0]):
        step = game.solver.update.step = 0.5 / (k + 1) ** 0.4
        w = w - step * (w - v)
        game.step(v)
        assert game.leader.theta.grad.item() == pytest.approx(w)


def test_zero_is_solved_by_zero_where_no_series_is_kept() -> None:
    for adjoint in (Implicit("neumann"), Implicit(warm_start=True)):
        leader = Scaled()
        solution = adjoint.solve(Iterative(Gradient(0.5), 60), Near(), leader, 0.0)
        leader.loss(solution.value, 0.0).backward()
        assert leader.theta.grad == 0
        assert "residual" not in solution.stats


@pytest.mark.parametrize("step", [0.1, 0.5])
@pytest.mark.parametrize("method", [None, "gmres", "exact", "neumann"])
def test_damping_is_the_hessians_whatever_the_step(method, step: float) -> None:
    """(H + ¼I)⁻¹ of H = diag(½ … 2), with a constraint that is not active and without one."""
    leader, batch, v = Numbers(4), torch.full((1, 4), 0.1, dtype=F64), torch.ones(1, 4, dtype=F64)
    weights = torch.linspace(0.5, 2.0, 4, dtype=F64)

    class Free(Boxed):
        project = FollowerProblem.project

    for follower in (Boxed(), Free()):
        adjoint = Implicit(method, damping=0.25, tolerance=1e-10, max_steps=500)
        solver = Iterative(Gradient(step), 400)
        slope, solution = hypergradient(adjoint, solver, follower, leader, batch, v)
        torch.testing.assert_close(slope, 0.1 * weights / (weights + 0.25))
        assert 0.49 < solution.stats["curvature"] < 2.01


def test_damping_of_another_step_is_added_to_its_own_condition() -> None:
    """(H/2 + ¼I)⁻¹ H/2 of F = T(y) − y, where a step has no size to divide by."""

    class Halfway(Update):
        def forward(self, y, gradient, context, state):
            return y + gradient / 2, state

    leader, batch, v = Numbers(4), torch.full((1, 4), 0.1, dtype=F64), torch.ones(1, 4, dtype=F64)
    weights = torch.linspace(0.5, 2.0, 4, dtype=F64)
    adjoint = Implicit(damping=0.25, tolerance=1e-10, fixed_point=Halfway())
    slope, _ = hypergradient(adjoint, Iterative(Halfway(), 400), Boxed(), leader, batch, v)
    torch.testing.assert_close(slope, 0.1 * weights / (weights + 0.5))


def test_the_condition_does_not_depend_on_the_step() -> None:
    """The same answer of a box has the same stationarity, with a step of any size."""
    leader, batch, v = Numbers(4), torch.full((1, 4), 0.1, dtype=F64), torch.ones(1, 4, dtype=F64)
    norms = []
    for step in (0.1, 0.01):
        adjoint = Implicit(fixed_point=Gradient(step))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypergradientWarning)
            given = adjoint, Iterative(Gradient(0.1), 3), Boxed(), leader, batch, v
            norms.append(hypergradient(*given)[1].stats["stationarity"])
    torch.testing.assert_close(*norms)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_steps_are_terms_of_the_series() -> None:
    """K steps add η(I − ηH)ᵏv for k < K."""
    batch, leader, v = valley(4, 5.0), Numbers(3), torch.randn(4, dtype=F64)
    adjoint = Implicit("neumann", max_steps=3, tolerance=0)
    slope, _ = hypergradient(adjoint, Iterative(Gradient(0.1), 300), Quadratic(), leader, batch, v)
    factor = torch.eye(4, dtype=F64) - 0.1 * batch.h
    series = 0.1 * (v + factor @ v + factor @ factor @ v)
    torch.testing.assert_close(slope, batch.b.T @ series)
    assert not torch.allclose(slope, pulled_back(batch, v))
