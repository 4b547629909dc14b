"""The implicit adjoint where its assumptions fail: what it warns of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from bilevel import HypergradientWarning, Implicit, Iterative, Parametric, Solver, Unrolled
from bilevel.solvers import Oracle
from bilevel.tree import Value
from bilevel.updates import Gradient, Optimizer, Update
from tests.valleys import (
    F64,
    Decay,
    Known,
    Numbers,
    Quadratic,
    Shrunk,
    Valley,
    error,
    hypergradient,
    optimum,
    pulled_back,
    valley,
)


def warned(adjoint: Implicit, solver, batch: Valley, match: str) -> Tensor:
    leader, v = Numbers(batch.b.shape[1]), torch.ones(len(batch.h), dtype=F64)
    with pytest.warns(HypergradientWarning, match=match) as caught:
        hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
    assert len(caught) == 1, [str(warning.message) for warning in caught]
    _, solution = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)  # said once
    return solution.stats["curvature"]


def test_an_answer_that_is_not_stationary() -> None:
    warned(
        Implicit(), Iterative(Gradient(0.01), 3), valley(3, 5.0),
        r"not stationary at its answer: .* is 0\.\d+ of that at .* more steps, or take Unrolled",
    )  # fmt: skip


def test_the_answer_of_another_solver_is_not_unrolled() -> None:
    """Such as one for objectives with kinks, where a gradient is not zero at the optimum."""

    class Short(Solver):
        def answer(self, oracle: Oracle) -> Value:
            return oracle.advance(Gradient(0.01), oracle.init(), None, 3)[0]

    warned(
        Implicit(), Short(), valley(3, 5.0),
        r"not stationary at its answer: .*solve it further or, .*\(L1\), give fixed_point=",
    )  # fmt: skip


def test_a_start_at_the_optimum_is_nothing_to_compare_with() -> None:
    """A later one, of another leader, is: what is missed is never a multiple of rounding."""

    class Near(Quadratic):
        def init(self, batch):
            return torch.linalg.solve(batch.h, batch.b @ torch.linspace(0.5, 1.5, 3, dtype=F64))

    leader, batch, v = Numbers(3), valley(4, 5.0), torch.randn(4, dtype=F64)
    adjoint, solver = Implicit(), Iterative(Gradient(0.01), 1)
    for _ in range(2):
        hypergradient(adjoint, solver, Near(), leader, batch, v)
    leader.theta.data += 1
    with pytest.warns(HypergradientWarning, match=r"not stationary .* is [01]\.?\d* of that at"):
        hypergradient(adjoint, solver, Near(), leader, batch, v)


@pytest.mark.parametrize("steps", [10, 30, 90])
def test_a_solve_that_diverges_is_not_stationary(steps: int) -> None:
    """However far: the start is no optimum because the answer is immense."""
    warned(
        Implicit(), Iterative(Gradient(2.4), steps), valley(3, 5.0), "not stationary at its answer"
    )  # fmt: skip


@pytest.mark.parametrize("unit", [1e-10, 1e11])
@pytest.mark.parametrize("method", ["cg", "gmres", "exact"])
def test_the_unit_of_the_answer_does_not_matter(method: str, unit: float) -> None:
    class Scaled(Quadratic):
        def init(self, batch):
            return torch.zeros(3)

        def objective(self, leader, y, batch):
            return super().objective(leader, y / unit, batch)

    leader, batch, v = Numbers(3).float(), valley(3, 5.0), torch.ones(3)
    batch = type(batch)(*(part.float() for part in batch))
    solver = Iterative(Gradient(0.2 * unit**2), 100)
    wanted, _ = hypergradient(Unrolled(), solver, Scaled(), leader, batch, v / unit)
    found, _ = hypergradient(Implicit(method), solver, Scaled(), leader, batch, v / unit)
    assert error(found, wanted) < 1e-4


def test_problems_of_another_scale_are_compared_with_their_own_start() -> None:
    leader, small, v = Numbers(3), valley(3, 5.0), torch.ones(3, dtype=F64)
    adjoint, solver = Implicit(), Iterative(Gradient(0.2), 60)
    for batch in (small._replace(b=small.b / 1e4), small):
        _, solution = hypergradient(adjoint, solver, Quadratic(), leader, batch, v)
        assert solution.stats["stationarity"] == solution.stats["gradient_norm"]
    again = adjoint, Iterative(Gradient(0.01), 1), Quadratic(), leader, small, v
    with pytest.warns(HypergradientWarning, match="not stationary"):
        _, warned = hypergradient(*again)
    _, solution = hypergradient(*again)  # once it has warned, the start is not evaluated again
    assert solution.stats["evaluations"] == warned.stats["evaluations"] - 1


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("method", ["cg", "gmres", "exact"])
def test_negative_curvature(method, damping) -> None:
    """It is the objective's own, without the damping, which is a remedy for cg alone."""
    h = torch.diag(torch.tensor([1.0, 2.0, -0.5], dtype=F64))
    batch = Valley(h, torch.eye(3, dtype=F64))
    damped = r", give damping above 0\.\d+, or" if method == "cg" else ", or"
    match = rf"negative curvature: .* \(by -0\.\d+\).* solve it further{damped} take Unrolled"
    curvature = warned(Implicit(method, damping=damping), Known(optimum), batch, match)
    assert -0.5 - 1e-9 < curvature < -damping
    assert curvature == pytest.approx(-0.5) or method != "exact"


