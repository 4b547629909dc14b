"""The implicit adjoint: closed forms, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import (
    BilevelError,
    FollowerProblem,
    Forward,
    HypergradientWarning,
    Implicit,
    Iterative,
    Penalty,
    Unrolled,
    pgm,
)
from bilevel.testing import check_adjoint
from bilevel.updates import Gradient, Momentum, Optimizer, SignGradient
from tests.valleys import (
    F64,
    Boxed,
    Known,
    Numbers,
    Quadratic,
    Valley,
    error,
    exactly,
    hypergradient,
    optimum,
    pulled_back,
    valley,
)


@given(
    method=st.sampled_from([None, "cg", "gmres", "exact"]),
    sense=st.sampled_from(["min", "max"]),
    size=st.integers(1, 10),
    condition=st.floats(1.0, 1e4),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_a_quadratic_follower(method, sense, size, condition, seed) -> None:
    batch, leader = valley(size, condition, seed=seed), Numbers(3)
    v = torch.randn(size, dtype=F64)
    slope, solution = hypergradient(
        exactly(method), Known(optimum), Quadratic(sense), leader, batch, v
    )
    assert error(slope, pulled_back(batch, v)) < 1e-8
    assert solution.stats["residual"] < 1e-8
    assert 0.99 < solution.stats["curvature"] < 1.01 * condition
    assert solution.stats["gradient_norm"] < 1e-9 * condition


def test_fewer_steps_than_dimensions_keep_to_the_bound() -> None:
    """With v = Bθ' the error in θ'ᵀ(dy*/dθ)ᵀv is CG's in the norm of H, squared (Galerkin)."""
    batch, leader = valley(50, 100.0, numbers=1), Numbers(1)
    v, exact = batch.b[:, 0], pulled_back(batch, batch.b[:, 0])
    for steps in (5, 10, 20):
        with pytest.warns(HypergradientWarning, match="linear system not solved: its residual"):
            slope, solution = hypergradient(
                Implicit(max_steps=steps), Known(optimum), Quadratic(), leader, batch, v
            )
        assert error(slope, exact) <= 4 * (9 / 11) ** (2 * steps)
        assert solution.stats["evaluations"] == steps + 2  # the gradients at answer and start


def test_the_series_of_a_contracting_step() -> None:
    batch, leader, v = valley(6, 10.0), Numbers(3), torch.randn(6, dtype=F64)
    solver = Iterative(Gradient(0.1), 400)
    for adjoint in (
        Implicit("neumann", max_steps=500, tolerance=1e-12),
        Implicit("neumann", max_steps=500, tolerance=1e-12, fixed_point=Gradient(0.15)),
        Implicit(fixed_point=Gradient(0.5), tolerance=1e-12),
    ):
        slope, _ = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
        assert error(slope, pulled_back(batch, v)) < 1e-8


