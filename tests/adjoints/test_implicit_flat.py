"""The implicit adjoint of followers that are flat along some directions: these are left out."""

from __future__ import annotations

import warnings

import pytest
import torch

from bilevel import FollowerProblem, HypergradientWarning, Implicit, Iterative
from bilevel.updates import Gradient
from tests.valleys import (
    F64,
    Known,
    Numbers,
    Quadratic,
    Valley,
    error,
    hypergradient,
    optimum,
    valley,
)


class Sum(Quadratic):
    """½ (y₁ + y₂ − θ)²: steps from any start move both by half of dθ."""

    def init(self, batch):
        return torch.tensor([0.2, 0.6], dtype=F64)

    def objective(self, leader, y, batch):
        return (y.sum() - leader.theta.sum()).square() / 2


class BoxedSum(Sum):
    def project(self, y, batch):
        return y.clamp(-2, 2)


@pytest.mark.parametrize("follower", [Sum(), BoxedSum()])
@pytest.mark.parametrize("method", [None, "gmres", "exact"])
def test_a_flat_direction_is_left_out(follower, method) -> None:
    given = Iterative(Gradient(0.3), 200), follower, Numbers(1), None
    with pytest.warns(HypergradientWarning, match="singular system"):
        slope, _ = hypergradient(Implicit(method), *given, torch.tensor([0.12, 1.0], dtype=F64))
    assert slope.item() == pytest.approx(0.56)


@pytest.mark.parametrize("method", ["gmres", "exact"])
def test_the_logits_of_a_policy_are_flat_up_to_rounding(method) -> None:
    """Max over logits y of Σ μ pᵀ(θ − τ log p) at y* = θ / τ, without a derivative along 1."""

    class Policy(FollowerProblem):
        sense = "max"

        def objective(self, leader, y, batch):
            p = y.view(4, 3).softmax(-1)
            return (batch[:, None] * p * (leader.theta.view(4, 3) - 0.3 * p.log())).sum()

        def init(self, batch):
            return torch.zeros(12, dtype=F64)

    solver = Known(lambda leader, _: leader.theta / 0.3)
    for seed in range(12, 32):
        torch.manual_seed(seed)
        leader, v = Numbers(12), torch.rand(4, 3, dtype=F64)
        leader.theta.data = torch.randn(12, dtype=F64)
        v = (v - v.mean(1, keepdim=True)).flatten()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            slope, _ = hypergradient(
                Implicit(method), solver, Policy(), leader, torch.rand(4, dtype=F64), v
            )
        assert error(slope, v / 0.3) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [15, 100])
def test_several_minimisers(steps, dtype) -> None:
    """Min over y of ½‖Xy − θ‖², X of fewer rows: steps from 0 end at X⁺θ, whose derivative is X⁺.

    ∂L/∂y has a part along which the objective is flat, for which no w is the solution.
    """

    class Underdetermined(Quadratic):
        def init(self, batch):
            return torch.zeros(50, dtype=dtype)

        def objective(self, leader, y, batch):
            return (batch @ y - leader.theta.to(dtype)).square().sum() / 2

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 50, generator=generator, dtype=F64)
    v = torch.randn(50, generator=generator, dtype=F64)
    given = Iterative(Gradient(0.01), 500), Underdetermined(), Numbers(20), x.to(dtype), v.to(dtype)
    with pytest.warns(HypergradientWarning, match="singular system: |linear system not solved"):
        slope, solution = hypergradient(Implicit(max_steps=steps), *given)
    assert error(slope, torch.linalg.pinv(x).T @ v) < 1e-3
    assert solution.stats["residual"] < 1


def test_a_flat_direction_that_the_leader_does_not_see_is_no_concern() -> None:
    batch = Valley(torch.diag(torch.tensor([2.0, 0.0], dtype=F64)), torch.ones(2, 1, dtype=F64))
    solver = Known(lambda leader, batch: torch.stack([leader.theta.sum() / 2, torch.tensor(0.0)]))
    v = torch.tensor([1.0, 0.0], dtype=F64)

    class Flat(Quadratic):
        def objective(self, leader, y, batch):
            return y @ batch.h @ y / 2 - y[0] * leader.theta.sum()

    for method in ("cg", "exact"):
        slope, _ = hypergradient(Implicit(method), solver, Flat(), Numbers(1), batch, v)
        torch.testing.assert_close(slope, torch.tensor([0.5], dtype=F64))


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_an_objective_without_any_curvature_is_no_crash() -> None:
    class Slope(Quadratic):
        def objective(self, leader, y, batch):
            return y.sum()

    v = torch.ones(3, dtype=F64)
    given = Known(optimum), Slope(), Numbers(3), valley(3, 2.0), v
    with pytest.warns(HypergradientWarning, match="singular system"):
        slope, _ = hypergradient(Implicit(), *given)
    assert not slope.any()