@pytest.mark.parametrize("method", [None, "gmres", "exact"])
def test_a_saddle_point_is_a_fixed_point_of_gradient_steps(method) -> None:
    """Of ½u² − w² + 2uw − θu, w against u, which the message of negative curvature advises."""
    batch = Valley(torch.tensor([[1.0, 2.0], [2.0, -2.0]], dtype=F64), torch.eye(2, dtype=F64))
    leader, v = Numbers(2), torch.ones(2, dtype=F64)
    with pytest.warns(HypergradientWarning, match=r"saddle point, give fixed_point=updates\.Grad"):
        hypergradient(Implicit(method), Known(optimum), Quadratic(), leader, batch, v)
    advised = Implicit(method, fixed_point=Gradient(1.0))
    slope, _ = hypergradient(advised, Known(optimum), Quadratic(), leader, batch, v)
    assert error(slope, pulled_back(batch, v)) < 1e-12


@pytest.mark.parametrize("method", ["cg", "gmres", "exact"])
def test_a_singular_system(method) -> None:
    """Which the others solve without the flat direction, as the message advises."""
    h = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))
    solver = Known(lambda leader, batch: torch.stack([leader.theta.sum(), torch.tensor(0.0)]))
    batch = Valley(h, torch.tensor([[1.0], [0.0]], dtype=F64))
    advice = r'take method="gmres", .* out, ' if method == "cg" else ""
    warned(
        Implicit(method),
        solver,
        batch,
        rf"singular system: .* is flat .* \(add 1e-3 \* y.*\), {advice}or give damping",
    )


def test_a_curvature_of_zero_up_to_rounding_is_not_negative() -> None:
    batch = valley(60, 10.0, numbers=1)
    h = batch.h - torch.outer(*2 * [torch.linalg.eigh(batch.h).eigenvectors[:, 0]])
    curvature = warned(
        Implicit("exact"),
        Known(lambda *_: torch.zeros(60, dtype=F64)),
        Valley(h, 0 * batch.b),
        "singular system",
    )
    assert abs(curvature) < 1e-13


@pytest.mark.parametrize(("curvature", "said"), [(-1e-14, "singular"), (-1e-13, "negative")])
def test_a_curvature_is_negative_beyond_rounding_only(curvature: float, said: str) -> None:
    h = torch.diag(torch.tensor([1.0, curvature], dtype=F64))
    batch = Valley(h, torch.zeros(2, 2, dtype=F64))
    leader, v = Numbers(2), torch.ones(2, dtype=F64)
    with pytest.warns(HypergradientWarning, match=said):
        hypergradient(Implicit("cg"), Known(optimum), Quadratic(), leader, batch, v)


def test_float32_that_is_badly_conditioned_is_not_singular() -> None:
    """Min over y of ½ Σ hᵢ(yᵢ − θ)², h from 1 down to 1e-4: y* = θ."""

    class Steep(Quadratic):
        def init(self, batch):
            return torch.zeros_like(batch)

        def objective(self, leader, y, batch):
            return (batch * (y - leader.theta.float()).square()).sum() / 2

    h, solver = torch.logspace(0, -4, 1000), Known(lambda leader, h: 0 * h + leader.theta.float())
    slope, _ = hypergradient(Implicit("exact"), solver, Steep(), Numbers(1), h, torch.ones(1000))
    assert slope.item() == pytest.approx(1000, rel=1e-4)


def test_a_series_that_diverges() -> None:
    warned(
        Implicit("neumann", fixed_point=Gradient(3.0), max_steps=10), Known(optimum),
        valley(3, 5.0), "linear system not solved: its residual is .* after 10 products",
    )  # fmt: skip


def test_a_system_is_solved_at_the_tolerance_that_was_given() -> None:
    """No warning of a residual that the default tolerance would not allow."""
    batch, v = valley(20, 1e3), torch.ones(20, dtype=F64)
    adjoint = Implicit(tolerance=0.1)
    _, solution = hypergradient(adjoint, Known(optimum), Quadratic(), Numbers(3), batch, v)
    assert 1e-3 < solution.stats["residual"] <= 0.1