def test_ridge_regression() -> None:
    """y* = (XᵀX + λI)⁻¹Xᵀt, dy*/dλ = −(XᵀX + λI)⁻¹ y*, with λ = exp θ."""

    class Ridge(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return {"w": torch.zeros(4, dtype=F64), "b": torch.zeros(1, dtype=F64)}

        def objective(self, leader, y, batch):
            x, t = batch
            rest = x @ y["w"] + y["b"] - t
            penalty = y["w"].square().sum() + y["b"].square().sum()
            return (rest.square().sum() + leader.theta.exp().sum() * penalty) / 2

    x, t = torch.randn(20, 4, dtype=F64), torch.randn(20, dtype=F64)
    design = torch.cat([x, torch.ones(20, 1, dtype=F64)], 1)

    def answer(leader, batch):
        y = torch.linalg.solve(design.T @ design + leader.theta.exp() * torch.eye(5), design.T @ t)
        return {"w": y[:4], "b": y[4:]}

    leader, v = Numbers(1), torch.randn(5, dtype=F64)
    y = torch.cat(list(answer(leader, None).values())).detach()
    scale = leader.theta.detach().exp()
    expected = -scale * v @ torch.linalg.solve(design.T @ design + scale * torch.eye(5), y)
    slope, _ = hypergradient(
        exactly(), Known(answer), Ridge(), leader, (x, t), {"w": v[:4], "b": v[4:]}
    )
    assert error(slope, expected) < 1e-10


@pytest.mark.parametrize("method", [None, "gmres", "exact"])
@pytest.mark.parametrize("update", [Gradient(0.4), SignGradient(1e-3)])
def test_a_box_stops_the_derivative(method, update) -> None:
    leader, batch = Numbers(4), 2 * torch.randn(5, 4, dtype=F64)
    inside = (leader.theta * batch).abs() < 1
    assert inside.any()
    assert not inside.all()
    solver = Iterative(update, 100)
    if isinstance(update, SignGradient):
        solver = Known(lambda leader, batch: (leader.theta * batch).clamp(-1, 1))
    v = torch.randn(5, 4, dtype=F64)
    slope, _ = hypergradient(exactly(method), solver, Boxed(), leader, batch, v)
    assert error(slope, (inside * batch * v).sum(0)) < 1e-10


def test_a_scalar() -> None:
    """Min over y of ¼y⁴ − θy: y* = θ^⅓, dy*/dθ = ⅓ θ^−⅔."""

    class Root(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.ones((), dtype=F64)

        def objective(self, leader, y, batch):
            return y**4 / 4 - leader.theta.sum() * y

    leader = Numbers(1)
    solver = Known(lambda leader, _: leader.theta.sum() ** (1 / 3))
    v = torch.tensor(2.0, dtype=F64)
    for method in (None, "gmres", "exact"):
        slope, _ = hypergradient(Implicit(method), solver, Root(), leader, None, v)
        assert error(slope, 2 / 3 * leader.theta.detach() ** (-2 / 3)) < 1e-12


def test_damping_is_added_to_the_diagonal() -> None:
    batch, leader, v = valley(5, 10.0), Numbers(3), torch.randn(5, dtype=F64)
    given = Known(optimum), Quadratic(), leader, batch, v
    slope, solution = hypergradient(exactly(damping=2.0), *given)
    damped = Valley(batch.h + 2 * torch.eye(5), batch.b)
    assert 0.99 <= solution.stats["curvature"] < 3  # the objective's own, which is 1 at least
    assert error(slope, pulled_back(damped, v)) < 1e-10


def test_a_warm_start_spends_fewer_products_and_is_remembered() -> None:
    batch, leader, v = valley(20, 1e3), Numbers(3), torch.randn(20, dtype=F64)
    adjoint, resumed = (Implicit(warm_start=True, tolerance=1e-9) for _ in range(2))
    spent, met = [], []
    for use in (adjoint, adjoint, resumed):
        if use is resumed:
            resumed.load_state_dict(adjoint.state_dict())
        _, solution = hypergradient(use, Known(optimum), Quadratic(), leader, batch, v)
        spent.append(int(solution.stats["evaluations"]))
        met.append("curvature" in solution.stats)
    assert spent[0] > 20
    assert spent[1] == spent[2] == 2  # the gradient, and the product that finds it solved
    assert met == [True, False, False]  # an infinite one would be taken for divergence
    other, v = valley(7, 5.0), torch.randn(7, dtype=F64)  # of another size: a start of its own
    slope, _ = hypergradient(adjoint, Known(optimum), Quadratic(), leader, other, v)
    assert error(slope, pulled_back(other, v)) < 1e-8


@pytest.mark.parametrize("method", ["cg", "gmres"])
def test_a_solution_that_was_kept_is_no_start_for_a_much_smaller_one(method: Any) -> None:
    batch, leader, v = valley(20, 10.0), Numbers(3), torch.randn(20, dtype=F64)
    adjoint = Implicit(method, warm_start=True)
    hypergradient(adjoint, Known(optimum), Quadratic(), leader, batch, v)
    slope, _ = hypergradient(adjoint, Known(optimum), Quadratic(), leader, batch, 1e-12 * v)
    assert error(slope, pulled_back(batch, 1e-12 * v)) < 1e-10


@pytest.mark.filterwarnings("ignore:.*not solved")
def test_a_solution_that_was_kept_is_no_start_without_a_warm_start() -> None:
    batch, leader, v = valley(20, 10.0), Numbers(3), torch.randn(20, dtype=F64)
    warm, loaded, fresh = (
        Implicit("neumann", max_steps=2, warm_start=warm, fixed_point=Gradient(0.1))
        for warm in (True, False, False)
    )
    hypergradient(warm, Known(optimum), Quadratic(), leader, batch, 100 * v)
    loaded.load_state_dict(warm.state_dict())
    slopes = [
        hypergradient(adjoint, Known(optimum), Quadratic(), leader, batch, v)[0]
        for adjoint in (loaded, fresh)
    ]
    assert torch.equal(*slopes)


# Bad input.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lu"}, r"method is 'lu'.*give one of 'cg'"),
        ({"max_steps": 0}, r"max_steps is 0.*give 1, 2"),
        ({"damping": -1.0}, "damping -1.0: neither can be negative"),
        ({"fixed_point": SignGradient(0.1)}, r"SignGradient does not change .* in jumps"),
    ],
)
def test_settings_out_of_range(settings, message) -> None:
    with pytest.raises(BilevelError, match=message):
        Implicit(**settings)


