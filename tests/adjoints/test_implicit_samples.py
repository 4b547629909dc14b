"""The implicit adjoint where each sample has its own y: a linear system for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import FollowerProblem, HypergradientWarning, Implicit, Iterative
from bilevel.updates import Gradient
from tests.valleys import F64, Known, Numbers, Valley, error, hypergradient, valley


def valleys(samples: int, size: int) -> Valley:
    """Each sample's H, of condition 1 and more, and B."""
    made = [valley(size, 10.0 * i + 1, seed=i) for i in range(samples)]
    return Valley(torch.stack([one.h for one in made]), torch.stack([one.b for one in made]))


def optima(leader: Numbers, batch: Valley) -> Tensor:
    return torch.linalg.solve(batch.h, batch.b @ leader.theta[:, None])[..., 0]


def pulled_back(batch: Valley, v: Tensor) -> Tensor:
    return torch.einsum("bij,bi->j", batch.b, torch.linalg.solve(batch.h, v[..., None])[..., 0])


class Quadratics(FollowerProblem):
    """min over each sample's y of ½ yᵀHy − yᵀBθ, at y* = H⁻¹Bθ."""

    sense = "min"

    def init(self, batch: Valley) -> Tensor:
        return torch.zeros(batch.b.shape[:2], dtype=F64)

    def objective(self, leader: Numbers, y: Any, batch: Valley) -> Tensor:
        curved = torch.einsum("bi,bij,bj->b", y, batch.h, y) / 2
        return curved - (y * (batch.b @ leader.theta)).sum(1)


@pytest.mark.parametrize("method", ["cg", "exact"])
def test_many_small_quadratics_take_the_products_of_one(method) -> None:
    batch, leader, v = valleys(12, 5), Numbers(3), torch.randn(12, 5, dtype=F64)
    v[3] = 0
    adjoint = Implicit(method, tolerance=1e-12, max_steps=20)
    slope, solution = hypergradient(adjoint, Known(optima), Quadratics(), leader, batch, v)
    assert error(slope, pulled_back(batch, v)) < 1e-9
    assert solution.stats["residual"] < 1e-9
    assert 0.99 < solution.stats["curvature"] < 1.1
    assert (
        solution.stats["evaluations"] <= 5 + 2 + 3
    )  # the gradients at answer and start, and b − Aw


@pytest.mark.parametrize("method", ["cg", "exact"])
def test_damping_and_a_kept_solution_are_those_of_one_system(method) -> None:
    batch, leader, v = valleys(6, 4), Numbers(3), torch.randn(6, 4, dtype=F64)
    damped = Valley(batch.h + 2 * torch.eye(4), batch.b)
    adjoint, resumed = (
        Implicit(method, damping=2.0, tolerance=1e-9, warm_start=True) for _ in range(2)
    )
    for use in (adjoint, resumed):
        slope, solution = hypergradient(use, Known(optima), Quadratics(), leader, batch, v)
        assert error(slope, pulled_back(damped, v)) < 1e-8
        resumed.load_state_dict(adjoint.state_dict())
    if method == "cg":  # the gradient, and the products that find it solved
        assert solution.stats["evaluations"] == 3


@pytest.mark.parametrize("method", ["cg", "exact"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
def test_any_shape_of_a_sample(method, shape) -> None:
    """Each cosh(y) − yθx is lowest at y = asinh(θx), where its curvature is √(1 + θ²x²)."""

    class Curves(Quadratics):
        def init(self, batch):
            return torch.zeros_like(batch)

        def objective(self, leader, y, batch):
            return (y.cosh() - y * leader.theta * batch)[..., None].flatten(1).sum(1)

    leader, x = Numbers(1), torch.randn(7, *shape, dtype=F64)
    v, theta = torch.randn_like(x), leader.theta.detach()
    solver = Known(lambda leader, x: (leader.theta * x).asinh())
    slope, _ = hypergradient(Implicit(method, tolerance=1e-12), solver, Curves(), leader, x, v)
    assert error(slope, (v * x / (1 + (theta * x).square()).sqrt()).sum()) < 1e-9


@pytest.mark.parametrize("method", ["cg", "exact"])
def test_complex_samples(method) -> None:
    class Far(Quadratics):
        def init(self, batch):
            return torch.zeros_like(batch)

        def objective(self, leader, y, batch):
            return ((y - leader.theta * batch).abs().square() + y.real * y.imag / 2).sum(1)

    leader, x = Numbers(1), torch.randn(4, 3, dtype=torch.complex128)
    v, solver = torch.randn_like(x), Iterative(Gradient(0.3), 200)
    slope, _ = hypergradient(Implicit(method, tolerance=1e-12), solver, Far(), leader, x, v)
    expected, _ = hypergradient(Implicit("gmres"), solver, Far(), leader, x, v)
    torch.testing.assert_close(slope, expected)


class Normalising(Numbers):
    """A leader whose batch normalisation mixes the samples: always, or in training only."""

    def __init__(self, *, always: bool) -> None:
        super().__init__(1)
        self.norm = nn.BatchNorm1d(2, affine=False, track_running_stats=not always).double()


class Pulled(Quadratics):
    """min over y of ½‖y − x‖² + θ Σ log cosh(norm(y))."""

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: Normalising, y: Tensor, batch: Tensor) -> Tensor:
        return (y - batch).square().sum(1) / 2 + leader.theta * leader.norm(y).cosh().log().sum(1)


@pytest.mark.parametrize("method", ["cg", "exact"])
def test_samples_that_batch_normalisation_mixes_are_one_system(method) -> None:
    leader, x, v = Normalising(always=False), *torch.randn(2, 6, 2, dtype=F64)
    solver = Iterative(Gradient(0.3), 600, leader_mode="train")
    slope, _ = hypergradient(Implicit(method), solver, Pulled(), leader, x, v)
    expected, _ = hypergradient(Implicit("gmres"), solver, Pulled(), leader, x, v)
    assert error(slope, expected) < 1e-4


@pytest.mark.parametrize("method", ["cg", "exact"])
def test_samples_that_depend_on_each_other_are_noticed(method) -> None:
    leader, x, v = Normalising(always=True), *torch.randn(2, 6, 2, dtype=F64)
    given = Iterative(Gradient(0.3), 600), Pulled(), leader, x, v
    with pytest.warns(HypergradientWarning, match=r'a sample\'s objective .*, method="gmres"'):
        hypergradient(Implicit(method), *given)
    hypergradient(Implicit("gmres"), *given)


@pytest.mark.parametrize("method", ["cg", "exact"])
def test_a_y_of_named_tensors_is_one_system(method) -> None:
    class Named(Quadratics):
        def init(self, batch):
            return {"y": super().init(batch)}

        def objective(self, leader, y, batch):
            return super().objective(leader, y["y"], batch)

    batch, leader, v = valleys(3, 3), Numbers(3), torch.randn(3, 3, dtype=F64)
    solver = Known(lambda leader, batch: {"y": optima(leader, batch)})
    slope, solution = hypergradient(
        Implicit(method, tolerance=1e-12), solver, Named(), leader, batch, {"y": v}
    )
    assert error(slope, pulled_back(batch, v)) < 1e-9
    assert solution.stats["evaluations"] > 3 + 3 or method == "cg"