@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled()])
def test_a_parameter_on_which_the_follower_does_not_depend(adjoint) -> None:
    class Two(Numbers):
        def __init__(self):
            super().__init__(3)
            self.head = nn.Parameter(torch.ones(2, dtype=F64))

        def loss(self, y, batch):
            return y.sum() + self.head.square().sum()

    leader, batch, solver = Two(), valley(3, 2.0), Iterative(Gradient(0.3), 100)

    def backward() -> None:
        leader.zero_grad()
        leader.loss(adjoint.solve(solver, Quadratic(), leader, batch).value, batch).backward()

    with torch.no_grad():  # no graph is no reason to warn of all
        adjoint.solve(solver, Quadratic(), leader, batch)
    with pytest.warns(HypergradientWarning, match=r"ignores the leader's head:.*is 0"):
        backward()
    backward()  # said once
    assert leader.head.grad.tolist() == [2, 2]
    assert error(leader.theta.grad, pulled_back(batch, torch.ones(3, dtype=F64))) < 1e-8


class Ridge(Quadratic):
    """½ yᵀHy − yᵀb + ½ Σ e^θᵢ yᵢ², at y* = (H + D)⁻¹b: dy*/dθ = −(H + D)⁻¹ diag(e^θ ∘ y*)."""

    def objective(self, leader: Numbers, y: Tensor, batch: Valley) -> Tensor:
        decay = (leader.theta.exp() * y.square()).sum() / 2
        return y @ batch.h @ y / 2 - y @ batch.b.sum(1) + decay


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("trusted", [False, True])
def test_a_badly_conditioned_follower(seed: int, trusted: bool) -> None:
    """After 300 steps the gradient is small, and the flat directions have hardly moved.

    With momentum they have arrived after 800.

    The start is as far from the optimum in all directions: the steep ones make its gradient.
    """
    batch, leader, v = valley(6, 2000.0, seed=seed), Numbers(6), torch.ones(6, dtype=F64)
    batch = batch._replace(b=batch.h @ batch.b)
    decay = leader.theta.exp().detach()
    matrix = batch.h + decay.diag()
    expected = -decay * torch.linalg.solve(matrix, batch.b.sum(1)) * torch.linalg.solve(matrix, v)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        momentum = Optimizer(torch.optim.SGD, lr=5e-4, momentum=0.95)
        solver = Iterative(momentum, 800) if trusted else Iterative(Gradient(5e-4), 300)
        slope, _ = hypergradient(Implicit(), solver, Ridge(), leader, batch, v)
    assert (error(slope, expected) < 1e-3) == trusted
    told = [str(warning.message).split(":")[1] for warning in caught]
    assert told == ([] if trusted else [" the follower is badly conditioned"])


@pytest.mark.parametrize("steps", [1, 60, 400])
def test_weights_that_are_their_own_start(steps: int) -> None:
    """Once trained there is nothing to warn of, although they are as far as at the start."""

    class Own(Shrunk):
        def init(self, batch: Tensor) -> Tensor:
            return solver.y.detach()

    leader, batch = Decay(), torch.ones(3, dtype=F64)
    solver = Parametric(2 * torch.ones(3, dtype=F64))
    optimizer = torch.optim.SGD(solver.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        Shrunk().objective(leader, solver.y, batch).sum().backward(inputs=[solver.y])
        optimizer.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = Implicit().solve(solver, Own(), leader, batch).value
        leader.loss(y, batch).backward()
    told = [str(warning.message) for warning in caught]
    assert len(told) == (steps == 1)
    assert all("not stationary at its answer: by the residual" in line for line in told)


def test_an_answer_that_is_trained_has_no_more_steps_to_take() -> None:
    leader, batch = Decay(), torch.ones(3, dtype=F64)
    y = Implicit().solve(Parametric(torch.zeros(3, dtype=F64)), Shrunk(), leader, batch).value
    told = r"off by more than its norm, .* let the leader be slower than solver_opt"
    with pytest.warns(HypergradientWarning, match=told):
        leader.loss(y, batch).backward()


ONES = torch.ones(3, dtype=F64)
ROUND = Valley(torch.eye(3, dtype=F64), torch.ones(3, 3, dtype=F64))


def test_a_solve_that_is_stopped_at_a_sixteenth_of_the_way() -> None:
    given = Iterative(Gradient(0.5), 4), Quadratic(), Numbers(3), ROUND, ONES
    with pytest.warns(HypergradientWarning, match=r"not stationary at its answer: .* is 0.062 of"):
        hypergradient(Implicit(), *given)


class Toward(Update):
    """Halfway to the optimum, without the gradient."""

    needs_gradient = False

    def __init__(self, leader: Numbers) -> None:
        super().__init__()
        self.leaders = [leader]  # not registered

    def forward(self, y, gradient, context, state):
        return (y + ROUND.b @ self.leaders[0].theta) / 2, state


def test_a_fixed_point_is_not_asked_for_more_than_a_step() -> None:
    """Twelve steps leave 2⁻¹² of the way, which is converged."""
    leader = Numbers(3)
    update = Toward(leader)
    adjoint = Implicit(fixed_point=update)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = Iterative(update, 12), Quadratic(), leader, ROUND, ONES
        slope, _ = hypergradient(adjoint, *given)
    assert error(slope, pulled_back(ROUND, ONES)) < 1e-6
