"""The implicit adjoint at the fixed point of an update that is no gradient step."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel import FollowerProblem, HypergradientWarning, Implicit, Iterative, Update
from tests.valleys import (
    F64,
    Known,
    Numbers,
    Quadratic,
    Valley,
    error,
    hypergradient,
    pulled_back,
    valley,
)

STEP = 0.15


class Lasso(Quadratic):
    """min over y of ½ yᵀHy − yᵀb + θ‖y‖₁."""

    def objective(self, leader: Numbers, y: Any, batch: Valley) -> Tensor:
        smooth = y @ batch.h @ y / 2 - y @ batch.b.sum(1)
        return smooth + leader.theta.sum() * y.abs().sum()

    def context(self, y: Tensor, batch: Valley) -> Tensor:
        return y @ batch.h - batch.b.sum(1)


class Shrink(Update):
    """A proximal step."""

    needs_gradient = False

    def __init__(self, leader: Numbers) -> None:
        super().__init__()
        self.leader = [leader]

    def forward(self, y, gradient, context, state):
        return soft(y - STEP * context, STEP * self.leader[0].theta.sum()), state


def soft(y: Tensor, threshold: Tensor) -> Tensor:
    return y.sign() * (y.abs() - threshold).relu()


def lasso() -> tuple[Numbers, Valley]:
    """A penalty that is small beside the gradient at the start, and sets some of y to 0."""
    leader, batch = Numbers(1), valley(8, 6.0)
    leader.theta.data.fill_(0.01)
    y = torch.tensor([0, 3.0, 0, -5.0, 0, 0.2, 1.0, 0], dtype=F64)
    return leader, batch._replace(b=(batch.h @ y)[:, None])


def derivative(batch: Valley, y: Tensor) -> Tensor:
    """dy*/dθ of :class:`Lasso`: −H⁻¹ sign(y*) over the elements that are not 0."""
    active = y != 0
    some = torch.linalg.solve(batch.h[active][:, active], -y[active].sign())
    return torch.zeros_like(y).masked_scatter(active, some)


def test_a_proximal_step_is_no_zero_of_the_gradient() -> None:
    """‖F‖ is below 1 % of that at the start, and the gradient 10 % off and more."""
    leader, batch = lasso()
    step, v = Shrink(leader), torch.ones(8, dtype=F64)
    given = Iterative(step, 400), Lasso(), leader, batch, v
    with pytest.warns(HypergradientWarning, match=r"not stationary.*is 0\.00.*fixed_point=update"):
        slope, solution = hypergradient(Implicit(), *given)
    expected = v @ derivative(batch, solution.value.detach())
    assert error(slope, expected) > 0.1
    slope, _ = hypergradient(Implicit(fixed_point=step), *given)
    assert error(slope, expected) < 1e-6


class Descent(Update):
    """A gradient step by the context."""

    needs_gradient = False

    def forward(self, y, gradient, context, state):
        return y - STEP * context, state


class Smooth(Quadratic):
    """With its gradient as the context, and a start at a part of the optimum."""

    def __init__(self, part: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part, dtype

    def init(self, batch):
        y = torch.linalg.solve(batch.h, batch.b @ torch.linspace(0.5, 1.5, 3, dtype=F64))
        return (self.part * y).to(self.dtype)

    def context(self, y, batch):
        slope = batch.b @ torch.linspace(0.5, 1.5, 3, dtype=F64)
        return y @ batch.h.to(y) - slope.to(y)

    def objective(self, leader, y, batch):
        return y @ batch.h.to(y) @ y / 2 - y @ (batch.b @ leader.theta).to(y)


@pytest.mark.parametrize(
    ("part", "dtype", "steps"),
    [(0.0, torch.float64, 120), (0.0, torch.float32, 400), (0.9999, torch.float32, 400)],
)
def test_steps_without_the_gradient_may_end_where_it_is_zero(part, dtype, steps) -> None:
    """Up to a small part of that at the start, or up to rounding."""
    leader, batch, v = Numbers(3), valley(8, 6.0), torch.randn(8, dtype=dtype)
    given = Iterative(Descent(), steps), Smooth(part, dtype), leader, batch, v
    with warnings.catch_warnings():
        warnings.simplefilter("error", HypergradientWarning)
        slope, solution = hypergradient(Implicit(), *given)
    assert solution.stats["stationarity"] > 0
    assert error(slope, pulled_back(batch, v.to(F64))) < 1e-5


class ADMM(Update):
    """Of :class:`Lasso` as min over x = z, with the dual variable in the state or in y."""

    needs_gradient = needs_context = False

    def __init__(self, leader: Numbers, batch: Valley) -> None:
        super().__init__()
        self.leader, self.batch = [leader], batch

    def forward(self, y, gradient, context, state):
        z, dual = (
            (y["z"], y["u"]) if isinstance(y, dict) else (y, 0 * y if state is None else state)
        )
        matrix = self.batch.h + torch.eye(len(z), dtype=F64)
        x = torch.linalg.solve(matrix, self.batch.b.sum(1) + z - dual)
        z = soft(x + dual, self.leader[0].theta.sum())
        dual = dual + x - z
        return ({"z": z, "u": dual}, state) if isinstance(y, dict) else (z, dual)


class Split(Lasso):
    """With the dual variable as a part of y."""

    def init(self, batch):
        return {name: torch.zeros(len(batch.h), dtype=F64) for name in ("z", "u")}

    def objective(self, leader, y, batch):
        return super().objective(leader, y["z"], batch)

    context = FollowerProblem.context


def test_what_a_fixed_point_needs_belongs_in_y() -> None:
    leader, batch = lasso()
    leader.theta.data.fill_(1.0)
    step, v = ADMM(leader, batch), torch.ones(8, dtype=F64)
    solver, adjoint = Iterative(step, 2000), Implicit(fixed_point=step)
    with pytest.warns(HypergradientWarning, match=r"not stationary.*state .*make that a part of y"):
        hypergradient(adjoint, solver, Lasso(), leader, batch, v)
    both = {"z": v, "u": 0 * v}
    slope, solution = hypergradient(
        Implicit(fixed_point=step), solver, Split(), leader, batch, both
    )
    assert error(slope, v @ derivative(batch, solution.value["z"].detach())) < 1e-6


class Conditions(Update):
    """Of min over x of ½ Σ hᵢxᵢ² − θᵀx with Gx ≤ bounds, and multipliers l."""

    needs_gradient = needs_context = False

    def __init__(self, leader: Numbers, h: Tensor, rows: Tensor, bounds: Tensor) -> None:
        super().__init__()
        self.leader, self.h, self.rows, self.bounds = [leader], h, rows, bounds

    def forward(self, y, gradient, context, state):
        x, dual = y["x"], y["l"]
        slope = self.h * x - self.leader[0].theta + self.rows.T @ dual
        return {"x": x - slope, "l": (dual + self.rows @ x - self.bounds).relu()}, state


class Program(FollowerProblem):
    sense = "min"

    def __init__(self, constraints: int) -> None:
        self.constraints = constraints

    def init(self, batch):
        return {"x": torch.zeros(3, dtype=F64), "l": torch.zeros(self.constraints, dtype=F64)}

    def objective(self, leader, y, batch):
        return y["x"].square().sum() / 2 - leader.theta @ y["x"]


def test_a_quadratic_program_through_its_kkt_conditions() -> None:
    """½‖x‖² − θᵀx with x₁ + x₂ ≤ 1, which is active at θ = (1, 2, 3), and x₃ ≤ 9, which is not.

    Half the excess of x₁ + x₂ is taken from each; it is the multiplier.
    """
    rows = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    bounds = torch.tensor([1.0, 9.0], dtype=F64)

    def package(leader, batch):
        excess = (leader.theta[0] + leader.theta[1] - 1) / 2
        dual = torch.stack([excess, torch.zeros_like(excess)])
        return {"x": leader.theta - rows.T @ dual, "l": dual}

    leader = Numbers(3)
    leader.theta.data = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    adjoint = Implicit(fixed_point=Conditions(leader, torch.ones(3, dtype=F64), rows, bounds))
    x = adjoint.solve(Known(package), Program(2), leader, None).value["x"]
    found = [torch.autograd.grad(one, leader.theta, retain_graph=True)[0] for one in x]
    known = torch.tensor([[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]], dtype=F64)
    torch.testing.assert_close(torch.stack(found), known)


@pytest.mark.parametrize("method", [None, "exact"])
@pytest.mark.parametrize("off", [0.0, 0.1])
def test_an_answer_far_from_a_fixed_point_whose_map_is_not_symmetric(method, off: float) -> None:
    """The answer of x₁ + x₂ + x₃ ≤ 1 is off along (0, 1, −1), where F is 1e-4 times that."""
    h, x = torch.tensor([1.0, 1e-4, 1e-4], dtype=F64), torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    leader, rows = Numbers(3), torch.ones(1, 3, dtype=F64)
    leader.theta.data = h * x + 1  # whose answer is x, and the multiplier 1
    along = torch.tensor([0.0, 1.0, -1.0], dtype=F64)
    answer = {"x": x + off * along, "l": torch.ones(1, dtype=F64)}
    adjoint = Implicit(method, fixed_point=Conditions(leader, h, rows, rows[0, :1]))
    v = {"x": torch.tensor([1.0, 2.0, 4.0], dtype=F64), "l": torch.zeros(1, dtype=F64)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hypergradient(adjoint, Known(lambda *_: answer), Program(1), leader, None, v)
    told = [str(warning.message).split(": ")[1] for warning in caught]
    assert told == (["the follower is badly conditioned"] if off else [])


class Multiplicative(Update):
    """Of weights on a simplex."""

    def forward(self, y, gradient, context, state):
        return (y.log() + 0.5 * gradient).softmax(-1), state


class Entropic(Quadratic):
    """max over the simplex of θᵀy − Σ yᵢ log yᵢ, at y* = softmax θ, where the gradient is not 0."""

    def __init__(self) -> None:
        super().__init__("max")

    def init(self, batch):
        return torch.full((3,), 1 / 3, dtype=F64)

    def objective(self, leader, y, batch):
        return leader.theta @ y - torch.special.xlogy(y, y).sum()


def test_steps_on_a_simplex_are_told_their_remedy() -> None:
    step, v = Multiplicative(), torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    given = Iterative(step, 100), Entropic(), Numbers(3), None, v
    with pytest.warns(HypergradientWarning, match=r"not stationary.*, give fixed_point=update; el"):
        hypergradient(Implicit(), *given)
    slope, solution = hypergradient(Implicit(fixed_point=step), *given)
    y = solution.value.detach()
    assert error(slope, y * (v - y @ v)) < 1e-8