def test_a_solver_that_does_not_suit_the_problem() -> None:
    leader, batch = Numbers(4), torch.ones(2, 4, dtype=F64)
    with pytest.raises(BilevelError, match=r"need a symmetric matrix.*give method=\"gmres\""):
        Implicit("cg").solve(pgm(0.1, 1), Boxed(), leader, batch)
    for solver, name in (
        (Known(optimum), "Known"),
        (Iterative(Momentum(Gradient(0.1), 0.9), 2), "Momentum"),
        (Iterative(Optimizer(torch.optim.SGD, lr=0.1), 2), "Optimizer"),
    ):
        with pytest.raises(BilevelError, match=rf"{name} is no plain gradient step; give fixed_"):
            Implicit("neumann").solve(solver, Quadratic(), Numbers(3), valley(3, 2.0))


class Complex(FollowerProblem):
    """A Hessian that is linear over the reals only."""

    sense = "min"

    def init(self, batch):
        return torch.zeros(2, dtype=torch.complex128)

    def objective(self, leader, y, batch):
        target = torch.complex(leader.theta, leader.theta.square())
        return ((y - target).abs().square() + y.real * y.imag + 0.3 * y.real.square()).sum()


@pytest.mark.parametrize(
    "adjoint",
    [
        *(exactly(method) for method in ("cg", "gmres", "exact")),
        Implicit("neumann", tolerance=1e-13, max_steps=500),
        Penalty(1e3, steps=300),
        Forward(),
    ],
    ids=repr,
)
def test_complex_numbers(adjoint) -> None:
    leader, solver, v = Numbers(2), Iterative(Gradient(0.2), 300), torch.tensor([1 - 2j, 0.5j])
    v = v.to(torch.complex128)
    slope, _ = hypergradient(adjoint, solver, Complex(), leader, None, v)
    expected, _ = hypergradient(Unrolled(), solver, Complex(), leader, None, v)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjoint", [Unrolled(), Forward()], ids=repr)
def test_complex_parameters(adjoint) -> None:
    class Weights(Numbers):
        def __init__(self) -> None:
            super().__init__(2)
            self.theta = torch.nn.Parameter(torch.tensor([1 + 2j, 0.5j], dtype=torch.complex128))

        def loss(self, y, batch):
            return (y.real - 2 * y.imag).sum()

    class Near(Complex):
        def objective(self, leader, y, batch):
            return ((y - leader.theta**2).abs().square() + 0.3 * y.real.square()).sum()

    check_adjoint(adjoint, Iterative(Gradient(0.2), 3), Near(), Weights(), None)


@pytest.mark.parametrize("method", ["cg", "gmres", "exact"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(method, dtype) -> None:
    """Squares of v overflow in float16."""

    class Half(FollowerProblem):
        sense = "min"

        def init(self, batch):
            return torch.zeros(1000, dtype=dtype)

        def objective(self, leader, y, batch):
            return (y - leader.theta.to(dtype)).square().sum() / 2

    leader, v = Numbers(1), torch.full((1000,), 10, dtype=dtype)
    solver = Iterative(Gradient(1.0), 1)
    slope, _ = hypergradient(Implicit(method), solver, Half(), leader, None, v)
    assert slope.item() == pytest.approx(1e4, rel=0.01)
