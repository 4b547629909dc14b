"""Linear systems of a large condition number: how far they are solved, and what is said of them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    FollowerProblem,
    HypergradientWarning,
    Implicit,
    Iterative,
    LeaderProblem,
)
from bilevel.updates import Gradient
from tests.valleys import F64, Known, Numbers, Quadratic, error, hypergradient, optimum, valley

POINTS, PLACES = torch.linspace(0, 5, 60, dtype=F64), torch.linspace(0.1, 4.9, 20, dtype=F64)
NOISE = 0.2 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=F64)
VALUES = (2 * POINTS).sin() + NOISE


class Process(LeaderProblem):
    """The logarithms of a Gaussian process's length and noise, to fit sin 2x at other places."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([-0.5, noise], dtype=F64))

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        return (-((a[:, None] - b) / self.theta[0].exp()).square() / 2).exp()

    def kernel(self) -> Tensor:
        return self.between(POINTS, POINTS) + self.theta[1].exp() * torch.eye(60)

    def loss(self, y: Tensor, batch: Any) -> Tensor:
        return (self.between(PLACES, POINTS).to(y.dtype) @ y - (2 * PLACES).sin()).square().mean()


class Weights(FollowerProblem):
    """min over y of ½ yᵀKy − yᵀt, at y* = K⁻¹t."""

    sense = "min"

    def __init__(self, dtype: torch.dtype = F64) -> None:
        self.dtype = dtype

    def init(self, batch: Any) -> Tensor:
        return torch.zeros(60, dtype=self.dtype)

    def objective(self, leader: Process, y: Tensor, batch: Any) -> Tensor:
        return y @ leader.kernel().to(self.dtype) @ y / 2 - y @ VALUES.to(self.dtype)


def fitted(adjoint: Implicit, noise: float, dtype: torch.dtype = F64) -> Tensor:
    leader = Process(noise)
    solver = Known(lambda leader, _: torch.linalg.solve(leader.kernel(), VALUES).to(dtype))
    value = adjoint.solve(solver, Weights(dtype), leader, None).value
    return torch.autograd.grad(leader.loss(value, None), leader.theta)[0]


@pytest.mark.parametrize("method", [None, "cg", "gmres", "exact"])
@pytest.mark.parametrize("noise", [-5.0, -11.0, -14.0])
def test_the_hyperparameters_of_a_gaussian_process(method, noise: float) -> None:
    """With condition numbers from 3e3 to 2e7; the expected one is that of y = K⁻¹t itself."""
    leader = Process(noise)
    loss = leader.loss(torch.linalg.solve(leader.kernel(), VALUES), None)
    (expected,) = torch.autograd.grad(loss, leader.theta)
    found = fitted(Implicit(method), noise)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)  # of each, however small


def test_samples_whose_small_curvatures_matter() -> None:
    """Min over each y of ½ Σ hᵢyᵢ² − θᵢyᵢ with h down to 1e-7: v = h gives a slope of 1 each."""
    h = torch.logspace(0, -7, 12, dtype=F64)

    class Slopes(Quadratic):
        def init(self, batch):
            return torch.zeros(batch, 12, dtype=F64)

        def objective(self, leader, y, batch):
            return (h * y.square() / 2 - leader.theta * y).sum(1)

    solver = Known(lambda leader, batch: (leader.theta / h).expand(batch, 12))
    slope, _ = hypergradient(Implicit(), solver, Slopes(), Numbers(12), 3, h.expand(3, 12))
    torch.testing.assert_close(slope, torch.full((12,), 3.0, dtype=F64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["cg", "gmres", "neumann"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-12)])
def test_the_tolerance_by_default_is_that_of_the_type_of_y(method, dtype, tolerance) -> None:
    """‖residual‖ ≤ tolerance, after as many products as with that tolerance given."""

    class Typed(Quadratic):
        def init(self, batch):
            return torch.zeros(6, dtype=dtype)

        def objective(self, leader, y, batch):
            return super().objective(leader, y.to(F64), batch).to(dtype)

    batch, leader, v = valley(6, 3.0), Numbers(3), torch.ones(6, dtype=dtype)
    found = []
    for adjoint in (Implicit(method), Implicit(method, tolerance=tolerance)):
        solver = Iterative(Gradient(0.4), 100)
        slope, solution = hypergradient(adjoint, solver, Typed(), leader, batch, v)
        found.append((slope, solution.stats["evaluations"]))
        assert solution.stats["residual"] <= tolerance
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)


def test_a_system_that_is_solved_well_enough_is_no_concern() -> None:
    """One that stops above its tolerance by default in float64, with a residual of 1e-8."""
    batch, leader, v = valley(200, 100.0), Numbers(3), torch.ones(200, dtype=F64)
    adjoint = Implicit(max_steps=80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, solution = hypergradient(adjoint, Known(optimum), Quadratic(), leader, batch, v)
    assert 1e-9 < solution.stats["residual"] < 1e-7


@pytest.mark.parametrize("method", ["cg", "gmres"])
def test_a_small_residual_of_a_badly_conditioned_system_is_no_proof(method) -> None:
    """In float32, of a condition number of 3e6; by how much depends on the processor's rounding."""
    truth = fitted(Implicit("exact"), -12.0)
    with pytest.warns(HypergradientWarning, match=r"system is badly .* off by 0\.0.* in float64"):
        found = fitted(Implicit(method), -12.0, torch.float32)
    assert 0.01 < error(found, truth) < 0.5
    fitted(Implicit(method), -5.0, torch.float32)  # of condition 3e3: no warning


def test_a_tolerance_of_ones_own_is_as_accurate_as_was_asked_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(Implicit("cg", tolerance=1e-6), -12.0, torch.float32)


def test_no_tolerance_is_the_default() -> None:
    assert repr(Implicit()) == "Implicit()"
    assert repr(Implicit(tolerance=1e-6)) == "Implicit(tolerance=1e-06)"


def test_the_error_of_an_unsolved_system_is_told() -> None:
    batch, leader, v = valley(50, 100.0), Numbers(3), torch.ones(50, dtype=F64)
    with pytest.warns(HypergradientWarning, match="as large as that times the condition number"):
        hypergradient(Implicit(max_steps=3), Known(optimum), Quadratic(), leader, batch, v)
