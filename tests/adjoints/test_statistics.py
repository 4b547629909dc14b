"""What adjoints report of their backward pass, and at which random numbers it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from bilevel import (
    FollowerProblem,
    Forward,
    HypergradientWarning,
    Implicit,
    Iterative,
    Penalty,
    Sampled,
    Unrolled,
)
from bilevel.updates import Gradient
from tests.valleys import (
    F64,
    Known,
    Numbers,
    Quadratic,
    Valley,
    exactly,
    hypergradient,
    optimum,
    valley,
)

pytestmark = pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
ONES = torch.ones(2, dtype=F64)


class Two(FollowerProblem):
    """min over a and b of Σ(a − Σθ)² + b²."""

    sense = "min"

    def init(self, batch):
        return {"a": torch.zeros(2, dtype=F64), "b": torch.zeros(1, dtype=F64)}

    def objective(self, leader, y, batch):
        return (y["a"] - leader.theta.sum()).square().sum() + y["b"].square().sum()


@pytest.mark.parametrize(
    ("adjoint", "solves"),
    [(Forward(), 4), (Sampled(0.1, samples=5), 11)],
    ids=["forward", "sampled"],
)
def test_the_gradients_of_further_solves_are_counted(adjoint, solves) -> None:
    """One for each of three numbers, or two for each of five samples, beside the first."""
    solver = Iterative(Gradient(0.1), 7)
    _, solution = hypergradient(adjoint, solver, Quadratic(), Numbers(3), valley(2, 2.0), ONES)
    assert solution.stats["evaluations"] == 7 * solves


def test_the_standard_error_of_samples() -> None:
    batch, leader, count = valley(2, 2.0), Numbers(3), 5
    solution = Sampled(0.1, samples=count).solve(Known(optimum), Quadratic(), leader, batch)
    torch.manual_seed(1)
    (slope,) = torch.autograd.grad(solution.value, leader.theta, ONES)
    torch.manual_seed(1)
    directions = torch.stack([torch.randn(3, dtype=F64) for _ in range(count)])
    each = (directions @ batch.b.T @ torch.linalg.solve(batch.h, ONES))[:, None] * directions
    torch.testing.assert_close(slope, each.mean(0))
    error = (each.var(0).sum() / count).sqrt() / slope.norm()
    torch.testing.assert_close(solution.stats["residual"], error)


def test_the_curvature_along_the_penalised_solutions() -> None:
    batch = Valley(3 * torch.eye(2, dtype=F64), torch.ones(2, 3, dtype=F64))
    adjoint = Penalty(1e3, update=Gradient(0.2), steps=200)
    _, solution = hypergradient(adjoint, Known(optimum), Quadratic(), Numbers(3), batch, ONES)
    assert solution.stats["curvature"].item() == pytest.approx(3, rel=1e-4)


def test_the_curvature_of_a_message_is_without_damping() -> None:
    batch = Valley(torch.diag(torch.tensor([1.0, -0.5], dtype=F64)), torch.eye(2, dtype=F64))
    adjoint, v = Implicit("cg", damping=0.1), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.warns(HypergradientWarning, match=r"by -0\.5\).* above 0\.5,"):
        hypergradient(adjoint, Known(optimum), Quadratic(), Numbers(2), batch, v)


@pytest.mark.parametrize("adjoint", [Unrolled(truncate=2), Unrolled(recompute=2)], ids=str)
def test_a_warm_start_keeps_the_answer(adjoint) -> None:
    solver = Iterative(Gradient(0.1), 3, warm_start=True)
    solution = adjoint.solve(solver, Quadratic(), Numbers(3), valley(2, 2.0))
    torch.testing.assert_close(solver.kept[0], solution.value.detach())


@pytest.mark.parametrize("adjoint", [Implicit(), Penalty(1e2), Forward()], ids=str)
def test_a_loss_that_reads_one_tensor_of_two(adjoint) -> None:
    leader = Numbers(1)
    value = adjoint.solve(Iterative(Gradient(0.3), 60), Two(), leader, None).value
    value["a"].sum().backward()
    assert leader.theta.grad.item() == pytest.approx(2, rel=1e-4)


def test_the_random_numbers_of_the_solve_are_those_of_the_gradient() -> None:
    class Noisy(Quadratic):
        def objective(self, leader, y, batch):
            return (y - torch.rand_like(y) * leader.theta.sum()).square().sum() / 2

    leader = Numbers(1)
    solution = Implicit().solve(Iterative(Gradient(1.0), 1), Noisy(), leader, valley(2, 2.0))
    (slope,) = torch.autograd.grad(solution.value, leader.theta, ONES)
    assert slope.item() == pytest.approx(solution.value.sum().item() / leader.theta.item())


@pytest.mark.parametrize("adjoint", [Forward(), Implicit(), Penalty(1e2)], ids=str)
def test_parameters_that_the_follower_does_not_read_are_named(adjoint) -> None:
    leader, solver = Numbers(3), Iterative(Gradient(0.1), 3)
    leader.other = torch.nn.Parameter(torch.zeros(2, dtype=F64))
    value = adjoint.solve(solver, Quadratic(), leader, valley(2, 2.0)).value
    with pytest.warns(HypergradientWarning, match="other"):
        value.sum().backward()


@pytest.mark.parametrize("adjoint", [Forward(), Unrolled()], ids=str)
def test_an_objective_that_is_linear_in_a_part_of_y(adjoint) -> None:
    class Partly(Two):
        def objective(self, leader, y, batch):
            return (y["a"] - leader.theta.sum()).square().sum() + y["b"].sum()

    leader = Numbers(1)
    value = adjoint.solve(Iterative(Gradient(0.3), 2), Partly(), leader, None).value
    (value["a"].sum() + value["b"].sum()).backward()
    assert leader.theta.grad.item() == pytest.approx(2 * (1 - 0.4**2))


@pytest.mark.parametrize(
    "adjoint", [Unrolled(), Implicit(), Penalty(10.0), Forward(), Sampled(0.1)], ids=repr
)
def test_the_statistics_of_the_solve_are_told(adjoint) -> None:
    batch, solver = valley(3, 2.0), Iterative(Gradient(0.1), 5)
    own = solver.solve(Quadratic(), Numbers(3), batch, evaluate=False).stats
    stats = adjoint.solve(solver, Quadratic(), Numbers(3), batch).stats
    for name in ("objective_before", "gradient_norm"):
        torch.testing.assert_close(stats[name], own[name])


def test_problems_that_are_solved_together_are_counted_together() -> None:
    batch, leader, solver, found = valley(3, 2.0), Numbers(3), Iterative(Gradient(0.1), 5), []

    def answer(b: Tensor) -> Tensor:
        found.append(exactly().solve(solver, Quadratic(), leader, Valley(batch.h, b)))
        return found[0].value

    vmap(answer)(torch.stack([batch.b] * 3))
    assert found[0].evaluations == 15


def test_problems_along_any_dimension() -> None:
    batch, leader, solver = valley(3, 2.0), Numbers(3), Iterative(Gradient(0.3), 200)

    def answer(b: Tensor) -> Tensor:
        return exactly().solve(solver, Quadratic(), leader, Valley(batch.h, b)).value

    stacked = torch.stack([batch.b, 2 * batch.b], 1)
    found = vmap(answer, in_dims=1)(stacked)
    torch.testing.assert_close(found, vmap(answer)(stacked.transpose(0, 1)))
